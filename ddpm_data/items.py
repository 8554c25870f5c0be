"""Any dataset item to the values of the image in it: which part of the item, which axes, which PIL mode."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional as F

ImageKey = int | str
Size = tuple[int, int]  # height, width
Raw = Image.Image | Tensor | np.ndarray[Any, Any]
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # more than 8 bits: PIL's own conversion would clip them


class Turn(NamedTuple):
    """What makes an image upright: rows and columns swapped if it lies on its side, then axes reversed."""

    lies: bool
    axes: tuple[int, ...]


_TURNS = {  # by EXIF's Orientation
    1: Turn(False, ()),
    2: Turn(False, (2,)),
    3: Turn(False, (1, 2)),
    4: Turn(False, (1,)),
    5: Turn(True, ()),
    6: Turn(True, (2,)),
    7: Turn(True, (1, 2)),
    8: Turn(True, (1,)),
}


def find_image(item: object, key: ImageKey | None) -> Raw:
    """The image in a dataset's item: the item itself, or the value at ``key``, or the only image-like value.

    Raises:
        TypeError: There is none.
        ValueError: There are several, or none at ``key``.
    """
    if _is_image(item):
        return item
    values: Mapping[Any, object]
    if isinstance(item, Mapping):
        values = item
    elif isinstance(item, tuple | list):
        values = dict(enumerate(item))
    else:
        raise TypeError(
            f"an item is a {_describe(item)}; a PIL image, a tensor or array of 2 or 3 dimensions, or a tuple or dict "
            "that holds one is needed. Change `dataset`, or wrap it so that it returns the image."
        )
    parts = ", ".join(f"{name!r}: {_describe(value)}" for name, value in values.items())
    if key is not None:
        if key in values and _is_image(value := values[key]):
            return value
        raise ValueError(f"there is no image at {key!r}; the item holds {parts}. Change `dataset.image_key`.")
    found = [value for value in values.values() if _is_image(value)]
    if not found:
        raise TypeError(f"the item holds no image, but {parts}. Change `dataset`, so that an item holds one.")
    if len(found) > 1:
        raise ValueError(f"the item holds several images ({parts}). Say which: `dataset.image_key`.")
    return found[0]


def pixels(image: Raw, size: Size | None = None) -> Tensor:
    """An image's values in their own dtype, shape ``(channels, height, width)``; 8-bit PIL modes become grey or RGB.

    Of an array's or tensor's three axes the channels are the first or the last, whichever is at most 4 long; else the
    shorter; if that leaves a tie, NumPy's images are HWC and torch's CHW, as their libraries have it.

    Args:
        image: The image.
        size: What it will be resized to cover and cropped to. A JPEG file that PIL has opened but not yet decoded is
            then decoded at a half, a quarter or an eighth where twice that size is left, and comes resized.

    Raises:
        OSError: A file cannot be decoded.
        TypeError: The dtype is one torch does not know.
        ValueError: There are no pixels, or they are complex numbers.
    """
    if isinstance(image, Image.Image):
        return _decoded(image, size)
    is_array = isinstance(image, np.ndarray)
    if isinstance(image, np.ndarray):
        # torch takes no read-only arrays, negative strides or foreign byte orders; np.require copies only those.
        image = torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["W", "C"]))
    values = image.detach()
    if values.numel() == 0 or values.is_complex():
        raise ValueError(f"an image has pixels, real numbers; this one is {tuple(values.shape)} of {values.dtype}.")
    if values.dim() == 2:
        return values[None]
    return values.permute(2, 0, 1) if channels_come_last(values.shape, is_array) else values


def channels_come_last(shape: torch.Size, is_array: bool) -> bool:
    """Whether three axes are height, width, channels; see :func:`pixels`."""
    first, last = shape[0] <= 4, shape[-1] <= 4
    if first != last:
        return last
    if not first and shape[0] != shape[-1]:
        return shape[-1] < shape[0]
    return is_array  # NumPy's images are HWC, torch's CHW


def cover(height: int, width: int, size: Size) -> Size:
    """The smallest size of the proportions of ``(height, width)`` that covers ``size``."""
    scale = max(size[0] / height, size[1] / width)
    return max(size[0], int(height * scale)), max(size[1], int(width * scale))


def _decoded(image: Image.Image, size: Size | None) -> Tensor:
    """Upright, opaque (on white) and grey or RGB; deep images keep their values."""
    covering = area = None
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), _TURNS[1])
        if size is not None:  # of the image as it is stored, which may lie on its side
            covering = cover(image.height, image.width, (size[1], size[0]) if turn.lies else size)
            area = _reduce(image, covering)
        image.load()
    except OSError as error:  # PIL's own message for a truncated file names no file
        raise OSError(f"{getattr(image, 'filename', 'an image')} cannot be read as an image: {error}") from error
    values = torch.from_numpy(np.array(_plain(image)))
    values = values[None] if values.dim() == 2 else values.permute(2, 0, 1)
    if covering is not None and area is not None:
        # The last row and column may be no whole ones, so the scale is that of the area, not of the array.
        scale = (covering[0] / area[1], covering[1] / area[0])
        values = F.interpolate(values[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
    values = values.transpose(1, 2) if turn.lies else values
    return values.flip(turn.axes) if turn.axes else values


def _reduce(image: Image.Image, covering: Size) -> tuple[float, float] | None:
    """Have a JPEG not yet decoded be decoded at a reduced size; the width and height that the whole image then has."""
    full = image.size
    drafted = image.draft(None, (2 * covering[1], 2 * covering[0]))  # less than twice, and the difference would show
    return None if drafted is None or image.size == full else drafted[1][2:]


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        # Converting alone would show the colours that transparency hides.
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert(
            "L" if image.mode in ("L", "LA", "1") else "RGB"
        )
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _is_image(value: object) -> TypeGuard[Raw]:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor | np.ndarray) and value.ndim in (2, 3))


def _describe(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, Tensor | np.ndarray):
        return f"{kind} of {value.dtype} and shape {tuple(value.shape)}"
    return f"{kind} {value!r}" if isinstance(value, str | int | float) and len(repr(value)) < 60 else kind
