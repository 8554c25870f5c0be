"""Arrays in ``.npy`` files, one row per item: written batch by batch, checked by a digest, mapped into memory."""

import errno
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ddpm_data._bytes import from_array, to_array
from ddpm_data._nested import map_leaves

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
        self._texts: list[str] = []
        self._dtype: str | None = None

    def write(self, rows: Tensor | Sequence[str]) -> None:
        """Append rows. Strings are kept until the last one, since the longest decides how much room each takes.

        Raises:
            OSError: The disk has not enough space, which is known before the first row is written.
        """
        if not isinstance(rows, Tensor):
            self._texts += rows
            return
        array = to_array(rows)
        self._dtype = str(rows.dtype)
        if self._file is None:
            self._begin(array.dtype, array.shape[1:])
        self._write(array.data)

    def finish(self) -> dict[str, object]:
        """Flush the file to the disk, and return the record that :func:`find_damage` compares it with."""
        if self._texts:
            texts = np.array(self._texts)
            self._begin(texts.dtype, ())
            self._write(texts.tobytes())
        assert self._file is not None
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


def open_memmap(path: Path, record: Mapping[str, Any]) -> Tensor | np.ndarray[Any, Any]:
    """Map a file's array into memory: a tensor, or an array of strings.

    Args:
        path: The file.
        record: What :meth:`ColumnWriter.finish` returned.
    """
    # Copy on write, as torch warns of what must not be written to; nothing is written.
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    return array if array.dtype.kind == "U" else from_array(array, record.get("dtype"))


def take_rows(tree: Any, indices: Tensor) -> Any:  # noqa: ANN401  # nested columns
    """Take some rows of every column in nested dicts and lists, as ``default_collate`` would have batched them."""

    def take(column: Tensor | np.ndarray[Any, Any]) -> Tensor | list[str]:
        if isinstance(column, Tensor):
            return column.index_select(0, indices)
        texts: list[str] = column[indices.numpy()].tolist()
        return texts

    return map_leaves(take, tree)


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
