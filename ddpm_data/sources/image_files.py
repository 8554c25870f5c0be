"""A dataset of the image files in a folder."""

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePath

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ddpm_data.images.decode import unreadable_error

# EPS is a program, which PIL would start Ghostscript to run. PIL reads no pixels of the other formats by itself.
_EXCLUDED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


class ImageFiles(Dataset[Image.Image]):
    """A dataset of every image file under a folder, flat or nested, in natural order (``2.png`` before ``10.png``).

    Items are PIL images that are not decoded yet. So :func:`~ddpm_data.images.decode.decode_image`, which knows the
    final size, can decode a JPEG at a half, a quarter or an eighth. Labels are not read from folder names. Hidden files
    and folders are left out, and so are EPS files, which are programs.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: The folder holds no file with the suffix of an image format that PIL reads.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"ImageFiles: there is no folder {self.root.absolute()}. Change `dataset.root`.")
        formats = _list_formats()
        extensions = Image.registered_extensions().items()
        suffixes = {suffix for suffix, format_ in extensions if format_ in formats or format_ == "MPO"}
        names = (path.relative_to(self.root) for path in self.root.rglob("*") if path.suffix.lower() in suffixes)
        self.names = _sort_names(name for name in names if not _is_hidden(name))
        if not self.names:
            raise ValueError(
                f"ImageFiles: {self.root.absolute()} and its sub-folders hold no image files (.jpg, .png, .webp, ...). "
                "Change `dataset.root`."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.root / self.names[index]
        try:
            image = _open_image(path.read_bytes(), path.suffix.lower())
        except MemoryError:
            raise
        except Exception as error:  # PIL raises many types of error on damaged files
            raise unreadable_error(path, error) from error
        image.filename = str(path)  # type: ignore[attr-defined]  # as if PIL had opened the file: errors name it
        return image


def _list_formats() -> list[str]:
    Image.init()  # without it, only the formats that other code has imported are registered
    return [format_ for format_ in Image.OPEN if format_ not in _EXCLUDED_FORMATS]


def _open_image(content: bytes, suffix: str) -> Image.Image:
    """Read an image's header, from bytes: a file handle would stay open if the image is never decoded."""
    format_ = Image.registered_extensions()[suffix].replace("MPO", "JPEG")  # PIL's JPEG reader reads MPO too
    try:
        return Image.open(BytesIO(content), formats=[format_])  # to try every format takes as long as a small image
    except UnidentifiedImageError:
        return Image.open(BytesIO(content), formats=_list_formats())  # the suffix may be wrong


def _sort_names(names: Iterable[PurePath]) -> list[str]:
    """Sort names in natural order, with forward slashes: backslashes sort differently and would change the stream."""
    return sorted((name.as_posix() for name in names), key=_natural_sort_key)


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Make a sort key that orders runs of digits by value. The name itself comes last and decides ``01`` or ``1``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in parts] + [(0, name)]
