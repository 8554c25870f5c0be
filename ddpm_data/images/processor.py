"""How items become images: which values, channels and size."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from PIL import Image, ImageColor
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ddpm_data._checks import check_float, check_int
from ddpm_data.images.decode import Colour, ResizeSpec, Size, decode_image
from ddpm_data.images.items import find_image, to_chw
from ddpm_data.types import ItemKey

_DEEP = (0.0, 65535.0)  # the range of PIL's integer modes of more than 8 bits, which files of 16 bits come in


class ItemProcessor(Protocol):
    """How items become what is noised: images, or latents."""

    image_key: ItemKey | None
    channels_first: bool  # whether an array's channels come first; else its shape is looked at

    def decode(self, item: object, /) -> Tensor:
        """The item's values as they are, shape ``(channels, height, width)``."""
        ...

    def convert(self, image: Tensor, crop_offsets: Tensor | None = None, /) -> Tensor:
        """Those values as they are wanted; or those of a batch."""
        ...

    def check_items(self, name: str, raw: Sequence[Tensor], /) -> None:
        """Refuse a dataset by the values of some of its items."""
        ...


class ImageProcessor:
    """How items become uint8 CHW images.

    Files are taken as they are meant to look: turned by their EXIF tag, an animation's first frame, what is transparent
    on a background, 16-bit grey by value (0 to 65535); ICC profiles are ignored.

    Args:
        image_key: Place in a tuple, or key in a dict, where an item holds its image; ``None`` takes the only
            image-like value there is.
        image_size: Pixels, one number (a square) or ``(height, width)``; ``None`` leaves sizes alone.
        value_range: ``(lowest, highest)`` possible value of float and wide-integer images, mapped to 0 and 255 and
            rounded, which loses nothing where the source had 8 bits. uint8 images need none.
        channels: 3 (grey is repeated), 1 (colour becomes luma, ITU-R 601), 4 (with transparency: 255 is opaque), or
            ``None``: as they come, PIL's grey or RGB.
        resize: ``"cover"``: until the image just covers ``image_size``, then it is cropped; ``"stretch"``: to
            ``image_size`` whatever its proportions. Both bilinear, antialiased.
        crop: ``"center"``, or ``"random"``: in training, where the example's place in the stream has it.
        background: What transparent PIL images are shown on, a colour's name or ``(red, green, blue)`` in
            ``[0, 255]``, so that the colours hidden under transparency never show.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: It has no possible value.
    """

    channels_first = False

    def __init__(
        self,
        image_key: ItemKey | None = None,
        image_size: int | Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        channels: int | None = None,
        resize: str = "cover",
        crop: str = "center",
        background: str | Sequence[int] = "white",
    ) -> None:
        self.image_key = image_key
        self.image_size = _size(image_size)
        self.value_range = _range(value_range)
        if channels not in (None, 1, 3, 4) or isinstance(channels, bool):
            raise ValueError(
                f"channels={channels!r}: 1, 3, 4 or null (as they come) is needed. Change `dataset.channels`."
            )
        self.channels = channels
        self.resize = _choice("resize", resize, ("cover", "stretch"))
        self.crop = _choice("crop", crop, ("center", "random"))
        if self.crop == "random" and (self.image_size is None or self.resize == "stretch"):
            raise ValueError(
                "crop='random': nothing is left to crop without an image_size, or after stretching to it. Change "
                "`dataset.crop`, `dataset.image_size` or `dataset.resize`."
            )
        self.background = _colour(background)

    def __call__(self, item: object) -> Tensor:
        """One item's image, uint8, shape ``(channels, height, width)``.

        Raises:
            OSError: A file cannot be decoded.
            TypeError: The item holds no image.
            ValueError: It holds several, or one that the processor cannot convert.
        """
        return self.convert(self.decode(item))

    def decode(self, item: object) -> Tensor:
        """The item's image in its own dtype, shape ``(channels, height, width)``; a file may be resized already."""
        image = find_image(item, self.image_key)
        if not isinstance(image, Image.Image):
            return to_chw(image)
        values = decode_image(image, self._resize_spec(), self.background, self.channels == 4)
        return _to_uint8(values, self.value_range or _DEEP) if values.dtype == torch.int32 else values

    def convert(self, image: Tensor, crop_offsets: Tensor | None = None) -> Tensor:
        """The image's values, channels and size as the processor wants them, uint8; or those of a batch of images.

        Args:
            image: Of any dtype, shape ``(..., channels, height, width)``.
            crop_offsets: Where to crop each, int64 in ``[0, 2**32)``, shape ``(..., 2)``: the offsets from the top
                and from the left, as fractions of the free space times ``2**32``; ``None`` crops the centre.
        """
        return self._resize(self._convert_channels(_to_uint8(image, self.value_range)), crop_offsets)

    def check_items(self, name: str, raw: Sequence[Tensor]) -> None:
        """Refuse images whose black and white cannot be known; :func:`unknown_range_message` of all of them together.

        Raises:
            ValueError: They are neither bytes nor booleans, and there is no ``value_range``.
        """
        wide = [image for image in raw if image.dtype not in (torch.uint8, torch.bool)]
        if self.value_range is None and 2 * len(wide) > len(raw):  # a few among many are bad items
            low = min(float(image.double().min()) for image in wide)
            high = max(float(image.double().max()) for image in wide)
            raise ValueError(
                unknown_range_message(
                    f"{name} holds {wide[0].dtype} images, and the {len(wide)} looked at span", low, high
                )
            )

    def _resize_spec(self) -> ResizeSpec | None:
        return None if self.image_size is None else ResizeSpec(self.image_size, self.resize == "stretch")

    def _convert_channels(self, image: Tensor) -> Tensor:
        count = image.shape[-3]
        if self.channels in (None, count):
            return image
        if self.channels == 1 and count == 3:
            return cast(Tensor, F.rgb_to_grayscale(image))
        if self.channels in (3, 4) and count in (1, 3):
            colour = image.expand(*image.shape[:-3], 3, -1, -1)
            return (
                colour if self.channels == 3 else torch.cat([colour, torch.full_like(colour[..., :1, :, :], 255)], -3)
            )
        raise ValueError(
            f"an image of {count} channels cannot become one of {self.channels} without a guess. "
            "Change `dataset.channels`."
        )

    def _resize(self, image: Tensor, crop_offsets: Tensor | None) -> Tensor:
        if self.image_size is None or image.shape[-2:] == self.image_size:
            return image
        height, width = self.image_size
        target = ResizeSpec(self.image_size, self.resize == "stretch").target(image.shape[-2], image.shape[-1])
        resized: Tensor = image
        if image.shape[-2:] != target:  # a file may be decoded at this size
            resized = F.resize(image, list(target), interpolation=InterpolationMode.BILINEAR, antialias=True)
        if crop_offsets is None:
            top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)  # as torchvision's center_crop
            return resized[..., top : top + height, left : left + width]
        room = torch.tensor([target[0] - height + 1, target[1] - width + 1])
        corners = (crop_offsets * room) >> 32
        if image.dim() == 3:
            top, left = corners.tolist()
            return resized[:, top : top + height, left : left + width]
        crops = zip(resized, corners.tolist(), strict=True)
        return torch.stack([one[:, top : top + height, left : left + width] for one, (top, left) in crops])


def unknown_range_message(seen: str, low: float, high: float) -> str:
    """What to say of values whose range is not known."""
    ranges = ((0, 1), (-1, 1), (0, 255), (0, 65535))
    likely = next((f", here most likely [{a}, {b}]" for a, b in ranges if a <= low and high <= b), "")
    return (
        f"{seen} {low:.6g} to {high:.6g}. Which values are black and white cannot be known from that, and a wrong "
        f"guess would train on washed-out images. Set `dataset.value_range` to the (lowest, highest) possible value"
        f"{likely}."
    )


def _to_uint8(image: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.dtype == torch.uint8:
        return image
    values = image.double()
    low, high = float(values.min()), float(values.max())
    if value_range is None:
        raise ValueError(unknown_range_message(f"the image is {image.dtype} and spans", low, high))
    bottom, top = value_range
    slack = (top - bottom) / 510 if image.is_floating_point() else 0  # half a level, which rounding may have left
    if not (low >= bottom - slack and high <= top + slack):  # so that NaN is refused too
        lost = int((~values.isfinite()).sum())
        raise ValueError(
            f"values span {low:.6g} to {high:.6g}{f', {lost} of them NaN or infinite' * bool(lost)}, outside "
            f"value_range=({bottom:g}, {top:g}); clipping would lose them. Change `dataset.value_range`, or mend the "
            "image."
        )
    return ((values - bottom) * (255 / (top - bottom))).round_().clamp_(0, 255).to(torch.uint8)


def _size(size: int | Sequence[int] | None) -> Size | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"image_size={size!r}: one number or (height, width) is needed. Change `dataset.image_size`.")
    height, width = (check_int("DDPMDataModule", "dataset.image_size", side, 1) for side in sides)
    return height, width


def _range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    if value_range is None:
        return None
    if not isinstance(value_range, Sequence) or isinstance(value_range, str) or len(value_range) != 2:
        raise TypeError(f"value_range={value_range!r}: (lowest, highest) is needed. Change `dataset.value_range`.")
    low, high = (check_float("DDPMDataModule", "dataset.value_range", value) for value in value_range)
    if low >= high:
        raise ValueError(
            f"value_range=({low:g}, {high:g}): the lowest must be below the highest. Change `dataset.value_range`."
        )
    return low, high


def _choice(name: str, value: str, choices: tuple[str, str]) -> str:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: {' or '.join(map(repr, choices))} is needed. Change `dataset.{name}`.")
    return value


def _colour(background: str | Sequence[int]) -> Colour:
    wrong = f"background={background!r}: a colour's name or (red, green, blue), whole numbers in [0, 255], is needed. "
    try:
        if isinstance(background, str):
            levels: Sequence[int] = ImageColor.getrgb(background)  # four, where transparency of its own is named
        else:
            levels = [check_int("DDPMDataModule", "dataset.background", level, 0) for level in background]
        red, green, blue = levels
    except (TypeError, ValueError) as error:
        raise type(error)(f"{wrong}Change `dataset.background`.") from error
    if max(red, green, blue) > 255:
        raise ValueError(f"{wrong}Change `dataset.background`.")
    return red, green, blue


Policy, ImagePolicy = ItemProcessor, ImageProcessor  # their names before 0.1, kept for 0.1
