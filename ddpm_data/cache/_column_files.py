"""Arrays in ``.npy`` files, one row per item: written batch by batch, checked by a digest, mapped into memory."""

import errno
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ddpm_data._bytes import from_array, to_array

_MARKED = "marked"  # the dtype of a column of strings of which one ends with a zero, see Texts
_BLOCK = 2**24  # bytes checked at once
_CANNOT_RESERVE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # the errors of file systems that cannot reserve space


class ColumnWriter:
    """Writes an array into a file, batch by batch.

    Args:
        path: The file.
        count: Rows that the array will have.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self._count = count
        self._digest = blake2b()
        self._file: BinaryIO | None = None
        self._texts: list[str | bytes] = []
        self._dtype: str | None = None
        self._rows = 0

    def write(self, rows: Tensor | Sequence[str] | Sequence[bytes]) -> None:
        """Append rows. Strings are kept until the last one, since the longest decides how much room each takes.

        Raises:
            OSError: The disk has not enough space, which is known before the first row is written.
            TypeError: Some rows are strings and others bytes, or there are no values in them.
        """
        self._rows += len(rows)
        if not isinstance(rows, Tensor):
            if not rows:
                raise TypeError(
                    "conditions are empty lists, which no cache keeps. Change `dataset.condition`, or set "
                    "`loader.cache_dir` to null."
                )
            self._texts += rows
            kinds = {bytes if isinstance(row, bytes) else str for row in (self._texts[0], *rows)}
            if len(kinds) > 1:
                raise TypeError(
                    "conditions are strings for some items and bytes for others, and a cache keeps one kind. Have the "
                    "dataset give one, or set `loader.cache_dir` to null."
                )
            return
        array = to_array(rows)
        self._dtype = str(rows.dtype)
        if self._file is None:
            self._begin(array.dtype, array.shape[1:])
        self._write(array.data)

    def finish(self) -> dict[str, object]:
        """Flush the file to the disk, and return the record that :func:`find_damage` compares it with."""
        if self._texts:
            if any(text[-1:] in ("\0", b"\0") for text in self._texts):
                self._dtype = _MARKED
            marks = (b".", ".") if self._dtype == _MARKED else (b"", "")
            texts = np.array([text + marks[0] if isinstance(text, bytes) else text + marks[1] for text in self._texts])
            self._begin(texts.dtype, ())
            self._write(texts.tobytes())
        assert self._file is not None
        assert self._rows == self._count
        sync_to_disk(self._file)
        self._file.close()
        stat = self.path.stat()
        digest = self._digest.hexdigest()
        return {"bytes": stat.st_size, "modified": stat.st_mtime_ns, "blake2b": digest, "dtype": self._dtype}

    def discard(self) -> None:
        """Delete the file."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _begin(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Write the header, and reserve the disk space of all rows."""
        header, full_shape = BytesIO(), (self._count, *shape)
        fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": full_shape}
        np.lib.format.write_array_header_1_0(header, fields)
        size = len(header.getvalue()) + math.prod(full_shape) * dtype.itemsize
        self._file = self.path.open("wb")
        try:
            _reserve(self._file, size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; {size / 1e9:.3g} GB are needed") from error
        self._write(header.getvalue())

    def _write(self, content: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(content)
        self._digest.update(content)


@dataclass(frozen=True)
class Texts:
    """A column of strings or bytes.

    Attributes:
        array: The column, mapped into memory.
        is_marked: Whether each has a full stop behind it. NumPy drops zeros from the ends of others.
    """

    array: np.ndarray[Any, Any]
    is_marked: bool

    def take(self, indices: Tensor) -> list[str] | list[bytes]:
        """Return some rows."""
        texts: list[Any] = self.array[indices.numpy()].tolist()
        return [text[:-1] for text in texts] if self.is_marked else texts


def open_memmap(path: Path, record: Mapping[str, Any]) -> Tensor | Texts:
    """Map a file's array into memory.

    Args:
        path: The file.
        record: What :meth:`ColumnWriter.finish` returned.
    """
    # Copy on write, as torch warns of what must not be written to; nothing is written.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    dtype = record.get("dtype")
    return Texts(array, dtype == _MARKED) if array.dtype.kind in "US" else from_array(array, dtype)


def take_rows(tree: Any, indices: Tensor) -> Any:  # noqa: ANN401  # nested columns
    """Take some rows of every column in nested dicts and lists, as ``default_collate`` would have batched them."""
    if isinstance(tree, Texts):
        return tree.take(indices)
    if isinstance(tree, Tensor | None):
        return None if tree is None else tree.index_select(0, indices)
    if isinstance(tree, dict):
        return {key: take_rows(part, indices) for key, part in tree.items()}
    return [take_rows(part, indices) for part in tree]


def find_damage(path: Path, record: Mapping[str, Any]) -> str | None:
    """Compare a file with the record of :meth:`ColumnWriter.finish`; return the damage, or ``None`` without any."""
    if not path.is_file():
        return "is gone"
    stat = path.stat()
    if stat.st_size != record["bytes"]:
        return f"has {stat.st_size} bytes instead of {record['bytes']}"
    # A change to a file changes its time. A copy has a different time too, so its content is checked once.
    if stat.st_mtime_ns != record["modified"]:
        if _digest(path) != record["blake2b"]:
            return "has been changed or damaged"
        with suppress(OSError):  # the file belongs to another user
            os.utime(path, ns=(stat.st_atime_ns, record["modified"]))
    return None


def _digest(path: Path) -> str:
    digest = blake2b()
    bar = tqdm(desc=f"Checking {path}", total=path.stat().st_size, unit="B", unit_scale=True)
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserve disk space for a file. If the system cannot do this, check that enough is free now."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    if shutil.disk_usage(Path(file.name).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync_to_disk(file: BinaryIO) -> None:
    """Wait until the written data are on the disk."""
    file.flush()
    os.fsync(file.fileno())
