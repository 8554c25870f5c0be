"""Decode once: a dataset's images, as their policy wants them, in one memory-mapped ``.npy`` file of bytes.

Beside ``<dataset>-<fingerprint>.npy`` stands a ``.json`` that says what is in it. It is written last, and is what makes
a cache of the file: one whose making was cut short has none. Another dataset, size or policy has another name.
"""

import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ddpm_data.fingerprint import fingerprint
from ddpm_data.images import Images, differing
from ddpm_data.loading import Loading, StreamLoader
from ddpm_data.stream import EvalSampler

_FORMAT = 1  # raised whenever the same dataset and policy come to give other bytes
_BATCH = 64  # images a worker decodes at once
_BLOCK = 2**24  # bytes checked at once


class Cache(NamedTuple):
    """A file of decoded images, mapped into memory: all processes that read it share its pages.

    Attributes:
        path: The ``.npy`` file.
        array: Its content, uint8, shape ``(count, channels, height, width)``.
    """

    path: Path
    array: Tensor

    def gather(self, indices: Tensor) -> Tensor:
        """Some of the images: uint8, shape ``(batch, channels, height, width)``."""
        return self.array.index_select(0, indices)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker maps the file itself instead of being sent its content."""
        return _mapped, (self.path,)


def cached(images: Images, folder: Path, loading: Loading) -> Cache:
    """The cache of a dataset: found, or made by one process while others that want it wait.

    Args:
        images: The whole dataset; its ``check`` has passed.
        folder: Where caches are kept.
        loading: How many workers decode (0: one a core), and how they start.

    Raises:
        OSError: The folder cannot be written to, the disk is full, or an image cannot be read.
        TypeError: An item holds no image.
        ValueError: An image cannot be converted, images differ in shape, or an item is another each time.
    """
    path = folder / f"{type(images.dataset).__name__}-{fingerprint(images, _FORMAT)}.npy"
    if _is_whole(path):  # found without a lock, as in a folder that cannot be written to
        return _mapped(path)
    with _keeping(images.name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    try:
        if not _is_whole(path, warn=True):
            with _keeping(images.name, folder):
                for debris in folder.glob(f"{path.stem}.*.part"):  # its maker was killed: whoever makes holds the lock
                    debris.unlink()
            _make(images, path, loading)
    finally:
        lock.release()
    return _mapped(path)


def _mapped(path: Path) -> Cache:
    # Copy on write, as torch warns of what must not be written to; nothing is written.
    return Cache(path, torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)))


def _locked(path: Path) -> FileLock:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        tqdm.write(f"Waiting for another process, which is making {path}", file=sys.stderr)
        lock.acquire()
    return lock


@contextmanager
def _keeping(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        free = f" ({shutil.disk_usage(folder).free / 1e9:.3g} GB are free)" if folder.is_dir() else ""
        raise OSError(
            f"the cache of {name} cannot be kept in {folder.absolute()}{free}: {error}. Give another folder, or null "
            "to decode every time: `loader.cache_dir`."
        ) from error


def _is_whole(path: Path, warn: bool = False) -> bool:
    about = path.with_suffix(".json")
    if not about.is_file():
        return False
    fault = _fault(path, about)
    if fault and warn:
        warnings.warn(f"the cache {path} {fault}; it is made anew.", stacklevel=2)
    return not fault


def _fault(path: Path, about: Path) -> str | None:
    try:
        said = json.loads(about.read_text())
        size, modified, digest = said["bytes"], said["modified"], said["blake2b"]
    except (ValueError, KeyError, TypeError):
        return f"is not what {about.name} describes, which is damaged itself"
    if not path.is_file():
        return "is gone"
    found = path.stat()
    if found.st_size != size:
        return f"has {found.st_size} bytes instead of {size}"
    # Whatever changes a file changes its time. A copy has another time too, and is read through to see, once.
    if found.st_mtime_ns != modified:
        if _digest(path) != digest:
            return "has been changed or damaged"
        with suppress(OSError):  # another user's
            os.utime(path, ns=(found.st_atime_ns, modified))
    return None


def _digest(path: Path) -> str:
    digest = blake2b()
    bar = tqdm(desc=f"Checking {path}", total=path.stat().st_size, unit="B", unit_scale=True)
    with path.open("rb") as file, bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _make(images: Images, path: Path, loading: Loading) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with _keeping(images.name, path.parent):
            file = part.open("wb")
        with file:
            about = _write(images, file, path.parent, loading)
        with _keeping(images.name, path.parent):
            os.replace(part, path)
            about |= {"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}
            with part.open("wb") as file:
                file.write(json.dumps(about, indent=1).encode())
                _to_disk(file)
            os.replace(part, path.with_suffix(".json"))
    finally:
        part.unlink(missing_ok=True)


def _write(images: Images, file: BinaryIO, folder: Path, loading: Loading) -> dict[str, object]:
    digest, shape = blake2b(), torch.Size()
    with tqdm(desc=f"Decoding {images.name} into {folder}", total=len(images), unit="image") as bar:
        for batch, _ in _batches(images, loading):
            with _keeping(images.name, folder):
                if not shape:
                    shape = batch.shape[1:]
                    digest.update(_begin(file, (len(images), *shape)))
                elif batch.shape[1:] != shape:
                    raise ValueError(differing(images.name, 0, shape, bar.n, batch.shape[1:]))
                file.write(content := batch.numpy().data)
            digest.update(content)
            bar.update(len(batch))
    with _keeping(images.name, folder):
        _to_disk(file)
    policy = {name: value for name, value in vars(images.policy).items() if value is not None}
    kind = f"{type(images.dataset).__module__}.{type(images.dataset).__qualname__}"
    return {"dataset": kind, "policy": policy, "shape": [len(images), *shape], "blake2b": digest.hexdigest()}


def _batches(images: Images, loading: Loading) -> StreamLoader:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(loading.num_workers or cores, -(-len(images) // _BATCH))
    decoding = Loading(_BATCH, workers, None, False, loading.multiprocessing_context, drop_last=False)
    return decoding.loader(images, "predict", EvalSampler(len(images), _BATCH, 1, 0), (1, 0), seed=0, pin_memory=False)


def _begin(file: BinaryIO, shape: tuple[int, ...]) -> bytes:
    """Write the file's header, and reserve the disk space of all that follows; the header."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    size = len(header.getvalue()) + math.prod(shape)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; {size / 1e9:.3g} GB are needed") from error
    file.write(header.getvalue())
    return header.getvalue()


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
