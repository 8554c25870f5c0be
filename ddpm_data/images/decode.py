"""Decoding of PIL images into tensors: upright, grey or RGB, transparency over a background, 16 bits by value."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as resize_image

from ddpm_data.images import _simplejpeg
from ddpm_data.images._jpeg_frame import read_jpeg_frame
from ddpm_data.images.levels import EIGHT_BITS, Span, ValueRange, scale_from_levels, scale_to_levels, to_uint8

Size = tuple[int, int]  # height, width
Colour = tuple[int, int, int]  # red, green, blue, in [0, 255]
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # more than 8 bits; PIL's own conversion would clip them
REDUCED_FORMATS = ("JPEG", "MPO")  # that may be decoded at a reduced size, once the orientation is known
UNREADABLE = "cannot be read as an image"  # in the error of every file that is none
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_MAX_ENLARGED_PIXELS = 2**26  # larger requests are refused
_STRIP_PIXELS = 2**18  # converted at once: several copies of a strip take less memory than one of a large image
_BITS_PER_SAMPLE, _COMPRESSION, _SAMPLES_PER_PIXEL, _PLANAR_CONFIGURATION = 258, 259, 277, 284  # a TIFF file's tags
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in PIL


class Orientation(NamedTuple):
    """The two steps that make an image upright.

    Attributes:
        transpose: Whether to swap rows and columns first, since the image is stored on its side.
        flip_axes: Axes of ``(channels, height, width)`` to reverse afterwards.
    """

    transpose: bool
    flip_axes: tuple[int, ...]


_ORIENTATIONS = {  # by the value of EXIF's Orientation tag
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
    """The size that images get, and the way they get it.

    Attributes:
        size: Height and width after cropping, in pixels.
        stretch: True resizes an image to exactly ``size``, whatever its proportions. False keeps its proportions and
            resizes it until it just covers ``size``; the rest is cropped.
    """

    size: Size
    stretch: bool = False

    def target(self, height: int, width: int) -> Size:
        """Compute the size to resize an image to, before it is cropped.

        Args:
            height: The image's height, in pixels.
            width: The image's width, in pixels.

        Returns:
            Height and width, in pixels.

        Raises:
            ValueError: The image would be enlarged to more than ``2**26`` pixels, as happens with an image of one row.
        """
        if self.stretch:
            return self.size
        # In whole numbers: a size computed through a float ratio may come out one pixel short.
        if self.size[0] * width >= self.size[1] * height:
            target = self.size[0], max(self.size[1], width * self.size[0] // height)
        else:
            target = max(self.size[0], height * self.size[1] // width), self.size[1]
        is_enlarged = target[0] > height or target[1] > width
        if is_enlarged and target[0] * target[1] > _MAX_ENLARGED_PIXELS:
            raise ValueError(
                f"the image is {height} x {width} and would be enlarged to {target[0]} x {target[1]} to cover "
                f"image_size={self.size}, which takes too much memory. Remove the image from the dataset, or change "
                "`dataset.resize` to stretch."
            )
        return target

    def transposed(self) -> "ResizeSpec":
        """Return the spec for an image that is stored on its side, with height and width swapped."""
        return self._replace(size=(self.size[1], self.size[0]))


def decode_image(
    image: Image.Image,
    fit: ResizeSpec | None,
    background: Colour,
    channels: int | None = None,
    value_range: ValueRange | None = None,
) -> Tensor:
    """Decode a PIL image into a tensor and turn it upright, as its EXIF orientation says.

    ICC profiles are ignored. Beside what PIL itself takes (4 bytes per pixel in most modes), a large image that is made
    smaller takes less than 1 byte per pixel: it is converted in strips, each of which is resized at once.

    Args:
        image: A PIL image of any mode but LAB. Of an animation the current frame is decoded: the first one, in a file
            just opened.
        fit: The final size of the image. A JPEG that PIL has opened but not decoded is decoded at a
            half, a quarter or an eighth of its own size, if that is still twice the final size, and then resized here.
            Other large images are resized here too.
        background: The colour behind transparent pixels, ``(red, green, blue)`` in ``[0, 255]``.
        channels: The channels that the image will have in the end; ``None`` keeps its own. With 3, a grey image with
            transparency becomes RGB where the background is no grey. With 4, transparency is kept, and only fully
            transparent pixels take the background's colour.
        value_range: The lowest and the highest possible value. ``None`` is 0 to 255, or in modes with more than 8 bits
            what the file declares.

    Returns:
        Shape ``(channels, height, width)``, grey, RGB or, with transparency, RGBA. 8-bit modes are uint8, mode 1 is
        bool. Modes with more than 8 bits are uint8 too, 255 being white; with a ``value_range`` they are floats in its
        units, of that precision. Mode F without one keeps its values.

    Raises:
        OSError: The image cannot be decoded.
        ValueError: The mode is LAB, the image would be enlarged too much, or a value is outside the range.
    """
    orientation = exif_orientation(image)
    if fit is not None and orientation.transpose:
        fit = fit.transposed()  # `fit` describes the upright image, but the decoders see the stored one
    target = None if fit is None else fit.target(image.height, image.width)
    try:
        area = None
        is_whole = target is None or value_range not in (None, EIGHT_BITS)  # values are mapped before they are mixed
        jpeg = None if channels == 4 else _simplejpeg.decode_jpeg(image, None if is_whole else target)
        if jpeg is None:
            if target is not None and not is_whole:
                image, area = _reduce(image, target)
    except MemoryError:
        raise
    except Exception as error:  # of many types, as in load_image
        raise unreadable_error(getattr(image, "filename", "an image"), error) from error
    if jpeg is None:
        load_image(image)
    if image.mode == "LAB":
        raise ValueError(
            "the image is LAB, which PIL cannot convert to RGB. Convert it with PIL.ImageCms, or remove it from the "
            "dataset (`dataset`)."
        )
    if jpeg is not None:
        values, area = jpeg
    elif image.mode in _DEEP_MODES:
        values = _read_deep(image, target, background, channels, value_range)
    else:
        convert = partial(_to_tensor, background=background, channels=channels)
        values = _read_in_strips(image, None if area or is_whole else target, convert)
    if target is not None and area is not None:
        # The last row and column may be a fraction of a pixel, so compute the scale from the area, not from the array.
        scale = _scale_to(target[0], area[1], values.shape[1]), _scale_to(target[1], area[0], values.shape[2])
        values = F.interpolate(values[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
    return _turn(values, orientation)


def _turn(values: Tensor, orientation: Orientation) -> Tensor:
    values = values.transpose(1, 2) if orientation.transpose else values
    return values.flip(orientation.flip_axes) if orientation.flip_axes else values


def _scale_to(target: int, area: float, length: int) -> float:
    """Return the scale ``target / area``, raised by as little as makes ``int(length * scale)`` the target.

    ``98 * (32 / 98)`` is below 32 in floats, and 31 pixels would have to be stretched.
    """
    scale = target / area
    while int(length * scale) < target:
        scale = math.nextafter(scale, math.inf)
    return scale


def read_content(image: Image.Image, background: Colour, channels: int | None) -> Iterator[Tensor]:
    """Read what a decoded image shows, in its own size and before values of more bits are reduced to 8.

    Args:
        image: Decoded at its full size.
        background: As of :func:`decode_image`.
        channels: As of :func:`decode_image`.

    Yields:
        The upright image in the parts of :func:`split_rows`, shape ``(channels, rows, width)``.
    """
    orientation = exif_orientation(image)
    convert = _to_values if image.mode in _DEEP_MODES else partial(_to_tensor, background=background, channels=channels)
    values = map(convert, _split_into_strips(image))
    parts = (to_uint8(part, None) if part.dtype == torch.bool else part for part in values)
    if orientation == _ORIENTATIONS[1]:
        yield from parts
    else:
        yield from split_rows(_turn(torch.cat(list(parts), 1), orientation))


def split_rows(values: Tensor) -> Iterator[Tensor]:
    """Split an image into parts of some rows each, as images are converted; shape ``(channels, rows, width)``."""
    rows = max(1, _STRIP_PIXELS // values.shape[-1])
    for top in range(0, values.shape[-2], rows):
        yield values[..., top : top + rows, :]


def exif_orientation(image: Image.Image) -> Orientation:
    """Read an image's orientation from its EXIF tag; an image without a valid tag is upright.

    An image whose EXIF data are damaged is upright too, since its pixels may be whole. Images of other formats than
    JPEG are decoded first: PIL would decode a PNG to find its tag, and an error of its pixels would be taken for one of
    the tag. PIL turns TIFF files itself when it decodes them, and removes the tag.

    Raises:
        OSError: The image cannot be decoded.
    """
    if image.format not in REDUCED_FORMATS:
        load_image(image)
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # PIL raises many types of error on damaged data
        return _ORIENTATIONS[1]
    return _ORIENTATIONS.get(tag, _ORIENTATIONS[1]) if isinstance(tag, int) else _ORIENTATIONS[1]


def upright_size(image: Image.Image) -> Size:
    """Return the height and width that an image has once :func:`decode_image` has turned it upright.

    Raises:
        OSError: The image cannot be decoded.
    """
    orientation = exif_orientation(image)  # first: PIL turns TIFF files as it decodes them
    return (image.width, image.height) if orientation.transpose else (image.height, image.width)


def is_transparent(image: Image.Image) -> bool:
    """Return whether an image has an alpha channel or a colour that stands for transparency."""
    palette = getattr(image.palette, "mode", "")
    return image.mode in _ALPHA_MODES or "transparency" in image.info or palette.endswith("A")


def unreadable_error(path: object, error: Exception) -> OSError:
    """Make the error to raise for a file whose content cannot be decoded.

    Args:
        path: The file, as the message names it.
        error: The decoder's error.
    """
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    reason = "it is of no format that PIL knows" if isinstance(error, UnidentifiedImageError) else f"{kind}{error}"
    return OSError(f"{path} {UNREADABLE}: {reason}")


def mark_as_own(image: Image.Image) -> Image.Image:
    """Mark an image that only we hold, so that decoding may change it; returns the image."""
    image._ddpm_data_owns_it = True  # type: ignore[attr-defined]  # PIL's images take further attributes
    return image


def mark_as_rgb(image: Image.Image) -> Image.Image:
    """Mark an image that is to have three channels though it may be grey; returns it."""
    image._ddpm_data_is_rgb = True  # type: ignore[attr-defined]  # PIL's images take further attributes
    return image


def is_marked_as_rgb(image: Image.Image) -> bool:
    """Return whether :func:`mark_as_rgb` has marked an image."""
    return hasattr(image, "_ddpm_data_is_rgb")


def _refuse_misread_planes(image: Image.Image) -> None:
    """Refuse TIFF files with a plane per channel where PIL misreads them without a word.

    It takes bytes for values in uncompressed ones of 16 bits, which gives noise, and loses the alpha of grey ones.

    Raises:
        ValueError: The file is one of these.
    """
    tags = getattr(image, "tag_v2", {})
    samples, bits = tags.get(_SAMPLES_PER_PIXEL, 1), max(tags.get(_BITS_PER_SAMPLE, (8,)))
    if tags.get(_PLANAR_CONFIGURATION, 1) != 2 or samples == 1:
        return
    if samples == 2 or (bits > 8 and tags.get(_COMPRESSION, 1) == 1):
        raise ValueError(
            f"the TIFF file stores {samples} channels of {bits} bits in planes (PlanarConfiguration 2), which PIL "
            "misreads. Store the channels of a pixel together (tiffcp -p contig), or remove it from the dataset "
            "(`dataset`)"
        )


def load_image(image: Image.Image) -> None:
    """Have PIL decode an image in place, if it has not been decoded yet.

    An image that has failed once fails again. PIL's second attempt would give what the first one had half decoded.

    Raises:
        OSError: The image cannot be decoded.
    """
    if message := getattr(image, "_ddpm_data_error", None):
        raise OSError(message)
    try:
        _refuse_misread_planes(image)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise many types of error on damaged files, and few name the file
        named_error = unreadable_error(getattr(image, "filename", "an image"), error)
        image._ddpm_data_error = str(named_error)  # type: ignore[attr-defined]  # PIL's images take further attributes
        raise named_error from error


def _reduce(image: Image.Image, target: Size) -> tuple[Image.Image, tuple[float, float] | None]:
    """Ask PIL to decode a JPEG at a reduced scale. This changes an image, so a user's image is copied first.

    Returns:
        The image to decode, and the width and height that it has at the reduced scale; ``None`` at full size.
    """
    least = 2 * target[1], 2 * target[0]  # at less than twice the size the loss would show
    is_undecoded = len(getattr(image, "tile", ())) == 1 and not getattr(image, "decoderconfig", None)
    if image.format not in REDUCED_FORMATS or not is_undecoded or image.tell():
        return image, None
    if min(image.width // least[0], image.height // least[1]) < 2:
        return image, None
    if not hasattr(image, "_ddpm_data_owns_it"):
        image = _copy_undecoded(image)
    frame = read_jpeg_frame(image.fp.getvalue())  # type: ignore[attr-defined]  # an image of ours is one of bytes
    if frame is None or not frame.is_reducible():
        return image, None
    draft = image.draft(None, least)
    return image, None if draft is None else draft[1][2:]


def _copy_undecoded(image: Image.Image) -> Image.Image:
    """Open a second copy of a JPEG. If PIL opened the file by itself, keep its content and close it."""
    file = image.fp  # type: ignore[attr-defined]  # one that is not decoded has a file
    if isinstance(file, BytesIO):
        content = file.getvalue()
    else:
        offset = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(offset)
        if image.format == "JPEG" and getattr(image, "_exclusive_fp", False):
            file.close()
            image.fp = BytesIO(content)  # type: ignore[attr-defined]  # as above
    copy = Image.open(BytesIO(content), formats=["JPEG"])
    copy.filename = getattr(image, "filename", "")  # for error messages
    return copy


def _read_in_strips(image: Image.Image, target: Size | None, convert: Callable[[Image.Image], Tensor]) -> Tensor:
    """Convert a decoded image, and resize it if it is large and only becomes smaller.

    Each strip is resized in width as soon as it is converted, and the whole in height at the end. These are the two
    steps in which any image is resized, so the values are the same.

    Args:
        image: Decoded.
        target: Height and width to resize to; ``None`` keeps the size.
        convert: Makes uint8 of a strip, shape ``(channels, height, width)``; or any dtype where there is no target.
    """
    if image.height <= max(1, _STRIP_PIXELS // image.width):
        return convert(image)
    shrinks = target is not None and target[0] <= image.height and target[1] <= image.width
    values, top = None, 0
    for strip in _split_into_strips(image):
        part = convert(strip)
        if target is not None and shrinks:
            part = _resize(part, (part.shape[1], target[1]))
        if values is None:
            values = part.new_empty(len(part), image.height, part.shape[2])
        values[:, top : top + part.shape[1]] = part
        top += part.shape[1]
    assert values is not None
    return _resize(values, target) if target is not None and shrinks else values


def _split_into_strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows)))


def _resize(image: Tensor, size: Size) -> Tensor:
    """Resize uint8 values, bilinear and antialiased."""
    return cast(Tensor, resize_image(image, list(size), InterpolationMode.BILINEAR, antialias=True))


def _read_deep(
    image: Image.Image, target: Size | None, background: Colour, channels: int | None, value_range: ValueRange | None
) -> Tensor:
    """Read an image of more than 8 bits: as levels, or in the units of a range that is given."""
    known_range = value_range or declared_range(image)
    if known_range is None:
        return _read_in_strips(image, None, _to_values)
    clear_value = image.info.get("transparency")  # 16-bit grey PNG files may have one
    if not isinstance(clear_value, int):
        clear_value = None
    parts = (_to_values(strip).double() for strip in _split_into_strips(image))
    if clear_value is not None:  # which no range has to hold
        parts = (part.masked_fill(part == clear_value, known_range[0]) for part in parts)
    Span.measure(parts).check(known_range, (known_range[1] - known_range[0]) / 510 if image.mode == "F" else 0)

    def convert(strip: Image.Image) -> Tensor:
        values = _to_values(strip)
        levels = scale_to_levels(values, known_range)
        return levels if clear_value is None else _show_through(levels, values == clear_value, background, channels)

    levels = _read_in_strips(image, target, convert)
    return levels if value_range is None else scale_from_levels(levels, value_range)


def declared_range(image: Image.Image) -> ValueRange | None:
    """Return the values that are black and white in an image of more than 8 bits; ``None`` for floats.

    PIL hands out the values of a TIFF file of 12 bits as they are. It scales those of other formats to 16 bits.
    """
    if image.mode == "F":
        return None
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return 0.0, float(2 ** bits[0] - 1 if bits[0] < 16 else 65535)


def peak_value(image: Image.Image) -> float | None:
    """Return the highest value of a decoded image whose file declares 16 bits; ``None`` for any other image."""
    if image.mode not in _DEEP_MODES or declared_range(image) != (0, 65535):
        return None
    return max(float(_to_values(strip).max()) for strip in _split_into_strips(image))


def _to_values(image: Image.Image) -> Tensor:
    array: np.ndarray[Any, Any] = np.array(image)
    return torch.from_numpy(array.astype(np.float32 if image.mode == "F" else np.int32))[None]


def _show_through(levels: Tensor, is_clear: Tensor, background: Colour, channels: int | None) -> Tensor:
    """Let the background show where an image of one channel is transparent."""
    colour = torch.tensor(background, dtype=torch.uint8, device="cpu")[:, None, None]
    if channels == 4:
        colours = torch.where(is_clear, colour, levels)
        return torch.cat([colours, torch.where(is_clear, 0, 255).to(torch.uint8)])
    if channels != 3 or _is_grey(background):
        luma = round(sum(weight * level for weight, level in zip(_LUMA, background, strict=True)))
        colour = torch.tensor(luma, dtype=torch.uint8, device="cpu")
    return torch.where(is_clear, colour, levels)


def _is_grey(colour: Colour) -> bool:
    return len(set(colour)) == 1


def _to_tensor(image: Image.Image, background: Colour, channels: int | None) -> Tensor:
    array = np.array(_convert_mode(image, background, channels))
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def _convert_mode(image: Image.Image, background: Colour, channels: int | None) -> Image.Image:
    """Convert to grey or RGB over the background; with 4 channels to RGBA. Black and white stay as they are."""
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if is_transparent(image):
        # Just converting the mode would show the colours that transparency hides.
        rgba = image.convert("RGBA")
        if channels == 4:
            visible = rgba.getchannel("A").point(lambda level: 255 if level else 0)
            return Image.composite(rgba, Image.new("RGBA", rgba.size, (*background, 0)), visible)
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba)
        mode = "RGB" if channels == 3 and not _is_grey(background) else mode
    elif image.mode == "1":
        return image
    mode = "RGBA" if channels == 4 else mode
    return image if image.mode == mode else image.convert(mode)
