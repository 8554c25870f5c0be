"""Arrays with a row an item, in ``.npy`` files: written batch by batch, known by their digest, mapped into memory."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_data._nested import map_leaves

_BLOCK = 2**24  # bytes checked at once


class ColumnWriter:
    """An array on its way into a file.

    Args:
        path: The file.
        count: Rows it will have.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self._count = count
        self._digest = blake2b()
        self._file: BinaryIO | None = None
        self._texts: list[str] = []

    def write(self, rows: Tensor | Sequence[str]) -> None:
        """Add some rows; strings wait for the last one, since the longest decides their place.

        Raises:
            OSError: The disk is full, which is found out before the first row is written.
            TypeError: The dtype is one NumPy does not know.
        """
        if not isinstance(rows, Tensor):
            self._texts += rows
            return
        array = np.ascontiguousarray(rows.numpy())
        if self._file is None:
            self._begin(array.dtype, array.shape[1:])
        self._write(array.data)

    def finish(self) -> dict[str, object]:
        """Bring it to the disk; what to know it by."""
        if self._texts:
            texts = np.array(self._texts)
            self._begin(texts.dtype, ())
            self._write(texts.tobytes())
        assert self._file is not None
        sync_to_disk(self._file)
        self._file.close()
        found = self.path.stat()
        return {"bytes": found.st_size, "modified": found.st_mtime_ns, "blake2b": self._digest.hexdigest()}

    def discard(self) -> None:
        """Leave no file."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _begin(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Write the header, and reserve the disk space of all that follows."""
        header, whole = BytesIO(), (self._count, *shape)
        about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_1_0(header, about)
        size = len(header.getvalue()) + math.prod(whole) * dtype.itemsize
        self._file = self.path.open("wb")
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}; {size / 1e9:.3g} GB are needed") from error
        self._write(header.getvalue())

    def _write(self, content: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(content)
        self._digest.update(content)


def open_memmap(path: Path) -> Tensor | np.ndarray[Any, Any]:
    """A file's array, mapped into memory: a tensor, or an array of strings."""
    # Copy on write, as torch warns of what must not be written to; nothing is written.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    return array if array.dtype.kind == "U" else torch.from_numpy(array)


def take_rows(tree: Any, indices: Tensor) -> Any:  # noqa: ANN401  # nested columns
    """Take some rows of every column in nested dicts and lists, as ``default_collate`` would have batched them."""

    def take(column: Tensor | np.ndarray[Any, Any]) -> Tensor | list[str]:
        if isinstance(column, Tensor):
            return column.index_select(0, indices)
        texts: list[str] = column[indices.numpy()].tolist()
        return texts

    return map_leaves(take, tree)


def find_damage(path: Path, said: Mapping[str, Any]) -> str | None:
    """Describe what is wrong with a file that :meth:`ColumnWriter.finish` has recorded; ``None`` if nothing is."""
    if not path.is_file():
        return "is gone"
    found = path.stat()
    if found.st_size != said["bytes"]:
        return f"has {found.st_size} bytes instead of {said['bytes']}"
    # Whatever changes a file changes its time. A copy has another time too, and is read through to see, once.
    if found.st_mtime_ns != said["modified"]:
        if _digest(path) != said["blake2b"]:
            return "has been changed or damaged"
        with suppress(OSError):  # another user's
            os.utime(path, ns=(found.st_atime_ns, said["modified"]))
    return None


def _digest(path: Path) -> str:
    digest = blake2b()
    bar = tqdm(desc=f"Checking {path}", total=path.stat().st_size, unit="B", unit_scale=True)
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def sync_to_disk(file: BinaryIO) -> None:
    """Wait until the disk has what was written."""
    file.flush()
    os.fsync(file.fileno())
