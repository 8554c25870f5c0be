"""Pictures of images: noised step by step, generated beside real, and in grids."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.plots._axes import DPI, Axes, Figure, noise_images, show_rows, to_plot_array


def noising_strip(process: GaussianProcess, images: Tensor, path: Path, columns: int = 10) -> None:
    """Draw images being noised, one per row, at steps spread evenly over the forward process.

    Each row has one noise, which grows from left to right.

    Args:
        process: The forward process to show.
        images: Images in ``[0, 255]``, uint8, shape ``(rows, channels, height, width)``.
        path: The PNG file to write.
        columns: How many steps: 0, T/columns, 2T/columns, ...
    """
    steps = sorted({column * process.num_timesteps // columns for column in range(columns)})
    rows = noise_images(process, images, steps)
    figure = Figure(figsize=(len(steps), len(rows) * images.shape[2] / images.shape[3] + 0.3), layout="constrained")
    show_rows(figure.subplots(), rows, [f"t = {step}" for step in steps])
    figure.savefig(path, dpi=DPI)


def samples_beside(samples: Tensor, real: Tensor, path: Path) -> None:
    """Draw a square of generated images beside a square of real images.

    Args:
        samples: Generated images in ``[-1, 1]``, float, shape ``(count, channels, height, width)``.
        real: Real images in ``[0, 255]``, uint8, shape ``(count, channels, height, width)``.
        path: The PNG file to write.
    """
    height = 6 / _mosaic(real).shape[2] * _mosaic(real).shape[1]
    figure = Figure(figsize=(12.4, height + 0.5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]  # "constrained" has one that takes it
    sides: Sequence[tuple[str, Tensor]] = (("Samples", samples), ("Real images", scale_images(real)))
    for axes, (title, images) in zip(figure.subplots(1, 2), sides, strict=True):
        _show_image(axes, _mosaic(images.cpu()))
        axes.set_title(title, fontsize=13)
    figure.savefig(path, dpi=DPI)


def image_grids(grids: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Draw squares of images side by side, each under its title.

    Images of one square may differ in size; the smaller ones are framed in white.

    Args:
        grids: Images by title: values in ``[0, 255]``, uint8, shape ``(channels, height, width)`` with 1, 3 or 4
            channels.
        path: The PNG file to write.
    """
    mosaics = {title: _mosaic(_pad_to_largest(images)) for title, images in grids.items()}
    height = max(6 / mosaic.shape[2] * mosaic.shape[1] for mosaic in mosaics.values())
    figure = Figure(figsize=(6.2 * len(mosaics), height + 0.7), layout="constrained")
    for axes, (title, mosaic) in zip(figure.subplots(1, len(mosaics), squeeze=False)[0], mosaics.items(), strict=True):
        _show_image(axes, mosaic)
        axes.set_title(title, fontsize=11)
    figure.savefig(path, dpi=DPI)


def _pad_to_largest(images: Sequence[Tensor]) -> Tensor:
    """Stack images on white, in the largest size, and scale them to ``[-1, 1]``."""
    channels, height, width = (max(image.shape[axis] for image in images) for axis in range(3))
    canvases = torch.full((len(images), channels, height, width), 255, dtype=torch.uint8)
    for canvas, image in zip(canvases, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image  # a grey image fills every channel
    return scale_images(canvases)


def _mosaic(images: Tensor) -> Tensor:
    """Join images ``(count, channels, h, w)`` into one that is nearly square, with white lines between them."""
    side = -(-len(images) // max(1, int(len(images) ** 0.5)))
    rows = -(-len(images) // side)
    channels, height, width = images.shape[1:]
    canvas = images.new_ones(channels, rows * (height + 1) - 1, side * (width + 1) - 1)
    for index, image in enumerate(images):
        top, left = index // side * (height + 1), index % side * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def _show_image(axes: Axes, image: Tensor) -> None:
    axes.imshow(to_plot_array(image), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
