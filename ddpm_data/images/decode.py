"""PIL images of any mode to tensors: upright, transparency on a background, grey or RGB, deep ones by value."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from ddpm_data.images import _simplejpeg

Size = tuple[int, int]  # height, width
Colour = tuple[int, int, int]  # red, green, blue, in [0, 255]
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # more than 8 bits: PIL's own conversion would clip them
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_MOST_PIXELS = 2**26  # that an image is enlarged to
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's


class Orientation(NamedTuple):
    """What makes an image upright: rows and columns swapped if it lies on its side, then axes reversed."""

    transpose: bool
    flip_axes: tuple[int, ...]


_TURNS = {  # by EXIF's Orientation
    1: Orientation(False, ()),
    2: Orientation(False, (2,)),
    3: Orientation(False, (1, 2)),
    4: Orientation(False, (1,)),
    5: Orientation(True, ()),
    6: Orientation(True, (2,)),
    7: Orientation(True, (1, 2)),
    8: Orientation(True, (1,)),
}


class ResizeSpec(NamedTuple):
    """How an image comes to the size that is asked for.

    Attributes:
        size: That size.
        stretch: Whether it is resized to just that, whatever its proportions; else until it covers it.
    """

    size: Size
    stretch: bool = False

    def target(self, height: int, width: int) -> Size:
        """The size that an image is resized to, before it is cropped.

        Raises:
            ValueError: It would be enlarged beyond reason, as one of a single row is.
        """
        if self.stretch:
            return self.size
        scale = max(self.size[0] / height, self.size[1] / width)
        target = max(self.size[0], int(height * scale)), max(self.size[1], int(width * scale))
        if scale > 1 and target[0] * target[1] > _MOST_PIXELS:
            raise ValueError(
                f"the image is {height} x {width} and would be enlarged to {target[0]} x {target[1]} to cover "
                f"image_size={self.size}. Leave it out, or change `dataset.resize` to stretch."
            )
        return target

    def transposed(self) -> "ResizeSpec":
        """The same for an image that lies on its side."""
        return self._replace(size=(self.size[1], self.size[0]))


def decode_image(image: Image.Image, fit: ResizeSpec | None, background: Colour, alpha: bool) -> Tensor:
    """A PIL image's values, shape ``(channels, height, width)``, the way up that its EXIF tag says; ICC is ignored.

    Args:
        image: Of any mode but LAB. Of an animation it is the frame that is shown, in a file just opened the first.
        fit: What will become of its size. A JPEG file that PIL has opened but not yet decoded is decoded at a half, a
            quarter or an eighth where twice that size is left, and comes resized.
        background: What transparent pixels are shown on.
        alpha: Whether to keep transparency instead, as a fourth channel; only pixels that show nothing at all then
            take the background's colour.

    Returns:
        uint8, grey or RGB (RGBA with ``alpha``); of modes with more than 8 bits the values as they are: int32 of the
        modes I and I;16, float32 of F.

    Raises:
        OSError: A file cannot be decoded.
        ValueError: The mode is LAB.
    """
    try:
        if image.format == "TIFF":
            image.load()
        orientation = exif_orientation(image)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files; few name the file
        raise unreadable_error(getattr(image, "filename", "an image"), error) from error
    if fit is not None and orientation.transpose:
        fit = fit.transposed()  # the image as it is stored
    target = None if fit is None else fit.target(image.height, image.width)
    try:
        area = None
        found = None if alpha else _simplejpeg.decode_jpeg(image, target)
        if found is None:
            area = None if target is None else _reduce(image, target)
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise unreadable_error(getattr(image, "filename", "an image"), error) from error
    values, area = found or (_values(image, background, alpha), area)
    if target is not None and area is not None:
        # The last row and column may be no whole ones, so the scale is that of the area, not of the array.
        scale = (target[0] / area[1], target[1] / area[0])
        values = F.interpolate(values[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
    values = values.transpose(1, 2) if orientation.transpose else values
    return values.flip(orientation.flip_axes) if orientation.flip_axes else values


def exif_orientation(image: Image.Image) -> Orientation:
    """What its EXIF tag says; PIL turns TIFF files itself when it loads them, and takes the tag away."""
    return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), _TURNS[1])


def is_transparent(image: Image.Image) -> bool:
    """Whether it has an alpha channel, or a colour that stands for transparency."""
    palette = getattr(image.palette, "mode", "")
    return "A" in image.getbands() or "transparency" in image.info or palette.endswith("A")


def unreadable_error(path: object, error: Exception) -> OSError:
    """What to raise of a file whose content is at fault."""
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    what = "it is of no format that PIL knows" if isinstance(error, UnidentifiedImageError) else f"{kind}{error}"
    return OSError(f"{path} cannot be read as an image: {what}")


def _reduce(image: Image.Image, target: Size) -> tuple[float, float] | None:
    """Have a JPEG not yet decoded be decoded at a reduced size; the width and height that the whole image then has."""
    full = image.size
    drafted = image.draft(None, (2 * target[1], 2 * target[0]))  # less than twice, and the difference would show
    return None if drafted is None or image.size == full else drafted[1][2:]


def _values(image: Image.Image, background: Colour, alpha: bool) -> Tensor:
    if image.mode in _DEEP_MODES:
        return _deep(image, background, alpha)
    array = np.array(_opaque(image, background, alpha))
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def _deep(image: Image.Image, background: Colour, alpha: bool) -> Tensor:
    array: np.ndarray[Any, Any] = np.array(image)
    values = torch.from_numpy(array.astype(np.float32 if image.mode == "F" else np.int32))[None]
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):  # grey PNG files of 16 bits may name one
        clear = values == hidden
        shown = round(sum(share * level for share, level in zip(_LUMA, background, strict=True)) * 257)
        values = torch.where(clear, shown, values)
        if alpha:
            values = torch.cat([values, values, values, torch.where(clear, 0, 65535).to(values.dtype)])
    return values


def _opaque(image: Image.Image, background: Colour, alpha: bool) -> Image.Image:
    """Grey or RGB, with nothing transparent but where a fourth channel is to say so."""
    if image.mode == "LAB":
        raise ValueError("the image is LAB, which PIL does not convert. Convert it (PIL.ImageCms), or leave it out.")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if is_transparent(image):
        # Converting alone would show the colours that transparency hides.
        clear = image.convert("RGBA")
        if alpha:
            shows = clear.getchannel("A").point(lambda level: 255 if level else 0)
            return Image.composite(clear, Image.new("RGBA", clear.size, (*background, 0)), shows)
        image = Image.alpha_composite(Image.new("RGBA", clear.size, (*background, 255)), clear)
    mode = "RGBA" if alpha else mode
    return image if image.mode == mode else image.convert(mode)
