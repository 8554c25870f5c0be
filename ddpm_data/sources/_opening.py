"""An image file's bytes to a PIL image that is not decoded yet; the formats that are read, and those that are not."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ddpm_data.images.decode import mark_as_own, unreadable_error

# An EPS file is a program, and PIL would run it in Ghostscript. PIL alone decodes none of the other formats.
_EXCLUDED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


def list_suffixes() -> set[str]:
    """List the suffixes of files that are read as images, in lower case, with their dots."""
    formats = _list_formats()
    extensions = Image.registered_extensions().items()
    return {suffix for suffix, format_ in extensions if format_ in formats or format_ == "MPO"}


def open_image_file(path: Path) -> Image.Image:
    """Open an image file without decoding it.

    Returns:
        See :func:`open_image`.

    Raises:
        OSError: It cannot be read, or is no image that is read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable_error(path, error) from error
    return open_image(content, path.suffix.lower(), str(path))


def open_image(content: bytes, suffix: str, path: str) -> Image.Image:
    """Read an image's header, from bytes: a file handle would stay open if the image is never decoded.

    Args:
        content: The file's content.
        suffix: The file's suffix in lower case, which tells its format. Where it is wrong, or empty, the content does.
        path: The file, as errors name it; may be empty.

    Returns:
        An image that only we hold, so that decoding may change it.

    Raises:
        OSError: The file is no image that is read, or its header is damaged.
    """
    try:
        image = _open(content, suffix)
    except MemoryError:
        raise
    except Exception as error:  # PIL raises many types of error on damaged files
        raise unreadable_error(path or "an image", error) from error
    image.filename = path  # type: ignore[attr-defined]  # as if PIL had opened the file: later errors name it
    return mark_as_own(image)


def _open(content: bytes, suffix: str) -> Image.Image:
    formats = _list_formats()
    format_ = Image.registered_extensions().get(suffix, "").replace("MPO", "JPEG")  # PIL's JPEG reader reads MPO too
    if format_ in formats:
        with suppress(UnidentifiedImageError):  # to try every format takes as long as a small image
            return Image.open(BytesIO(content), formats=[format_])
    return Image.open(BytesIO(content), formats=formats)


def _list_formats() -> list[str]:
    Image.init()  # without this, PIL knows only the formats that other code has imported
    return [format_ for format_ in Image.OPEN if format_ not in _EXCLUDED_FORMATS]
