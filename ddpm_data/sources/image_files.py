"""Image files in a folder."""

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePath

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from ddpm_data.images.decode import unreadable_error

# EPS is a program, which PIL has Ghostscript run; of the others it reads no pixels by itself.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


class ImageFiles(Dataset[Image.Image]):
    """Every image file under a folder, flat or nested, in natural order (``2.png`` before ``10.png``).

    Items are PIL images not yet decoded, so that whoever knows the size that is wanted can have a JPEG decoded at a
    half, a quarter or an eighth (:func:`~ddpm_data.images.decode.decode_image`). Labels are not read from folder names.
    Hidden files and folders are left out, and so is EPS, which is a program.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: It holds no file whose ending names an image format PIL reads.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"ImageFiles: there is no folder {self.root.absolute()}. Change `dataset.root`.")
        kinds = _formats()
        endings = {ending for ending, kind in Image.registered_extensions().items() if kind in kinds or kind == "MPO"}
        names = (path.relative_to(self.root) for path in self.root.rglob("*") if path.suffix.lower() in endings)
        self.names = _sorted_names(name for name in names if not _hidden(name))
        if not self.names:
            raise ValueError(
                f"ImageFiles: {self.root.absolute()} holds no image files (.jpg, .png, .webp, ...), nor do its "
                "folders. Change `dataset.root`."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.root / self.names[index]
        try:
            image = _opened(path.read_bytes(), path.suffix.lower())
        except MemoryError:
            raise
        except Exception as error:  # PIL's errors on damaged files are of many kinds
            raise unreadable_error(path, error) from error
        image.filename = str(path)  # type: ignore[attr-defined]  # PIL's files have one, for errors to name
        return image


def _formats() -> list[str]:
    Image.init()  # else there are only those that something else happens to have imported
    return [kind for kind in Image.OPEN if kind not in _NOT_READ]


def _opened(content: bytes, ending: str) -> Image.Image:
    """An image whose header has been read; of bytes, so that no file stays open that is never decoded."""
    kind = Image.registered_extensions()[ending].replace("MPO", "JPEG")  # which reads those too
    try:
        return Image.open(BytesIO(content), formats=[kind])  # asking every format takes as long as a small image
    except UnidentifiedImageError:
        return Image.open(BytesIO(content), formats=_formats())  # a name may be wrong


def _sorted_names(names: Iterable[PurePath]) -> list[str]:
    """Sort in natural order, by names with forward slashes: backslashes sort elsewhere, and would change the stream."""
    return sorted((name.as_posix() for name in names), key=_natural)


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that orders runs of digits by their value; the last place settles ``01`` against ``1``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in parts] + [(0, name)]
