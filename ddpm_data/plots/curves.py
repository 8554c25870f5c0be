"""Pictures of curves: a schedule, several over each other, the runs of a sweep, losses by timestep."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timestep_bins import BinLoss, TimestepBins
from ddpm_data.diffusion.timesteps import Timesteps, UniformTimesteps
from ddpm_data.plots._axes import COLOURS, DPI, Axes, Figure, legend, log_axis, noise_images, panel, show_rows, style
from ddpm_data.rng.philox import key_from

_DRAWS = 2**20  # of t for its density
_BARS = 40  # in which they are counted: independent uniform draws come within 2% in each (3 sigma)
_COLOURED = 2 * len(COLOURS)  # curves that can still be told apart
_OTHERS = {"color": "#BBBBBB", "linewidth": 1, "zorder": 1}


class Curve(NamedTuple):
    """Values against t / T, so that chains of different lengths can be compared; one-dimensional, on any device."""

    fraction: Tensor
    values: Tensor


class Panel(NamedTuple):
    """Curves of one quantity.

    Attributes:
        title: What it is, and in which unit.
        curves: By name; what is not finite is left out.
        is_log: Whether its axis is logarithmic; what is not above 0 is then left out too.
    """

    title: str
    curves: Mapping[str, Curve]
    is_log: bool = False


def schedule_sheet(
    processes: Mapping[str, ForwardProcess],
    path: Path,
    timesteps: Timesteps | Mapping[str, Timesteps] | None = None,
    images: Tensor | None = None,
    columns: int = 10,
) -> None:
    """Draw all that follows from a schedule, of one or of several over each other, and images on their way into noise.

    Args:
        processes: By name, at least one; their numbers of steps may differ.
        path: The PNG file.
        timesteps: How t is drawn, for all or for each; default: uniformly. Its density is counted in a million draws.
        images: To be noised by each, one a row: uint8, shape ``(rows, channels, height, width)``.
        columns: Steps of the strips, spread evenly from the first to the last.
    """
    if not isinstance(timesteps, Mapping):
        timesteps = dict.fromkeys(processes, timesteps or UniformTimesteps())
    lengths = {process.num_timesteps for process in processes.values()}
    num_timesteps = lengths.pop() if len(lengths) == 1 else None
    strips = {} if images is None else {name: _strip(process, images, columns) for name, process in processes.items()}
    tall = 0 if images is None else 12.5 / columns * len(images) * images.shape[2] / images.shape[3] + 0.6
    heights = [0.3 + 0.25 * -(-len(processes) // 4), 6.6] + [tall] * len(strips)
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    legend(parts[0], {name: style(number) for number, name in enumerate(processes)}, columns=4)
    for axes, one in zip(parts[1].subplots(2, 3).flat, _panels(processes, timesteps), strict=True):
        _draw(axes, one, list(processes), num_timesteps)
    for number, (part, name) in enumerate(zip(parts[2:], strips, strict=True)):
        part.suptitle(name, x=0.01, ha="left", color=style(number)["color"], weight="bold", fontsize=11)
        show_rows(part.subplots(), *strips[name])
    figure.savefig(path, dpi=DPI)


def compare_curves(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side that share their names and colours, such as a sweep's schedules and their losses.

    Args:
        panels: At least one. The first 14 names of the first panel are coloured, so give the best first; what is beyond
            could not be told apart, and is grey, and only counted in the legend.
        path: The PNG file.
    """
    names = list(dict.fromkeys(name for one in panels for name in one.curves))
    styles = {name: style(number) for number, name in enumerate(names[:_COLOURED])}
    if len(names) > _COLOURED:
        styles[f"{len(names) - _COLOURED} others"] = _OTHERS
    width = 6.2 * len(panels)
    columns = max(1, min(len(styles), int(width / (0.7 + 0.085 * max(map(len, styles))))))
    heights = [4.2, 0.2 + 0.22 * -(-len(styles) // columns)]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, one in zip(above.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, one, names)
    legend(below, styles, columns)
    figure.savefig(path, dpi=DPI)


def density(timesteps: Timesteps, num_timesteps: int) -> Curve:
    """How often each part of the chain is trained on, where 1 is as often as by uniform steps: counted, in 40 parts."""
    t = timesteps(torch.arange(_DRAWS), num_timesteps, key_from(0), "train")
    parts = TimestepBins(num_timesteps, _BARS)
    width = torch.tensor(parts.last) + 1 - torch.tensor(parts.first)
    share = torch.bincount(parts.find_bin(t), minlength=parts.count) / len(t)
    middle = (torch.tensor(parts.first) + torch.tensor(parts.last)) / 2
    return Curve(middle / num_timesteps, share * num_timesteps / width)


def _panels(processes: Mapping[str, ForwardProcess], timesteps: Mapping[str, Timesteps]) -> Iterator[Panel]:
    def each(quantity: str) -> dict[str, Curve]:
        return {name: _curve(process, quantity) for name, process in processes.items()}

    yield Panel("beta, variance added a step", each("beta"), is_log=True)
    yield Panel("alphas_cumprod, signal variance left", each("signal"))
    yield Panel("signal-to-noise ratio, dB", each("decibels"))
    drawn = {name: density(timesteps[name], process.num_timesteps) for name, process in processes.items()}
    yield Panel("density of t in training, uniform = 1", drawn)
    yield Panel("noise error's weight, min-SNR-5 (Hang 2023)", each("min_snr"))
    yield Panel("noise error's weight, VLB (DDPM, Eq. 12)", each("vlb"), is_log=True)


def _curve(process: ForwardProcess, quantity: str) -> Curve:
    steps = torch.arange(process.num_timesteps, device=process.betas.device)
    snr, beta, noise = process.snr(steps), process.betas, process.sqrt_one_minus_alphas_cumprod.square()
    values = {
        "beta": beta,
        "signal": process.alphas_cumprod,
        "decibels": 10 * snr.log10(),
        "min_snr": (5 / snr).clamp(max=1),  # min(SNR, 5) / SNR: Hang et al. 2023, "Efficient diffusion training"
        "vlb": beta / (2 * process.alphas * noise),  # with sigma^2 = beta
    }[quantity]
    return Curve(steps / process.num_timesteps, values)


def _strip(process: ForwardProcess, images: Tensor, columns: int) -> tuple[Tensor, list[str]]:
    last = process.num_timesteps - 1
    steps = sorted({round(column * last / max(columns - 1, 1)) for column in range(columns)})
    return noise_images(process, images, steps), [f"t = {step}" for step in steps]


def _draw(axes: Axes, one: Panel, names: Sequence[str], num_timesteps: int | None = None) -> None:
    falls, ends = False, [torch.inf, -torch.inf]
    for name, (fraction, values) in one.curves.items():
        number = names.index(name)
        how = dict(style(number) if number < _COLOURED else _OTHERS)
        x, y = (fraction * (num_timesteps or 1)).cpu(), values.detach().cpu()
        drawn = y.isfinite() & (y > 0) if one.is_log else y.isfinite()
        if not drawn.any():
            continue
        marker = "o" if int(drawn.sum()) == 1 else None  # a line of one point would not be seen
        axes.plot(x[drawn].numpy(), y[drawn].numpy(), marker=marker, **how)
        ends = [min(ends[0], float(y[drawn].min())), max(ends[1], float(y[drawn].max()))]
        if not one.is_log and y[-1] == -torch.inf:
            falls = True
            axes.plot(x[drawn][-1:].numpy(), y[drawn][-1:].numpy(), marker="v", markersize=9, color=how["color"])
    if one.is_log and ends[0] < torch.inf:
        log_axis(axes, *ends)
    elif 0 <= ends[0] < torch.inf:
        axes.set_ylim(0, 1.08 * ends[1] or 1)
    axes.set_xlim(-0.02 * (num_timesteps or 1), 1.02 * (num_timesteps or 1))
    title = f"{one.title} (▼ no signal left)" if falls else one.title
    panel(axes, title, "t / T" if num_timesteps is None else "t, step")


_EARLIER = 20  # validations beside the last, spread over the training


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


def timestep_losses(rows: Sequence[BinLoss], path: Path) -> None:
    """Draw the last validation's loss against t, and the earlier ones faintly.

    Args:
        rows: Of :class:`~ddpm_data.callbacks.TimestepLoss`'s table, at least one with a loss.
        path: The PNG file.
    """
    validations: dict[int, list[BinLoss]] = {}
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


def _loss_curve(axes: Axes, rows: Sequence[BinLoss], **how: Any) -> None:  # noqa: ANN401  # matplotlib's
    points = [((row.first_t + row.last_t) / 2, row.loss) for row in rows if row.loss is not None]
    axes.plot(*zip(*points, strict=True), **how)
