"""Pictures: images on their way into noise, a schedule's curves, samples beside real images, losses by timestep."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_data.drawing import COLOURS, DPI, Axes, Figure, log_axis, noised, panel, pixels, show_rows
from ddpm_data.losses import Row
from ddpm_data.process import ForwardProcess

_EARLIER = 20  # validations beside the last, spread over the training


def noising_strip(process: ForwardProcess, images: Tensor, path: Path, columns: int = 10) -> None:
    """Draw real images, one a row, at steps spread evenly over the forward process; each row has one noise.

    Args:
        process: The forward process to show.
        images: uint8, shape ``(rows, channels, height, width)``.
        path: The PNG file.
        columns: How many steps: 0, T/columns, 2T/columns, ...
    """
    steps = sorted({column * process.num_timesteps // columns for column in range(columns)})
    rows = noised(process, images, steps)
    figure = Figure(figsize=(len(steps), len(rows) * images.shape[2] / images.shape[3] + 0.3), layout="constrained")
    show_rows(figure.subplots(), rows, [f"t = {step}" for step in steps])
    figure.savefig(path, dpi=DPI)


def schedule_curves(process: ForwardProcess, path: Path) -> None:
    """Draw beta, alphas_cumprod and the signal-to-noise ratio in decibels against t.

    Args:
        process: Whose schedule to show.
        path: The PNG file.
    """
    t = torch.arange(process.num_timesteps, device=process.betas.device)
    curves = {
        "beta, variance added a step": process.betas,
        "alphas_cumprod, signal variance left": process.alphas_cumprod,
        "signal-to-noise ratio, dB": 10 * process.snr(t).log10(),
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        finite = values.isfinite()  # zero terminal SNR is minus infinity decibels
        axes.plot(t[finite].cpu().numpy(), values[finite].cpu().numpy(), color=COLOURS[0], linewidth=2)
        panel(axes, name, "t, step")
    figure.savefig(path, dpi=DPI)


def timestep_losses(rows: Sequence[Row], path: Path) -> None:
    """Draw the last validation's loss against t, and the earlier ones faintly.

    Args:
        rows: Of :class:`~ddpm_data.callbacks.TimestepLoss`'s table, at least one with a loss.
        path: The PNG file.
    """
    validations: dict[int, list[Row]] = {}
    for row in rows:
        if row.loss is not None:
            validations.setdefault(row.step, []).append(row)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = sorted(validations)
    shown = sorted({steps[number * (len(steps) - 1) // _EARLIER] for number in range(_EARLIER)} - {steps[-1]})
    for place, step in enumerate(shown):
        _loss_curve(axes, validations[step], color="#999999", alpha=0.3 + 0.7 * place / len(shown), linewidth=1)
    last = validations[steps[-1]]
    label = f"epoch {last[0].epoch}, step {last[0].step:,}"
    _loss_curve(axes, last, color=COLOURS[0], linewidth=2, marker="o", markersize=4, label=label)
    if shown:
        label = f"{len(shown)} earlier, darker later" if len(shown) > 1 else f"earlier, step {shown[0]:,}"
        axes.plot([], [], color="#999999", linewidth=1, label=label)
    values = [row.loss for row in rows if row.loss is not None and isfinite(row.loss)]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        log_axis(axes, min(values), max(values))
    axes.set_xlim(0, 1 + max(row.last_t for row in rows))
    panel(axes, "validation loss of an example, mean over a range of t", "t, step")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=DPI)


def _loss_curve(axes: Axes, rows: Sequence[Row], **how: Any) -> None:  # noqa: ANN401  # matplotlib's
    points = [((row.first_t + row.last_t) / 2, row.loss) for row in rows if row.loss is not None]
    axes.plot(*zip(*points, strict=True), **how)


def samples_beside(samples: Tensor, real: Tensor, path: Path) -> None:
    """Draw a square of generated images and one of real images, side by side.

    Args:
        samples: In ``[-1, 1]``, float, shape ``(count, channels, height, width)``.
        real: uint8, shape ``(count, channels, height, width)``.
        path: The PNG file.
    """
    height = 6 / _mosaic(real).shape[2] * _mosaic(real).shape[1]
    figure = Figure(figsize=(12.4, height + 0.5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]  # "constrained" has one that takes it
    sides: Sequence[tuple[str, Tensor]] = (("Samples", samples), ("Real images", real.float() / 127.5 - 1))
    for axes, (name, images) in zip(figure.subplots(1, 2), sides, strict=True):
        _show(axes, _mosaic(images.cpu()))
        axes.set_title(name, fontsize=13)
    figure.savefig(path, dpi=DPI)


def image_grids(grids: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Draw squares of images, side by side, each under its title; images that differ in size are framed in white.

    Args:
        grids: By title, uint8, shape ``(channels, height, width)`` with 1, 3 or 4 channels.
        path: The PNG file.
    """
    mosaics = {title: _mosaic(_framed(images)) for title, images in grids.items()}
    height = max(6 / mosaic.shape[2] * mosaic.shape[1] for mosaic in mosaics.values())
    figure = Figure(figsize=(6.2 * len(mosaics), height + 0.7), layout="constrained")
    for axes, (title, mosaic) in zip(figure.subplots(1, len(mosaics), squeeze=False)[0], mosaics.items(), strict=True):
        _show(axes, mosaic)
        axes.set_title(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def _framed(images: Sequence[Tensor]) -> Tensor:
    channels, height, width = (max(image.shape[axis] for image in images) for axis in range(3))
    framed = torch.full((len(images), channels, height, width), 255, dtype=torch.uint8)
    for place, image in zip(framed, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image  # grey becomes every channel
    return framed.float() / 127.5 - 1


def _mosaic(images: Tensor) -> Tensor:
    """Images ``(count, channels, h, w)`` as one, near square, with a white line between."""
    side = -(-len(images) // max(1, int(len(images) ** 0.5)))
    rows = -(-len(images) // side)
    channels, height, width = images.shape[1:]
    canvas = images.new_ones(channels, rows * (height + 1) - 1, side * (width + 1) - 1)
    for index, image in enumerate(images):
        top, left = index // side * (height + 1), index % side * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(pixels(image), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
