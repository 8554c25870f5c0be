"""Turn dataset items into uint8 images: value range, channels, resizing and cropping."""

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ddpm_data._checks import check_float, check_int, check_key
from ddpm_data.images.decode import Colour, ResizeSpec, Size, decode_image, is_marked_as_rgb, peak_value
from ddpm_data.images.items import find_image, to_bchw, to_chw
from ddpm_data.images.levels import ValueRange, to_uint8, unknown_range_message
from ddpm_data.types import ItemKey


class ItemProcessor(Protocol):
    """The interface that turns dataset items into what is noised: images or latents.

    Attributes:
        image_key: Index into a tuple, or key of a dict, at which an item holds its image.
        channels_first: Whether an array's channels always come first. If not, its shape decides.
        image_size: Height and width that every image gets; ``None`` keeps its own.
        channels: Number of channels that every image gets; ``None`` keeps its own.
        crop: ``"center"``, or ``"random"`` by the example's position.
    """

    image_key: ItemKey | None
    channels_first: bool
    image_size: Size | None
    channels: int | None
    crop: str

    def decode(self, item: object, /) -> Tensor:
        """Read an item's values as they are stored.

        Args:
            item: What the dataset returned for an index.

        Returns:
            Any dtype, shape ``(channels, height, width)``.
        """
        ...

    def decode_batch(self, batch: object, /) -> Tensor:
        """Read the values of a batch that a DataLoader of the user's own has made.

        Returns:
            Any dtype, shape ``(batch, channels, height, width)``.
        """
        ...

    def convert(self, image: Tensor, crop_offsets: Tensor | None = None, /) -> Tensor:
        """Convert decoded values, of one item or of a batch, to the range, channels and size asked for.

        Args:
            image: From :meth:`decode`, shape ``(..., channels, height, width)``.
            crop_offsets: Where to crop each image, int64 in ``[0, 2**32)``, shape ``(..., 2)``; ``None`` crops the
                centre.
        """
        ...

    def check_items(self, name: str, raw: Sequence[Tensor], /) -> None:
        """Refuse a dataset because of the values of some of its items.

        Args:
            name: The split's name, for the message.
            raw: Values of several items, from :meth:`decode`.
        """
        ...

    def find_peak(self, item: object, /) -> float | None:
        """Return the highest value of a decoded item whose white is assumed; ``None`` where white is known.

        Args:
            item: An item that :meth:`decode` has read.
        """
        ...


class ImageProcessor:
    """A callable that turns dataset items into uint8 images, shape ``(channels, height, width)``.

    Image files come out as their authors meant them to look:

    - They are turned upright, as their EXIF tag says.
    - The first frame of an animation is taken.
    - Transparent pixels show the background.
    - 16-bit grey values, 0 to 65535, are scaled to 8 bits; in a TIFF file that declares 12 bits, 0 to 4095.

    ICC profiles are ignored.

    Args:
        image_key: Index into a tuple, or key of a dict, at which an item holds its image; ``None`` takes the only
            image-like value.
        image_size: Size of the result in pixels, one number (a square) or ``(height, width)``; ``None`` keeps every
            image's own size.
        value_range: ``(lowest, highest)`` possible value of all images, such as ``(0, 1)`` for masks of zeros and ones.
            They are mapped to 0 and 255 and rounded, which loses nothing if the source had 8 bits. It must lie inside
            ``[0, 255]`` for uint8 arrays and 8-bit files. ``None`` maps uint8 as it is, and grey files of more bits by
            the bits that they declare; floats and wide integers need a range. Booleans and PIL's mode 1 are black and
            white whatever the range.
        channels: 3 (grey is repeated), 1 (colour becomes luma, ITU-R 601), 4 (with transparency: 255 is opaque), or
            ``None``, which keeps every image's own channels (PIL images become grey or RGB).
        resize: ``"cover"`` keeps proportions: the image is resized until it just covers ``image_size``, then cropped.
            ``"stretch"`` resizes to exactly ``image_size``. Both are bilinear and antialiased.
        crop: ``"center"`` or ``"random"``. A random crop applies to training only, and follows from the example's
            position in the stream.
        background: The colour behind transparent pixels of PIL images, by name or as ``(red, green, blue)`` in
            ``[0, 255]``. Colours hidden under transparency never show.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has an impossible value.
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
        self.image_key = check_key("dataset.image_key", image_key)
        self.image_size = _check_size(image_size)
        self.value_range = check_range(value_range)
        if channels not in (None, 1, 3, 4) or isinstance(channels, bool):
            raise ValueError(
                f"channels={channels!r}: it must be 1, 3, 4 or null (which keeps the images' own). Change "
                "`dataset.channels`."
            )
        self.channels = None if channels is None else int(channels)
        self.resize = _check_choice("resize", resize, ("cover", "stretch"))
        self.crop = _check_choice("crop", crop, ("center", "random"))
        if self.crop == "random" and (self.image_size is None or self.resize == "stretch"):
            raise ValueError(
                "crop='random': there is nothing to crop without image_size, or after stretching to it. Change "
                "`dataset.crop`, `dataset.image_size` or `dataset.resize`."
            )
        self.background = _check_colour(background)

    def __call__(self, item: object) -> Tensor:
        """Turn one item into its image, with a centre crop.

        Args:
            item: What the dataset returned for an index: an image, or a tuple or dict that holds one.

        Returns:
            uint8, shape ``(channels, height, width)``.

        Raises:
            OSError: A file cannot be decoded.
            TypeError: The item holds no image.
            ValueError: The item holds several images, or one that cannot be converted.
        """
        return self.convert(self.decode(item))

    def decode(self, item: object) -> Tensor:
        """Read an item's image in its own dtype.

        Returns:
            Any dtype, shape ``(channels, height, width)``. An image file may already have its final size before
            cropping.
        """
        image = find_image(item, self.image_key)
        if not isinstance(image, Image.Image):
            return to_chw(image)
        is_rgb = self.channels is None and is_marked_as_rgb(image)
        channels = 3 if is_rgb else self.channels
        values = decode_image(image, self._resize_spec(), self.background, channels, self.value_range)
        return values.expand(3, -1, -1) if is_rgb and len(values) == 1 else values

    def decode_batch(self, batch: object) -> Tensor:
        """Read a batch's images in their own dtype.

        Returns:
            Any dtype, shape ``(batch, channels, height, width)``.
        """
        images = find_image(batch, self.image_key, batched=True)
        assert isinstance(images, Tensor | np.ndarray)
        return to_bchw(images)

    def convert(self, image: Tensor, crop_offsets: Tensor | None = None) -> Tensor:
        """Convert an image, or a batch of images, to the value range, channels and size asked for.

        Args:
            image: Any dtype, shape ``(..., channels, height, width)``.
            crop_offsets: Where to crop each image, int64 in ``[0, 2**32)``, shape ``(..., 2)``: the offsets from the
                top and from the left, as fractions of the free space times ``2**32``. ``None`` crops the centre.

        Returns:
            uint8, shape ``(..., channels, height, width)`` with the new channels and size.

        Raises:
            ValueError: A value lies outside ``value_range``, a range is missing, or the channels cannot be converted.
        """
        return self._resize(self.convert_channels(to_uint8(image, self.value_range)), crop_offsets)

    def check_items(self, name: str, raw: Sequence[Tensor]) -> None:
        """Refuse a dataset whose black and white values cannot be known.

        Args:
            name: The split's name, for the message.
            raw: Images of several items, from :meth:`decode`. The message gives the values that they span together.

        Raises:
            ValueError: Most images are neither uint8 nor bool, and there is no ``value_range``.
        """
        wide = [image for image in raw if image.dtype not in (torch.uint8, torch.bool)]
        if self.value_range is None and 2 * len(wide) > len(raw):  # a few among many count as bad items
            low = min(float(image.double().min()) for image in wide)
            high = max(float(image.double().max()) for image in wide)
            raise ValueError(
                unknown_range_message(
                    f"{name} holds {wide[0].dtype} images, and the {len(wide)} looked at span", low, high
                )
            )

    def find_peak(self, item: object) -> float | None:
        """Return the highest value of an image file that declares 16 bits; ``None`` for others, or with a range."""
        image = find_image(item, self.image_key)
        return peak_value(image) if self.value_range is None and isinstance(image, Image.Image) else None

    def _resize_spec(self) -> ResizeSpec | None:
        return None if self.image_size is None else ResizeSpec(self.image_size, self.resize == "stretch")

    def convert_channels(self, image: Tensor) -> Tensor:
        """Convert an image, or a batch of images, to the number of channels asked for.

        Args:
            image: uint8, shape ``(..., channels, height, width)``.

        Raises:
            ValueError: There is no conversion without a guess.
        """
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
            f"an image of {count} channels cannot become one of {self.channels} channels without a guess. "
            "Change `dataset.channels`."
        )

    def _resize(self, image: Tensor, crop_offsets: Tensor | None) -> Tensor:
        if self.image_size is None or image.shape[-2:] == self.image_size:
            return image
        target = ResizeSpec(self.image_size, self.resize == "stretch").target(image.shape[-2], image.shape[-1])
        return resize_and_crop(image, target, self.image_size, crop_offsets)


def resize_and_crop(
    image: Tensor, target: Size, size: Size, crop_offsets: Tensor | None, is_nearest: bool = False
) -> Tensor:
    """Resize an image, or a batch of images, and crop it.

    Args:
        image: uint8, shape ``(..., channels, height, width)``.
        target: Height and width before cropping.
        size: Height and width of the result.
        crop_offsets: As :meth:`ImageProcessor.convert` takes them; ``None`` crops the centre.
        is_nearest: Whether each pixel keeps a value of the image's, in place of the antialiased bilinear one.

    Returns:
        uint8, shape ``(..., channels, *size)``.
    """
    height, width = size
    resized: Tensor = image
    if image.shape[-2:] != target:  # an image file may have been decoded to this size
        # Plain NEAREST takes pixels half a pixel aside, and the map would not lie on its image.
        mode = InterpolationMode.NEAREST_EXACT if is_nearest else InterpolationMode.BILINEAR
        resized = F.resize(image, list(target), interpolation=mode, antialias=not is_nearest)
    if crop_offsets is None:
        top, left = round((target[0] - height) / 2), round((target[1] - width) / 2)  # as torchvision's center_crop
        return resized[..., top : top + height, left : left + width]
    free_space = torch.tensor([target[0] - height + 1, target[1] - width + 1], device="cpu")
    corners = (crop_offsets * free_space) >> 32
    if image.dim() == 3:
        top, left = corners.tolist()
        return resized[:, top : top + height, left : left + width]
    pairs = zip(resized, corners.tolist(), strict=True)
    return torch.stack([picture[:, top : top + height, left : left + width] for picture, (top, left) in pairs])


def _check_size(size: int | Sequence[int] | None) -> Size | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"image_size={size!r}: expected one number or (height, width). Change `dataset.image_size`.")
    height, width = (check_int("DDPMDataModule", "dataset.image_size", side, 1) for side in sides)
    return height, width


def check_range(value_range: Sequence[float] | None, key: str = "dataset.value_range") -> ValueRange | None:
    """Return a value range as two floats, or refuse it.

    Args:
        value_range: ``(lowest, highest)``; ``None`` stays ``None``.
        key: The config key that sets it.

    Raises:
        TypeError: It is no pair of numbers.
        ValueError: The lowest is not below the highest.
    """
    if value_range is None:
        return None
    if not isinstance(value_range, Sequence) or isinstance(value_range, str) or len(value_range) != 2:
        raise TypeError(f"value_range={value_range!r}: expected (lowest, highest). Change `{key}`.")
    low, high = (check_float("DDPMDataModule", key, value) for value in value_range)
    if low >= high:
        raise ValueError(f"value_range=({low:g}, {high:g}): the lowest must be below the highest. Change `{key}`.")
    return low, high


def _check_choice(name: str, value: str, choices: tuple[str, str]) -> str:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected {' or '.join(map(repr, choices))}. Change `dataset.{name}`.")
    return value


def _check_colour(background: str | Sequence[int]) -> Colour:
    message = (
        f"background={background!r}: expected a colour's name or (red, green, blue), whole numbers in [0, 255]. Change "
        "`dataset.background`."
    )
    try:
        if isinstance(background, str):
            levels: Sequence[int] = ImageColor.getrgb(background)  # four levels for a colour that is transparent itself
        else:
            levels = [check_int("DDPMDataModule", "dataset.background", level, 0) for level in background]
        red, green, blue = levels
    except (TypeError, ValueError) as error:
        raise type(error)(message) from error
    if max(red, green, blue) > 255:
        raise ValueError(message)
    return red, green, blue


Policy, ImagePolicy = ItemProcessor, ImageProcessor  # their names before 0.1, kept for 0.1
