"""Turn dataset items into latents: the stored values, channels first."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_data.images.decode import Size
from ddpm_data.images.items import find_image
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.latents import Latents
from ddpm_data.types import ItemKey


class LatentProcessor:
    """The :class:`~ddpm_data.images.processor.ItemProcessor` for latents: values stay as stored, channels first.

    Args:
        latents: The settings of the latents; scale, shift and sampling are applied later, on the device.
        image_key: Index into a tuple, or key of a dict, at which an item holds its latent, or the latent's mean.
            ``None`` takes the only image-like value.
    """

    channels_first = True
    image_size: Size | None = None  # latents keep their stored size and channels
    channels: int | None = None
    crop: str = "center"

    def __init__(self, latents: Latents, image_key: ItemKey | None = None) -> None:
        self.std_key = latents.std_key
        self.channels_of = [len(value) for value in (latents.scale, latents.shift) if isinstance(value, tuple)]
        self.stacked = latents.stacked
        self.image_key = image_key

    @classmethod
    def replacing(cls, processor: ImageProcessor, latents: Latents) -> "LatentProcessor":
        """Make the processor for latents that takes the place of one for images.

        Args:
            processor: The image processor, with every option but ``image_key`` at its default.
            latents: The settings of the latents.

        Raises:
            ValueError: Another option is set, which would have no effect on latents.
        """
        options = {name: value for name, value in vars(processor).items() if value != getattr(ImageProcessor(), name)}
        if without_effect := sorted(options.keys() - {"image_key"}):
            raise ValueError(
                f"latents are noised as they are stored, so {', '.join(without_effect)} would change nothing. Leave "
                f"out {', '.join(f'`dataset.{name}`' for name in without_effect)}."
            )
        return cls(latents, processor.image_key)

    def decode(self, item: object) -> Tensor:
        """Read an item's latent.

        Returns:
            Floats, shape ``(channels, height, width)``. If there is a standard deviation, the channels are the mean's,
            then the standard deviation's.

        Raises:
            TypeError: The values are not floats of three dimensions, or the item holds a PIL image.
            ValueError: A standard deviation is negative, or shapes or channel counts do not match.
        """
        return self._decode(item, batched=False)

    def decode_batch(self, batch: object) -> Tensor:
        """Read a batch's latents: as :meth:`decode`, with an axis more."""
        return self._decode(batch, batched=True)

    def _decode(self, item: object, batched: bool) -> Tensor:
        values = _read_values(item, self.image_key, batched)
        if self.std_key is not None:
            std = _read_values(item, self.std_key, batched)
            if std.shape != values.shape:
                raise ValueError(
                    f"the mean has shape {tuple(values.shape)} and the standard deviation {tuple(std.shape)}, but they "
                    "must share a shape. Change `dataset.latents.std_key`."
                )
            values = torch.cat([values, std], dim=-3)
        halves, channels = 2 if self.stacked or self.std_key is not None else 1, values.shape[-3]
        if channels % halves:
            raise ValueError(
                f"the latent has {channels} channels, which cannot be halved into mean and standard deviation. "
                "Change `dataset.latents.stacked`."
            )
        for count in self.channels_of:
            if count * halves != channels:
                raise ValueError(
                    f"the latent has {channels // halves} channels, and {count} numbers to scale or shift them: one "
                    "per channel is needed. Change `dataset.latents`."
                )
        if halves == 2 and values[..., channels // 2 :, :, :].min() < 0:
            raise ValueError(
                "a standard deviation is negative. Is it a logarithm? Then store exp(logvar / 2), or change "
                "`dataset.latents`."
            )
        return values

    def convert(self, image: Tensor, crop_offsets: Tensor | None = None) -> Tensor:
        """Return the same values, with float64 as float32 and float8 as bfloat16, which holds them exactly.

        Args:
            image: Floats, any shape.
            crop_offsets: Ignored: latents are not cropped.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        image = _widen(image)
        image = image.float() if image.dtype == torch.float64 else image
        if not image.isfinite().all():
            raise ValueError(
                f"{int((~image.isfinite()).sum())} of {image.numel()} values are NaN or infinite, and a single one "
                "makes the loss NaN. Repair the latent, or change `dataset`."
            )
        return image

    def check_items(self, name: str, raw: Sequence[Tensor]) -> None:
        """Accept every dataset: :meth:`decode` checks each item."""

    def find_peak(self, item: object) -> None:
        """Return nothing: latents have no white."""


def _read_values(item: object, key: ItemKey | None, batched: bool) -> Tensor:
    value = find_image(item, key, batched)
    if isinstance(value, Image.Image):
        raise TypeError("the item holds a PIL image, but latents are arrays of floats. Change `dataset.latents`.")
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["W", "C"]))
    if not value.is_floating_point() or value.dim() != 3 + batched:
        raise TypeError(
            f"a latent must be floats of shape (channels, height, width), but {'this batch' if batched else 'this'} is "
            f"{value.dtype} of shape {tuple(value.shape)}. Change `dataset.latents` or `dataset.image_key`."
        )
    return _widen(value.detach())


def _widen(values: Tensor) -> Tensor:
    """Return float8 as bfloat16: torch computes nothing in float8."""
    return values.bfloat16() if values.is_floating_point() and values.dtype.itemsize == 1 else values
