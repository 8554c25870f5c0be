"""Images side by side in one array, with grey between them: white, black and noise all stand out from it."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.plots._axes import Axes
from ddpm_data.rng.philox import Purpose, key_from, normals

Spacing = Literal["log_snr", "t"]

GREY = 0.72  # of the gutters, in [0, 1]; black text on it is easy to read
GUTTER = 6  # pixels
_VISIBLE_DECIBELS = 20.0  # beyond it, one column after the other would look clean, or like pure noise


class Tiles(NamedTuple):
    """Images joined into one.

    Attributes:
        pixels: The array to draw, in ``[0, 1]``, shape ``(height, width, 3)``.
        middles: The x coordinate of each column's middle.
        bottoms: The y coordinate of the lower end of each row's images.
    """

    pixels: Any
    middles: list[float]
    bottoms: list[float]


def join_tiles(images: Sequence[Tensor], columns: int, side: int, text_height: int = 0, min_width: int = 0) -> Tiles:
    """Join images, row by row, on grey.

    Small images are enlarged by a whole number, so that their pixels stay sharp. All are scaled alike.

    Args:
        images: Values in ``[-1, 1]``, float, shape ``(channels, height, width)`` with 1, 3 or 4 channels. Their sizes
            may differ.
        columns: Images per row.
        side: The pixels that the longer side of the largest image may have.
        text_height: Pixels to leave free below each row.
        min_width: Pixels that a column has at least.
    """
    longest = max(max(image.shape[1:]) for image in images)
    tiles = [_resize(_to_rgb(image), longest, side) for image in images]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
    width, rows = max(width, min_width), -(-len(tiles) // columns)
    row_height, column_width = GUTTER + height + text_height, GUTTER + width
    canvas = torch.full((3, rows * row_height + GUTTER, columns * column_width + GUTTER), GREY)
    for number, tile in enumerate(tiles):
        top = number // columns * row_height + GUTTER + (height - tile.shape[1]) // 2
        left = number % columns * column_width + GUTTER + (width - tile.shape[2]) // 2
        canvas[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return Tiles(
        canvas.permute(1, 2, 0).numpy(),
        [column * column_width + GUTTER + width / 2 for column in range(columns)],
        [row * row_height + GUTTER + height for row in range(rows)],
    )


def show_tiles(axes: Axes, tiles: Tiles, titles: Sequence[str] = ()) -> None:
    """Fill axes with joined images.

    Args:
        axes: The axes to fill.
        tiles: The images.
        titles: A title for each column, written above it.
    """
    axes.imshow(tiles.pixels, vmin=0, vmax=1)
    axes.set_xticks(tiles.middles[: len(titles)], titles, fontsize=9)
    axes.set_yticks([])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def check_spacing(call: str, spacing: Spacing) -> Spacing:
    """Return ``spacing``, or refuse it if there is none of that name.

    Args:
        call: The class or function that the user called, for the error.
        spacing: The user's value.

    Raises:
        ValueError: There is no such spacing.
    """
    if spacing not in get_args(Spacing):
        raise ValueError(
            f"{call}(spacing={spacing!r}): steps can be spread evenly over {' or '.join(get_args(Spacing))}. Change "
            "`callbacks.noising_strip.spacing`."
        )
    return spacing


def choose_steps(process: GaussianProcess, columns: int, spacing: Spacing) -> list[int]:
    """Choose steps of the forward process to show, from the first to the last.

    Args:
        process: The forward process.
        columns: How many steps; a shorter process shows all of its steps.
        spacing: ``"t"`` spreads the steps evenly. ``"log_snr"`` spreads them evenly over the logarithm of the
            signal-to-noise ratio between 20 and -20 dB, where the eye sees a difference. The first and the last step
            are shown in any case.
    """
    last = process.num_timesteps - 1
    columns = min(columns, last + 1)
    if spacing == "t" or columns < 3:
        return [column * last // max(columns - 1, 1) for column in range(columns)]
    decibels = _decibels(process, torch.arange(last + 1)).clamp(-_VISIBLE_DECIBELS, _VISIBLE_DECIBELS)
    wanted = torch.linspace(float(decibels[0]), float(decibels[-1]), columns)
    steps = [0]
    for column in range(1, columns - 1):
        nearest = int((decibels - wanted[column]).abs().argmin())
        steps.append(min(max(nearest, steps[-1] + 1), last - (columns - 1 - column)))  # each step once
    return [*steps, last]


def title_steps(process: GaussianProcess, steps: Sequence[int]) -> list[str]:
    """Name steps and their signal-to-noise ratios.

    Args:
        process: The forward process.
        steps: Zero-based steps.
    """
    decibels = _decibels(process, torch.tensor(steps)).tolist()
    infinite = {torch.inf: "no noise", -torch.inf: "no signal"}
    return [
        f"t = {step}\n{f'{ratio:.0f} dB'.replace('-0 dB', '0 dB') if isfinite(ratio) else infinite[ratio]}"
        for step, ratio in zip(steps, decibels, strict=True)
    ]


def noise_images(process: GaussianProcess, images: Tensor, steps: Sequence[int]) -> Tensor:
    """Noise images to several steps of the forward process.

    Each image keeps one noise at all steps, and gets the same noise in every call.

    Args:
        process: The forward process.
        images: Images in ``[0, 255]``, uint8, shape ``(rows, channels, height, width)``.
        steps: Zero-based steps.

    Returns:
        Noised images on the CPU, float32, shape ``(rows * len(steps), channels, height, width)``, row by row. Those of
        a process that explodes are divided by their standard deviation.
    """
    rows, device = len(images), process.signal.device
    x_0 = scale_images(images.to(device))
    position = torch.arange(rows, device=device)
    noise = normals(key_from(0), Purpose.NOISE, "predict", position, x_0[0].numel()).view(x_0.shape)
    times = (torch.full((rows,), step, device=device) for step in steps)
    # Of an image of variance 1, x_t has this deviation: without it, processes that explode would be black and white.
    deviation = (process.signal.square() + process.sigma.square()).sqrt().clamp(min=1)
    noised = [process.q_sample(x_0, t, noise) / deviation[t].view(-1, 1, 1, 1) for t in times]
    return torch.stack([images.cpu() for images in noised], dim=1).flatten(0, 1)


def _decibels(process: GaussianProcess, t: Tensor) -> Tensor:
    return 10 * process.snr(t.to(process.signal.device)).cpu().log10()


def _to_rgb(image: Tensor) -> Tensor:
    """Return values in ``[0, 1]`` with three channels; what is transparent lies on white."""
    values = ((image.float() + 1) / 2).clamp(0, 1)
    if len(values) == 4:
        return 1 - (1 - values[:3]) * values[3:]
    return values.expand(3, -1, -1)


def _resize(image: Tensor, longest: int, side: int) -> Tensor:
    """Scale an image as another whose longer side is ``longest`` is scaled to ``side`` or a little less."""
    if longest <= side:
        return image.repeat_interleave(side // longest, 1).repeat_interleave(side // longest, 2)
    size = [max(1, round(length * side / longest)) for length in image.shape[1:]]
    return F.interpolate(image[None], size, mode="area")[0]
