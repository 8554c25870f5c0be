"""Pictures: images on their way into noise, a schedule's curves, samples beside real images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm_data.philox import Purpose, key_from, normals
from ddpm_data.process import ForwardProcess

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install 'ddpm-data[plots]'") from error

_INK = "#0072B2"  # blue of Okabe & Ito's palette, told apart by every kind of colour vision


def noising_strip(process: ForwardProcess, images: Tensor, path: Path, columns: int = 10) -> None:
    """Draw real images, one a row, at steps spread evenly over the forward process; each row has one noise.

    Args:
        process: The forward process to show.
        images: uint8, shape ``(rows, channels, height, width)``.
        path: The PNG file.
        columns: How many steps: 0, T/columns, 2T/columns, ...
    """
    steps = sorted({column * process.num_timesteps // columns for column in range(columns)})
    rows, device = len(images), process.betas.device
    x_0 = images.to(device).float() / 127.5 - 1
    position = torch.arange(rows, device=device)
    noise = normals(key_from(0), Purpose.NOISE, "predict", position, x_0[0].numel()).view(x_0.shape)
    figure = Figure(figsize=(len(steps), rows + 0.45), layout="constrained")
    axes = figure.subplots(rows, len(steps), squeeze=False)
    for column, step in enumerate(steps):
        x_t = process.q_sample(x_0, torch.full((rows,), step, device=device), noise).cpu()
        for row in range(rows):
            _show(axes[row, column], x_t[row])
        axes[0, column].set_title(f"t = {step}", fontsize=10)
    figure.savefig(path, dpi=150)


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
        axes.plot(t[finite].cpu().numpy(), values[finite].cpu().numpy(), color=_INK, linewidth=2)
        axes.set_title(name, loc="left", fontsize=11)
        axes.set_xlabel("t, step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


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
    figure.savefig(path, dpi=150)


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
    figure.savefig(path, dpi=150)


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
    pixels = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
