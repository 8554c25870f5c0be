"""Pictures of images: noised step by step, generated beside real, and in grids."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.plots._axes import DPI, Axes, Figure
from ddpm_data.plots._tiles import (
    Spacing,
    Tiles,
    check_spacing,
    choose_steps,
    join_tiles,
    noise_images,
    show_tiles,
    title_steps,
)

_SIDE = 144  # pixels of a large image
_SMALL_SIDE = 96  # pixels of one in a square of many
_TITLE = 44  # pixels above images for one line
_TITLE_WIDTH = 640  # pixels that the title of a split may take
_CAPTION_LINE = 22  # pixels of a line below an image
_CAPTION_WIDTH = 140
_CAPTION_LETTERS = 15  # that fit into it


class Captioned(NamedTuple):
    """An image to show, with the text below it.

    Attributes:
        image: Values in ``[0, 255]``, uint8, shape ``(channels, height, width)`` with 1, 3 or 4 channels.
        caption: Its text, of one or two lines. A line that is too long loses its middle.
    """

    image: Tensor
    caption: str


def noising_strip(
    process: GaussianProcess, images: Tensor, path: Path, columns: int = 10, spacing: Spacing = "log_snr"
) -> None:
    """Draw images being noised, one per row, at steps from the first to the last.

    Each row has one noise, which grows from left to right.

    Args:
        process: The forward process to show.
        images: Images in ``[0, 255]``, uint8, shape ``(rows, channels, height, width)``.
        path: The PNG file to write.
        columns: How many steps; a shorter process shows all of its steps.
        spacing: ``"log_snr"`` spreads the steps evenly over the logarithm of the signal-to-noise ratio between 20 and
            -20 dB, so that each column looks noisier than the one before. ``"t"`` spreads them evenly over ``t``.

    Raises:
        ValueError: There is no such spacing.
    """
    steps = choose_steps(process, columns, check_spacing("noising_strip", spacing))
    tiles = join_tiles(list(noise_images(process, images, steps)), len(steps), _SIDE)
    figure, (axes,) = _make_figure([tiles], 2 * _TITLE - 20)
    show_tiles(axes, tiles, title_steps(process, steps))
    figure.savefig(path, dpi=DPI)


def samples_beside(samples: Tensor, real: Tensor, path: Path) -> None:
    """Draw a square of generated images beside a square of real images.

    Args:
        samples: Generated images in ``[-1, 1]``, float, shape ``(count, channels, height, width)``.
        real: Real images in ``[0, 255]``, uint8, shape ``(count, channels, height, width)``.
        path: The PNG file to write.
    """
    columns = _square(len(real))
    sides = [join_tiles(list(images.cpu()), columns, _SMALL_SIDE) for images in (samples, scale_images(real))]
    figure, areas = _make_figure(sides, _TITLE)
    for axes, tiles, title in zip(areas, sides, ("Samples", "Real images"), strict=True):
        show_tiles(axes, tiles)
        axes.set_title(title, fontsize=12)
    figure.savefig(path, dpi=DPI)


def image_grids(grids: Mapping[str, Sequence[Captioned]], path: Path) -> None:
    """Draw squares of images side by side, each under its title, and each image over its caption.

    Args:
        grids: Images by title, which may differ in size.
        path: The PNG file to write.
    """
    sides = []
    for shown in grids.values():
        images = [scale_images(captioned.image) for captioned in shown]
        lines = max(len(_caption_lines(captioned)) for captioned in shown)
        sides.append(join_tiles(images, _square(len(images)), _SIDE, lines * _CAPTION_LINE + 4, _CAPTION_WIDTH))
    figure, areas = _make_figure(sides, _TITLE, _TITLE_WIDTH)
    for axes, tiles, (title, shown) in zip(areas, sides, grids.items(), strict=True):
        show_tiles(axes, tiles)
        axes.set_title(title, fontsize=11, loc="left")
        for number, captioned in enumerate(shown):
            row, column = divmod(number, len(tiles.middles))
            text = "\n".join(_caption_lines(captioned))
            place = tiles.middles[column], tiles.bottoms[row] + 4
            axes.text(*place, text, ha="center", va="top", fontsize=7.5, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a name in another script, drawn as boxes
        figure.savefig(path, dpi=DPI)


def _square(count: int) -> int:
    """Return the columns of a grid that is about square."""
    return -(-count // max(1, int(count**0.5)))


def _caption_lines(captioned: Captioned) -> list[str]:
    return [_shorten(line) for line in captioned.caption.split("\n")[:2] if line]


def _shorten(line: str) -> str:
    """Leave out the middle of a long line, since the ends of a file's name tell most, and what cannot be drawn."""
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    half = (_CAPTION_LETTERS - 1) // 2
    return line if len(line) <= _CAPTION_LETTERS else f"{line[:half]}…{line[-half:]}"


def _make_figure(sides: Sequence[Tiles], above: int, min_width: int = 0) -> tuple[Figure, list[Axes]]:
    """Make a figure in which joined images lie side by side, pixel for pixel, with room for text above them."""
    margin, between = 10, 40
    shapes = [tiles.pixels.shape[:2] for tiles in sides]
    width = sum(max(shape[1], min_width) for shape in shapes) + between * (len(sides) - 1) + 2 * margin
    height = max(shape[0] for shape in shapes) + above + margin
    figure, areas, left = Figure(figsize=(width / DPI, height / DPI), dpi=DPI), [], margin
    for rows, columns in shapes:
        place = (left / width, 1 - (above + rows) / height, columns / width, rows / height)
        areas.append(figure.add_axes(place))
        left += max(columns, min_width) + between
    return figure, areas
