"""What the pictures have in common: colours, axes, images in rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.rng.philox import Purpose, key_from, normals

try:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install 'ddpm-data[plots]'") from error

# Okabe & Ito's palette, told apart by every kind of colour vision, without its yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
DPI = 150


def style(number: int) -> dict[str, Any]:
    """How the curve of a number is drawn: the first 28 differ, and also without colour the first 4 do."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 2}


def panel(axes: Axes, title: str, x_label: str) -> None:
    """Title, the x axis's name, a faint grid, and no box."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic; over few decades its labels are plain numbers, and more of them."""
    axes.set_yscale("log")
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def noise_images(process: ForwardProcess, images: Tensor, steps: Sequence[int]) -> Tensor:
    """Images at some steps of the forward process, each with one noise throughout, which is the same every time.

    Args:
        process: The forward process.
        images: uint8, shape ``(rows, channels, height, width)``.
        steps: Zero-based.

    Returns:
        On the CPU, float32, shape ``(rows, len(steps), channels, height, width)``.
    """
    rows, device = len(images), process.betas.device
    x_0 = scale_images(images.to(device))
    position = torch.arange(rows, device=device)
    noise = normals(key_from(0), Purpose.NOISE, "predict", position, x_0[0].numel()).view(x_0.shape)
    times = (torch.full((rows,), step, device=device) for step in steps)
    return torch.stack([process.q_sample(x_0, t, noise).cpu() for t in times], dim=1)


def show_rows(axes: Axes, images: Tensor, titles: Sequence[str]) -> None:
    """Fill axes with rows of images, a title over each column.

    Args:
        axes: Where; one for all images, since axes are slow to lay out.
        images: In ``[-1, 1]``, float, shape ``(rows, columns, channels, height, width)``.
        titles: Of the columns.
    """
    (rows, columns), (height, width) = images.shape[:2], images.shape[-2:]
    gap = 0.05
    for row in range(rows):
        for column in range(columns):
            extent = (column, column + 1 - gap, row + 1 - gap, row)
            axes.imshow(to_plot_array(images[row, column]), cmap="gray", vmin=0, vmax=1, extent=extent)
    axes.set(xlim=(0, columns - gap), ylim=(rows - gap, 0), aspect=height / width)
    axes.set_xticks([column + (1 - gap) / 2 for column in range(columns)], titles)
    axes.set_yticks([])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def to_plot_array(image: Tensor) -> Any:  # noqa: ANN401  # an array of whatever matplotlib takes
    """An image in ``[-1, 1]`` as matplotlib wants it: channels last, or none; in ``[0, 1]``."""
    values = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    return values[..., 0] if values.shape[-1] == 1 else values


def legend(figure: Any, styles: Mapping[str, Mapping[str, Any]], columns: int) -> None:  # noqa: ANN401  # or a part of one
    """Name the curves, in a figure or part of one that holds nothing else."""
    lines = [Line2D([], [], **how) for how in styles.values()]
    figure.legend(lines, list(styles), loc="center", ncols=columns, frameon=False, handlelength=3)
