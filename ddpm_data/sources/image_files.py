"""A dataset of the image files in a folder."""

import os
import re
import warnings
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from ddpm_data._checks import check_path
from ddpm_data._distributed import is_rank_zero
from ddpm_data._keys import name_arguments
from ddpm_data.sources._names import Names
from ddpm_data.sources._opening import list_suffixes, open_image_file

_UNREAD_SUFFIXES = {  # of images that PIL alone does not read
    *(".heic", ".heif", ".jxl", ".svg", ".exr", ".hdr", ".eps", ".wmf", ".emf"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),  # cameras' raw formats
}
_DIGITS = re.compile(r"\d+")


class ImageFiles(Dataset[Any]):
    """A dataset of every image file under a folder, flat or nested, in natural order (``2.png`` before ``10.png``).

    Items are PIL images that are not decoded yet. So :func:`~ddpm_data.images.decode.decode_image`, which knows the
    final size, can decode a JPEG at a half, a quarter or an eighth. Links to files and folders are followed. Hidden
    files and folders are left out, and so are EPS files, which are programs. A warning counts the images that PIL
    cannot read, such as ``.heic``.

    With ``labels=True``, the folders in ``root`` are classes, as for torchvision's ``ImageFolder``: an item is
    ``(image, label)``, where the label is the place of its class in :attr:`classes`. An image in ``cats/young/`` is of
    class ``cats``.

    Args:
        root: The folder.
        labels: Whether items have labels.

    Attributes:
        names: The files' paths below ``root``, with forward slashes.
        classes: The names of the classes, sorted; empty without ``labels``.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        PermissionError: The folder, or one in it, cannot be read, or a link leads through such a folder.
        TypeError: ``root`` is no path, or ``labels`` not a bool.
        ValueError: ``root`` is empty; the folder holds no file with the suffix of an image format that PIL reads; or,
            with ``labels``, an image lies in no class, or a class has no image.
    """

    @name_arguments
    def __init__(self, root: str | Path, labels: bool = False) -> None:
        if not isinstance(labels, bool):
            raise TypeError(f"ImageFiles(labels={labels!r}): expected true or false. Change `dataset.labels`.")
        self.root = check_path("ImageFiles", "dataset.root", root)
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
        if not names:
            raise ValueError(
                f"ImageFiles: {self.root.absolute()} and its sub-folders hold no image files (.jpg, .png, .webp, ...). "
                "Change `dataset.root`."
            )
        names = _sort_names(names)
        self.classes = _list_classes(self.root, names) if labels else []
        self.names: Sequence[str] = Names(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image | tuple[Image.Image, int]:
        name = self.names[index]
        image = open_image_file(self.root / name)
        return (image, bisect_left(self.classes, _class_of(name))) if self.classes else image


def _class_of(name: str) -> str:
    return name.partition("/")[0]


def _list_classes(root: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the folders in ``root``, sorted; each of them must hold an image, and no image be outside."""
    flat = [name for name in names if "/" not in name]
    if flat:
        raise ValueError(
            f"ImageFiles(labels=True): {len(flat):,} image(s) lie in {root} itself, such as {flat[0]}, and have no "
            "class. The folders in it are the classes: move each image into one, or set `dataset.labels` to false."
        )
    classes = {_class_of(name) for name in names}
    with os.scandir(root) as entries:
        empty = sorted({entry.name for entry in entries if _is_folder(entry) and entry.name[0] != "."} - classes)
    if empty:
        raise ValueError(
            f"ImageFiles(labels=True): the folder(s) {', '.join(empty)} in {root} hold no images, and each folder "
            "there is a class. Remove them, or move them out of `dataset.root`."
        )
    return sorted(classes)


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
            if _is_folder(entry):
                identity = _identify(entry.path)
                if identity not in ancestors:  # a link to a parent folder would cause an endless loop
                    pending.append((entry.path, f"{prefix}{entry.name}/", (*ancestors, identity)))
            elif _is_broken_link(entry) or entry.is_file():
                yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except PermissionError as error:  # it may lead to a folder of images
        raise PermissionError(
            f"ImageFiles: {entry.path} leads to where nobody may look ({error.strerror}), so images would be missing. "
            "Change the permissions there, or `dataset.root`."
        ) from error
    except OSError:  # a link that leads to itself
        return False


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _identify(folder: str) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _sort_names(names: Iterable[str]) -> list[str]:
    """Sort names in natural order; their slashes are forward ones, since backslashes sort differently.

    Names that differ in case or in leading zeros only (``01`` and ``1``) are sorted as they are.
    """
    return sorted(sorted(names), key=_natural_sort_key)


def _natural_sort_key(name: str) -> str:
    """Make a sort key that orders runs of digits by value; one string, since a million tuples take seconds to sort."""
    return f"{_DIGITS.sub(_order_by_value, name.lower())}\0\2"


def _order_by_value(digits: re.Match[str]) -> str:
    """Put the number's length before it; the zero before that ends the text, since no name has it."""
    value = str(int(digits[0]))
    return "\0\1" if value == "0" else f"\0{chr(2 + len(value))}{value}"
