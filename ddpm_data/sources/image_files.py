"""A dataset of the image files in a folder."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from ddpm_data._distributed import is_rank_zero
from ddpm_data.sources._names import Names
from ddpm_data.sources._opening import list_suffixes, open_image_file

_UNREAD_SUFFIXES = {  # of images that PIL alone does not read
    *(".heic", ".heif", ".jxl", ".svg", ".exr", ".hdr", ".eps", ".wmf", ".emf"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),  # cameras' raw formats
}
_DIGITS = re.compile(r"(\d+)")


class ImageFiles(Dataset[Image.Image]):
    """A dataset of every image file under a folder, flat or nested, in natural order (``2.png`` before ``10.png``).

    Items are PIL images that are not decoded yet. So :func:`~ddpm_data.images.decode.decode_image`, which knows the
    final size, can decode a JPEG at a half, a quarter or an eighth. Labels are not read from folder names. Links to
    files and folders are followed. Hidden files and folders are left out, and so are EPS files, which are programs. A
    warning counts the images that PIL cannot read, such as ``.heic``.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        PermissionError: The folder, or one in it, cannot be read.
        ValueError: The folder holds no file with the suffix of an image format that PIL reads.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"ImageFiles: there is no folder {self.root.absolute()}. Change `dataset.root`.")
        suffixes = list_suffixes()
        names, left_out = [], Counter[str]()
        for name in _find_files(self.root):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes:
                names.append(name)
            elif suffix in _UNREAD_SUFFIXES:
                left_out[suffix] += 1
        if left_out and is_rank_zero():
            counts = ", ".join(f"{count:,} {suffix}" for suffix, count in left_out.most_common())
            warnings.warn(
                f"ImageFiles: PIL reads no such images, so {left_out.total():,} file(s) in {self.root} are left out: "
                f"{counts}. Convert them, or install a plugin for PIL (pillow-heif, ...) and import it first.",
                stacklevel=2,
            )
        self.names: Sequence[str] = Names(_sort_names(names))
        if not self.names:
            raise ValueError(
                f"ImageFiles: {self.root.absolute()} and its sub-folders hold no image files (.jpg, .png, .webp, ...). "
                "Change `dataset.root`."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        return open_image_file(self.root / self.names[index])


def _find_files(root: Path) -> Iterator[str]:
    """Yield the paths of the files under a folder, relative to it and with forward slashes; links are followed.

    Hidden files are left out, and so are named pipes and other special files, since opening a pipe may wait forever. A
    broken link counts as a file, so that reading it raises an error that names it.
    """
    pending: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(str(root), "", (_identify(str(root)),))]
    while pending:
        folder, prefix, ancestors = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except PermissionError as error:
            raise PermissionError(
                f"ImageFiles: the folder {folder} cannot be read ({error.strerror}), so its images would be missing. "
                "Change its permissions, or `dataset.root`."
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                identity = _identify(entry.path)
                if identity not in ancestors:  # a link to a parent folder would cause an endless loop
                    pending.append((entry.path, f"{prefix}{entry.name}/", (*ancestors, identity)))
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):
                yield prefix + entry.name


def _identify(folder: str) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _sort_names(names: Iterable[str]) -> list[str]:
    """Sort names in natural order; their slashes are forward ones, since backslashes sort differently."""
    return sorted(names, key=_natural_sort_key)


def _natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Make a sort key that orders runs of digits by value. The name itself comes last and decides ``01`` or ``1``."""
    parts = _DIGITS.split(name)
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in parts] + [(0, name)]
