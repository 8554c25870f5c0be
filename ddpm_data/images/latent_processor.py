"""How items become latents: as they are, channels first."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_data.images.items import find_image
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.latents import Latents
from ddpm_data.types import ItemKey


class LatentProcessor:
    """How items become latents: as they are, channels first; see :class:`~ddpm_data.images.processor.ItemProcessor`.

    Args:
        latents: What will be made of them.
        image_key: Place in a tuple, or key in a dict, where an item holds its latent, or the latent's mean.
    """

    channels_first = True

    def __init__(self, latents: Latents, image_key: ItemKey | None = None) -> None:
        self.std_key = latents.std_key
        self.channels_of = [len(value) for value in (latents.scale, latents.shift) if isinstance(value, tuple)]
        self.stacked = latents.stacked
        self.image_key = image_key

    @classmethod
    def replacing(cls, processor: ImageProcessor, latents: Latents) -> "LatentProcessor":
        """The processor for latents, where nothing is asked for that only images have.

        Raises:
            ValueError: Something is.
        """
        given = {name: value for name, value in vars(processor).items() if value != getattr(ImageProcessor(), name)}
        if wrong := sorted(given.keys() - {"image_key"}):
            raise ValueError(
                f"latents are noised as they are, so {', '.join(wrong)} would change nothing. Leave out "
                f"{', '.join(f'`dataset.{name}`' for name in wrong)}."
            )
        return cls(latents, processor.image_key)

    def decode(self, item: object) -> Tensor:
        """The item's values, shape ``(channels, height, width)``: the mean's, then the standard deviation's.

        Raises:
            TypeError: They are no floats.
            ValueError: Some are NaN or infinite, a standard deviation is negative, or shapes do not go together.
        """
        values = _values(item, self.image_key)
        if self.std_key is not None:
            std = _values(item, self.std_key)
            if std.shape != values.shape:
                raise ValueError(
                    f"the mean is {tuple(values.shape)} and the standard deviation {tuple(std.shape)}: they must share "
                    "a shape. Change `dataset.latents.std_key`."
                )
            values = torch.cat([values, std])
        halves = 2 if self.stacked or self.std_key is not None else 1
        if len(values) % halves:
            raise ValueError(
                f"{len(values)} channels are no mean and standard deviation of as many channels. Change "
                "`dataset.latents.stacked`."
            )
        for count in self.channels_of:
            if count * halves != len(values):
                raise ValueError(
                    f"the latent has {len(values) // halves} channels, and {count} numbers are given to scale or shift "
                    "them. Change `dataset.latents`."
                )
        if halves == 2 and values[len(values) // 2 :].min() < 0:
            raise ValueError(
                "a standard deviation is negative (is it a logarithm? take exp(logvar / 2)). Change `dataset.latents`."
            )
        return values

    def convert(self, image: Tensor, crop_offsets: Tensor | None = None) -> Tensor:
        """The same values; float64 becomes float32.

        Raises:
            ValueError: Some are NaN or infinite.
        """
        if not image.isfinite().all():
            raise ValueError(f"{int((~image.isfinite()).sum())} of {image.numel()} values are NaN or infinite.")
        return image.float() if image.dtype == torch.float64 else image

    def check_items(self, name: str, raw: Sequence[Tensor]) -> None:
        """Every item has been checked by :meth:`decode`."""


def _values(item: object, key: ItemKey | None) -> Tensor:
    value = find_image(item, key)
    if isinstance(value, Image.Image):
        raise TypeError("the item holds a PIL image, and latents are arrays. Change `dataset.latents`.")
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["W", "C"]))
    if not value.is_floating_point() or value.dim() != 3:
        raise TypeError(
            f"a latent is floats of shape (channels, height, width), and this is {value.dtype} of shape "
            f"{tuple(value.shape)}. Change `dataset.latents`, or `dataset.image_key`."
        )
    return value.detach()
