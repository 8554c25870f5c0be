"""How items become images: which values, channels and size."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ddpm_data import checks
from ddpm_data.items import ImageKey, Size, cover, find_image, pixels


class ImagePolicy:
    """How items become uint8 CHW images.

    Args:
        image_key: Place in a tuple, or key in a dict, where an item holds its image; ``None`` takes the only
            image-like value there is.
        image_size: Pixels, one number (a square) or ``(height, width)``: images are resized until they just cover it
            (bilinear, antialiased), then centre-cropped. ``None`` leaves sizes alone.
        value_range: ``(lowest, highest)`` possible value of float and wide-integer images, mapped to 0 and 255 and
            rounded, which loses nothing where the source had 8 bits. uint8 images need none.
        channels: 3 (grey is repeated), 1 (colour becomes luma, ITU-R 601), or ``None``: as they come.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: It has no possible value.
    """

    def __init__(
        self,
        image_key: ImageKey | None = None,
        image_size: int | Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        channels: int | None = None,
    ) -> None:
        self.image_key = image_key
        self.image_size = _size(image_size)
        self.value_range = _range(value_range)
        if channels not in (None, 1, 3) or isinstance(channels, bool):
            raise ValueError(
                f"channels={channels!r}: 1, 3 or null (as they come) is needed. Change `dataset.channels`."
            )
        self.channels = channels

    def __call__(self, item: object) -> Tensor:
        """One item's image, uint8, shape ``(channels, height, width)``.

        Raises:
            TypeError: The item holds no image.
            ValueError: It holds several, or one that the policy cannot convert.
        """
        return self.fit(self.pixels(item))

    def pixels(self, item: object) -> Tensor:
        """The item's image in its own dtype, shape ``(channels, height, width)``; a file may be resized already."""
        return pixels(find_image(item, self.image_key), self.image_size)

    def fit(self, image: Tensor) -> Tensor:
        """The image's values, channels and size as the policy wants them, uint8; or those of a batch of images."""
        return self._resize(self._convert(self._to_uint8(image)))

    def _to_uint8(self, image: Tensor) -> Tensor:
        if image.dtype == torch.bool:
            return image.to(torch.uint8) * 255
        if image.dtype == torch.uint8:
            return image
        values = image.double()
        low, high = float(values.min()), float(values.max())
        if self.value_range is None:
            raise ValueError(no_range(f"the image is {image.dtype} and spans", low, high))
        bottom, top = self.value_range
        half_a_level = (top - bottom) / 510
        if not (low >= bottom - half_a_level and high <= top + half_a_level):  # so that NaN is refused too
            raise ValueError(
                f"values span {low:.4g} to {high:.4g}, outside value_range=({bottom:g}, {top:g}); clipping would "
                "lose them. Change `dataset.value_range`, or mend the image."
            )
        return ((values - bottom) * (255 / (top - bottom))).round_().clamp_(0, 255).to(torch.uint8)

    def _convert(self, image: Tensor) -> Tensor:
        count = image.shape[-3]
        if self.channels in (None, count):
            return image
        if self.channels == 3 and count == 1:
            return image.expand(*image.shape[:-3], 3, -1, -1)
        if self.channels == 1 and count == 3:
            return cast(Tensor, F.rgb_to_grayscale(image))
        raise ValueError(
            f"an image of {count} channels cannot become one of {self.channels} without a guess. "
            "Change `dataset.channels`."
        )

    def _resize(self, image: Tensor) -> Tensor:
        if self.image_size is None or image.shape[-2:] == self.image_size:
            return image
        covering = list(cover(image.shape[-2], image.shape[-1], self.image_size))
        resized = F.resize(image, covering, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return cast(Tensor, F.center_crop(resized, list(self.image_size)))


def no_range(seen: str, low: float, high: float) -> str:
    """What to say of values whose range is not known."""
    ranges = ((0, 1), (-1, 1), (0, 255), (0, 65535))
    likely = next((f", here most likely [{a}, {b}]" for a, b in ranges if a <= low and high <= b), "")
    return (
        f"{seen} {low:.4g} to {high:.4g}. Which values are black and white cannot be known from that, and a wrong "
        f"guess would train on washed-out images. Set `dataset.value_range` to the (lowest, highest) possible value"
        f"{likely}."
    )


def _size(size: int | Sequence[int] | None) -> Size | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"image_size={size!r}: one number or (height, width) is needed. Change `dataset.image_size`.")
    height, width = (checks.whole("DDPMDataModule", "dataset.image_size", side, 1) for side in sides)
    return height, width


def _range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if not isinstance(value_range, Sequence) or isinstance(value_range, str) or len(value_range) != 2:
        raise TypeError(f"value_range={value_range!r}: (lowest, highest) is needed. Change `dataset.value_range`.")
    low, high = (checks.number("DDPMDataModule", "dataset.value_range", value) for value in value_range)
    if low >= high:
        raise ValueError(
            f"value_range=({low:g}, {high:g}): the lowest must be below the highest. Change `dataset.value_range`."
        )
    return low, high
