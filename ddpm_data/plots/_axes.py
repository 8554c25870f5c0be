"""Parts that several pictures share: colours, axes, and images in rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.rng.philox import Purpose, key_from, normals

try:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install 'ddpm-data[plots]'") from error

# The palette of Okabe & Ito, which people with any kind of colour vision can tell apart. Its yellow is left out,
# because it is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
DPI = 150


def curve_style(number: int) -> dict[str, Any]:
    """Return the colour, dashes and width of the curve with this number.

    The first 28 numbers give different styles. The first 4 also differ without colour.
    """
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 2}


def format_axes(axes: Axes, title: str, x_label: str) -> None:
    """Add a title, a name for the x axis and a faint grid, and remove the box."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def set_log_scale(axes: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic.

    If the values span less than two decades, the axis gets more labels, as plain numbers.

    Args:
        axes: The axes to change.
        low: The lowest value drawn, above 0.
        high: The highest value drawn.
    """
    axes.set_yscale("log")
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def noise_images(process: GaussianProcess, images: Tensor, steps: Sequence[int]) -> Tensor:
    """Noise images to several steps of the forward process.

    Each image keeps one noise at all steps, and gets the same noise in every call.

    Args:
        process: The forward process.
        images: Images in ``[0, 255]``, uint8, shape ``(rows, channels, height, width)``.
        steps: Zero-based steps.

    Returns:
        Noised images on the CPU, float32, shape ``(rows, len(steps), channels, height, width)``.
    """
    rows, device = len(images), process.signal.device
    x_0 = scale_images(images.to(device))
    position = torch.arange(rows, device=device)
    noise = normals(key_from(0), Purpose.NOISE, "predict", position, x_0[0].numel()).view(x_0.shape)
    times = (torch.full((rows,), step, device=device) for step in steps)
    return torch.stack([process.q_sample(x_0, t, noise).cpu() for t in times], dim=1)


def show_rows(axes: Axes, images: Tensor, titles: Sequence[str]) -> None:
    """Fill axes with rows of images, and write a title over each column.

    Args:
        axes: The axes to fill. All images share them, because matplotlib lays out many axes slowly.
        images: Images in ``[-1, 1]``, float, shape ``(rows, columns, channels, height, width)``.
        titles: One title per column.
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
    """Convert an image to the array that matplotlib draws.

    Args:
        image: Values in ``[-1, 1]``, float, shape ``(channels, height, width)``.

    Returns:
        Values in ``[0, 1]``, shape ``(height, width, channels)``, or ``(height, width)`` if there is one channel.
    """
    values = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    return values[..., 0] if values.shape[-1] == 1 else values


def draw_legend(figure: Any, styles: Mapping[str, Mapping[str, Any]], columns: int) -> None:  # noqa: ANN401  # or a part of one
    """Draw a legend in a figure, or in a part of one, that holds nothing else.

    Args:
        figure: The figure, or the part of it.
        styles: By the name of each curve, how it is drawn.
        columns: Names per row.
    """
    lines = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(lines, list(styles), loc="center", ncols=columns, frameon=False, handlelength=3)
