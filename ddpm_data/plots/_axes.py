"""Parts that several pictures share: colours, axes and legends."""

from collections.abc import Mapping
from typing import Any

try:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.lines import Line2D as Line2D
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
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
    """Make the y axis logarithmic, with at least three labels.

    If the values span less than three decades, the labels are plain numbers.

    Args:
        axes: The axes to change.
        low: The lowest value drawn, above 0.
        high: The highest value drawn.
    """
    axes.set_yscale("log")
    if high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 8 * low else MaxNLocator(5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def draw_legend(figure: Any, styles: Mapping[str, Mapping[str, Any]], columns: int) -> None:  # noqa: ANN401  # or a part of one
    """Draw a legend in a figure, or in a part of one, that holds nothing else.

    Args:
        figure: The figure, or the part of it.
        styles: By the name of each curve, how it is drawn.
        columns: Names per row.
    """
    lines = [Line2D([], [], **style) for style in styles.values()]
    legend = figure.legend(lines, list(styles), loc="center", ncols=columns, frameon=False, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names come from overrides, where $ is no formula
