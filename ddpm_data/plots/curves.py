"""Pictures of curves: schedules, the runs of a sweep, and losses by timestep."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, log
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm_data.diffusion.linear_denoiser import LinearBaseline
from ddpm_data.diffusion.objective import Objective, view_on_log_snr
from ddpm_data.diffusion.process import ForwardProcess, GaussianProcess
from ddpm_data.diffusion.timestep_bins import BinLoss, TimestepBins
from ddpm_data.diffusion.timesteps import Timesteps, UniformTimesteps, find_probabilities
from ddpm_data.plots._axes import (
    COLOURS,
    DPI,
    Axes,
    Figure,
    Line2D,
    curve_style,
    draw_legend,
    format_axes,
    set_log_scale,
)
from ddpm_data.plots._tiles import Tiles, choose_steps, join_tiles, noise_images, show_tiles, title_steps

_BARS = 40  # bins of the density of t
_COLOURED = 2 * len(COLOURS)  # curves that can still be told apart
_OTHERS = {"color": "#BBBBBB", "linewidth": 1, "zorder": 1}
_STRIP_SIDE = 184  # pixels of an image: ten of them are as wide as the page
_LINEAR: dict[str, Any] = {"color": COLOURS[1], "linewidth": 2, "linestyle": "--"}  # the best linear denoiser
_SHOWN_WEIGHTS = 1e4  # weights of x_0's error that differ more from that at 0 dB are left out
_EARLIER = 20  # earlier validations drawn beside the last one, spread over the training


class Curve(NamedTuple):
    """One curve, over t / T or over the signal-to-noise ratio, so that schedules of different lengths can be compared.

    Attributes:
        x: t / T, or the ratio in decibels; one-dimensional, on any device.
        values: The value at each ``x``, of the same shape.
    """

    x: Tensor
    values: Tensor


class Panel(NamedTuple):
    """The curves of one quantity.

    Attributes:
        title: The quantity and its unit.
        curves: The curves by name. Values that are not finite are left out.
        is_log: Whether the y axis is logarithmic. Values that are not above 0 are then left out too.
        over_snr: Whether the curves are over the signal-to-noise ratio. It falls from left to right, as over t.
    """

    title: str
    curves: Mapping[str, Curve]
    is_log: bool = False
    over_snr: bool = False


def schedule_sheet(
    processes: Mapping[str, GaussianProcess],
    path: Path,
    timesteps: Timesteps | Mapping[str, Timesteps] | None = None,
    images: Tensor | None = None,
    columns: int = 10,
    objectives: Mapping[str, Objective] | None = None,
) -> None:
    """Draw the curves of one or more training objectives, and images noised by each.

    The last row of curves is over the signal-to-noise ratio, the axis that all objectives share.

    Args:
        processes: Forward processes by name, at least one. Their numbers of steps may differ.
        path: The PNG file to write.
        timesteps: How t is drawn, for all processes or by name. ``None`` draws uniformly. The density is counted from
            a million draws.
        images: Images to noise, one per row: uint8, shape ``(rows, channels, height, width)``. ``None`` shows none.
        columns: Steps per row of images, spread evenly from the first to the last.
        objectives: The target and weight of each, by name. ``None`` is the noise, with equal weights.
    """
    objectives = objectives or {name: Objective(process) for name, process in processes.items()}
    if not isinstance(timesteps, Mapping):
        timesteps = dict.fromkeys(processes, timesteps or UniformTimesteps())
    lengths = {process.num_timesteps for process in processes.values()}
    num_timesteps = lengths.pop() if len(lengths) == 1 else None
    strips = (
        {} if images is None else {name: _noise_strip(process, images, columns) for name, process in processes.items()}
    )
    shapes = [tiles.pixels.shape for tiles, _ in strips.values()]
    heights = [0.3 + 0.25 * -(-len(processes) // 4), 9.9] + [12.9 * rows / width + 0.8 for rows, width, _ in shapes]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    areas = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    legend_area, curve_area, *strip_areas = areas
    draw_legend(legend_area, {name: curve_style(number) for number, name in enumerate(processes)}, columns=4)
    panels = _objective_panels(processes, timesteps, objectives)
    for axes, panel in zip(curve_area.subplots(3, 3).flat, panels, strict=True):
        _draw_panel(axes, panel, list(processes), num_timesteps)
    for number, (area, name) in enumerate(zip(strip_areas, strips, strict=True)):
        area.suptitle(name, x=0.01, ha="left", color=curve_style(number)["color"], weight="bold", fontsize=11)
        show_tiles(area.subplots(), *strips[name])
    figure.savefig(path, dpi=DPI)


def compare_curves(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side, with one colour per name, such as a sweep's schedules and their losses.

    Args:
        panels: At least one. The first 14 names of the first panel are coloured, so give the best first. More could
            not be told apart: the others are grey, and the legend only counts them.
        path: The PNG file to write.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    styles = {name: curve_style(number) for number, name in enumerate(names[:_COLOURED])}
    if len(names) > _COLOURED:
        styles[f"{len(names) - _COLOURED} others"] = _OTHERS
    width = 6.2 * len(panels)
    columns = max(1, min(len(styles), int(width / (0.7 + 0.085 * max(map(len, styles))))))
    heights = [4.2, 0.2 + 0.22 * -(-len(styles) // columns)]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    curve_area, legend_area = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, panel in zip(curve_area.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel, names)
    draw_legend(legend_area, styles, columns)
    figure.savefig(path, dpi=DPI)


def density(timesteps: Timesteps, process: GaussianProcess) -> Curve:
    """Count how often each part of the forward process is trained on, in 40 parts.

    Args:
        timesteps: How t is drawn.
        process: The forward process.

    Returns:
        The frequency of each part, where 1 is that of uniform draws.
    """
    steps = process.num_timesteps
    bins = TimestepBins(steps, _BARS)
    shares = find_probabilities(timesteps, process)
    share = torch.bincount(bins.find_bin(torch.arange(steps)), weights=shares, minlength=bins.count)
    width = torch.tensor(bins.last) + 1 - torch.tensor(bins.first)
    middle = (torch.tensor(bins.first) + torch.tensor(bins.last)) / 2
    return Curve(middle / steps, (share * steps / width).float())


def _objective_panels(
    processes: Mapping[str, GaussianProcess], timesteps: Mapping[str, Timesteps], objectives: Mapping[str, Objective]
) -> Iterator[Panel]:
    def curves_of(quantity: str) -> dict[str, Curve]:
        return {name: _schedule_curve(process, quantity) for name, process in processes.items()}

    yield Panel("beta, variance added per step", curves_of("beta"), is_log=True)
    yield Panel("signal², factor of the image's variance", curves_of("signal"))
    yield Panel("sigma², variance of the noise", curves_of("sigma"), is_log=True)
    densities = {name: density(timesteps[name], process) for name, process in processes.items()}
    yield Panel("density of t in training, uniform = 1", densities)
    weights = {name: Curve(_place(processes[name]), one.weight) for name, one in objectives.items()}
    values = torch.cat([curve.values[curve.values > 0].cpu() for curve in weights.values()])
    is_wide = len(values) > 0 and bool(values.max() > 10 * values.min())
    yield Panel("loss weight of the target's squared error", weights, is_log=is_wide)
    yield Panel("signal-to-noise ratio, dB", curves_of("decibels"))
    views = {
        name: view_on_log_snr(process, objectives[name], find_probabilities(timesteps[name], process))
        for name, process in processes.items()
    }
    decibels = 10 / log(10)  # of a unit of log SNR
    shares, on_x_0, sums = {}, {}, {}
    for name, view in views.items():
        x = view.log_snr * decibels
        shares[name] = Curve(x, 1000 / decibels * view.density)
        shown = (view.weight >= 1 / _SHOWN_WEIGHTS) & (view.weight <= _SHOWN_WEIGHTS)
        on_x_0[name] = Curve(x, view.weight.where(shown, torch.nan))
        sums[name] = Curve(x, 100 * (1 - find_probabilities(timesteps[name], processes[name]).cumsum(0)[1:-1]))
    yield Panel("training per 10 dB, %", shares, over_snr=True)
    yield Panel("weight of x_0's squared error per dB, 0 dB = 1", on_x_0, is_log=True, over_snr=True)
    yield Panel("training with more noise than this, %", sums, over_snr=True)


def _place(process: GaussianProcess) -> Tensor:
    return torch.arange(process.num_timesteps, device=process.signal.device) / process.num_timesteps


def _schedule_curve(process: GaussianProcess, quantity: str) -> Curve:
    snr = process.snr(torch.arange(process.num_timesteps, device=process.signal.device))
    beta = process.betas if isinstance(process, ForwardProcess) else torch.full_like(snr, torch.nan)  # only chains do
    values = {
        "beta": beta,
        "signal": process.signal.square(),
        "sigma": process.sigma.square(),
        "decibels": 10 * snr.log10(),
    }[quantity]
    return Curve(_place(process), values)


def _noise_strip(process: GaussianProcess, images: Tensor, columns: int) -> tuple[Tiles, list[str]]:
    """Noise images to steps that are spread evenly over t; returns them with a title per step.

    Evenly over the signal-to-noise ratio, all schedules would look alike.
    """
    steps = choose_steps(process, columns, "t")
    return join_tiles(list(noise_images(process, images, steps)), len(steps), _STRIP_SIDE), title_steps(process, steps)


def _draw_panel(axes: Axes, panel: Panel, names: Sequence[str], num_timesteps: int | None = None) -> None:
    """Draw a panel's curves over t, or over t / T where ``num_timesteps`` is not given.

    A triangle marks where a curve falls to minus infinity.
    """
    loses_signal, low, high = False, torch.inf, -torch.inf
    scale = 1 if panel.over_snr else num_timesteps or 1
    for name, (x, values) in panel.curves.items():
        number = names.index(name)
        style = dict(curve_style(number) if number < _COLOURED else _OTHERS)
        x, y = (x * scale).cpu(), values.detach().cpu()
        is_drawn = y.isfinite() & (y > 0) if panel.is_log else y.isfinite()
        if not is_drawn.any():
            continue
        marker = "o" if int(is_drawn.sum()) == 1 else None  # a line of one point would be invisible
        axes.plot(x[is_drawn].numpy(), y[is_drawn].numpy(), marker=marker, **style)
        low, high = min(low, float(y[is_drawn].min())), max(high, float(y[is_drawn].max()))
        if not panel.is_log and y[-1] == -torch.inf:
            loses_signal = True
            end = x[is_drawn][-1:].numpy(), y[is_drawn][-1:].numpy()
            axes.plot(*end, marker="v", markersize=9, color=style["color"])
    if panel.is_log and low < torch.inf:
        set_log_scale(axes, low, high)
    elif 0 <= low < torch.inf:
        axes.set_ylim(0, 1.08 * high or 1)
    if panel.over_snr:
        axes.invert_xaxis()
        x_label = "signal-to-noise ratio, dB"
    else:
        axes.set_xlim(-0.02 * scale, 1.02 * scale)
        x_label = "t / T" if num_timesteps is None else "t, step"
    title = f"{panel.title} (▼ no signal left)" if loses_signal else panel.title
    format_axes(axes, title, x_label)


def schedule_curves(process: GaussianProcess, path: Path) -> None:
    """Draw beta (or sigma), the signal's variance and the signal-to-noise ratio in decibels against t.

    Args:
        process: The forward process whose schedule is drawn.
        path: The PNG file to write.
    """
    t = torch.arange(process.num_timesteps, device=process.signal.device)
    curves = {"sigma, factor of the noise": process.sigma, "signal, factor of x_0": process.signal}
    if isinstance(process, ForwardProcess):
        curves = {
            "beta, variance added per step": process.betas,
            "alphas_cumprod, signal variance left": process.alphas_cumprod,
        }
    curves["signal-to-noise ratio, dB"] = 10 * process.snr(t).log10()
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        finite = values.isfinite()  # zero terminal SNR is minus infinity decibels
        axes.plot(t[finite].cpu().numpy(), values[finite].cpu().numpy(), color=COLOURS[0], linewidth=2)
        format_axes(axes, title, "t, step")
    figure.savefig(path, dpi=DPI)


def timestep_losses(rows: Sequence[BinLoss], path: Path, baseline: LinearBaseline | None = None) -> None:
    """Draw the loss by timestep of every validation, the last one strongly.

    Args:
        rows: Rows of the table that :class:`~ddpm_data.callbacks.TimestepLoss` writes, at least one with a loss.
        path: The PNG file to write.
        baseline: The best linear denoiser's loss. A second panel then has the losses as multiples of it.
    """
    validations: dict[int, list[BinLoss]] = {}
    for row in rows:
        if row.loss is not None:
            validations.setdefault(row.step, []).append(row)
    steps = sorted(validations)
    earlier = sorted({steps[number * (len(steps) - 1) // _EARLIER] for number in range(_EARLIER)} - {steps[-1]})
    panels: dict[str, dict[int, list[_Point]]] = {
        "validation loss per example, mean over a range of t": {
            step: [_Point(row.first_t, row.last_t, row.loss) for row in validations[step] if row.loss is not None]
            for step in (*earlier, steps[-1])
        }
    }
    if baseline is not None:
        panels["the same, divided by the linear denoiser's loss"] = {
            step: [
                point._replace(loss=point.loss / linear)
                for point in points
                if (linear := baseline.losses.get((point.first_t, point.last_t)))
            ]
            for step, points in panels[next(iter(panels))].items()
        }
    figure = Figure(figsize=(7 * len(panels), 4.2), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, step in enumerate(earlier):
            _draw_losses(axes, curves[step], color="#999999", alpha=0.3 + 0.7 * number / len(earlier), linewidth=1)
        _draw_losses(axes, curves[steps[-1]], color=COLOURS[0], linewidth=2, marker="o", markersize=4)
        losses = [point.loss for points in curves.values() for point in points]
        if baseline is not None and axes is figure.axes[0]:
            _draw_losses(axes, [_Point(*ends, loss) for ends, loss in baseline.losses.items()], **_LINEAR)
            losses += baseline.losses.values()
        elif baseline is not None:
            axes.axhline(1, **_LINEAR)
            losses.append(1.0)
        finite = [loss for loss in losses if isfinite(loss)]
        if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
            set_log_scale(axes, min(finite), max(finite))
        axes.set_xlim(0, 1 + max(row.last_t for row in rows))
        format_axes(axes, title, "t, step")
    last = validations[steps[-1]][0]
    styles: dict[str, dict[str, Any]] = {
        f"epoch {last.epoch}, step {last.step:,}": {"color": COLOURS[0], "linewidth": 2, "marker": "o"}
    }
    if earlier:
        label = f"{len(earlier)} earlier, darker later" if len(earlier) > 1 else f"earlier, step {earlier[0]:,}"
        styles[label] = {"color": "#999999", "linewidth": 1}
    if baseline is not None:
        styles[f"best linear denoiser, from the spectrum of {baseline.images} validation images"] = _LINEAR
    lines = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(lines, list(styles), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=DPI)


class _Point(NamedTuple):
    """A loss in a range of t."""

    first_t: int
    last_t: int
    loss: float


def _draw_losses(axes: Axes, points: Sequence[_Point], **line: Any) -> None:  # noqa: ANN401  # matplotlib's
    axes.plot([(point.first_t + point.last_t) / 2 for point in points], [point.loss for point in points], **line)
