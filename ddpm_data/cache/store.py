"""Decode once: a dataset's images, as their processor wants them, in one memory-mapped ``.npy`` file of bytes.

Beside ``<dataset>-<fingerprint>.npy`` stand ``.1.npy`` and so on for conditions, and a ``.json`` that says what is in
them. It is written last, and is what makes a cache of the files: those whose making was cut short have none. Another
dataset, size or processor has another name.
"""

import itertools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ddpm_data._nested import leaves, map_leaves
from ddpm_data.cache._column_files import ColumnWriter, find_damage, open_memmap, sync_to_disk, take_rows
from ddpm_data.cache._fingerprint import fingerprint
from ddpm_data.loading.bad_items import BadItem, shape_mismatch_message
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.loading.map_style import ItemBatch, MapStyleImages
from ddpm_data.loading.options import LoaderOptions, cpu_count
from ddpm_data.loading.samplers import EvalSampler

_FORMAT = 2  # raised whenever the same dataset and processor come to give other bytes, or the files another meaning
_BATCH = 64  # images a worker decodes at once


class Cache(NamedTuple):
    """Files of decoded images and their conditions, mapped into memory: all processes that read them share their pages.

    Attributes:
        path: The images' file.
        array: Its content, uint8 (latents: floats), shape ``(count, channels, height, width)``.
        condition: The conditions' arrays, in a nest of dicts and lists; ``None`` where there are none.
        faults: Why some images were replaced when the cache was made, by index.
    """

    path: Path
    array: Tensor
    condition: Any
    faults: dict[int, str]

    def batch(self, indices: Tensor) -> ItemBatch:
        """Some of the items."""
        faults: tuple[BadItem, ...] = ()
        if self.faults:
            faults = tuple(BadItem(i, self.faults[i]) for i in indices.tolist() if i in self.faults)
        return ItemBatch(self.array.index_select(0, indices), take_rows(self.condition, indices), faults)

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker maps the files itself instead of being sent their content."""
        return _opened, (self.path,)


def open_or_build(images: MapStyleImages, folder: Path, loading: LoaderOptions) -> Cache:
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
        return _opened(path)
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
    return _opened(path)


def _opened(path: Path) -> Cache:
    said = json.loads(path.with_suffix(".json").read_text())
    array = open_memmap(path)
    assert isinstance(array, Tensor)
    faults = {int(index): why for index, why in said["faults"].items()}
    return Cache(path, array, map_leaves(lambda number: open_memmap(_file(path, number)), said["condition"]), faults)


def _file(path: Path, number: int) -> Path:
    """The images' file, or one of the conditions'."""
    return path if number == 0 else path.with_suffix(f".{number}.npy")


def _number_leaves(tree: Any) -> Any:  # noqa: ANN401  # nested conditions
    numbers = itertools.count(1)
    return map_leaves(lambda _: next(numbers), tree)


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
        files, _ = list(said["files"]), (said["condition"], said["faults"])
        found = [find_damage(_file(path, number), file) for number, file in enumerate(files)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"is not what {about.name} describes, which is damaged itself"
    return next(filter(None, found), None)


def _make(images: MapStyleImages, path: Path, loading: LoaderOptions) -> None:
    columns: list[ColumnWriter] = []
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        about = _write(images, path, loading, columns)
        with _keeping(images.name, path.parent):
            about["files"] = [column.finish() for column in columns]
            for number, column in enumerate(columns):
                os.replace(column.path, _file(path, number))
            with part.open("wb") as file:
                file.write(json.dumps(about, indent=1).encode())
                sync_to_disk(file)
            os.replace(part, path.with_suffix(".json"))
    finally:
        part.unlink(missing_ok=True)
        for column in columns:
            column.discard()


def _write(
    images: MapStyleImages, path: Path, loading: LoaderOptions, columns: list[ColumnWriter]
) -> dict[str, object]:
    """Decode every image into columns, one for the images and one for each part of the conditions."""
    loader, shape = _loader(images, loading), None
    with tqdm(desc=f"Decoding {images.name} into {path.parent}", total=len(images), unit="image") as bar:
        for batch, (_, _, condition) in loader:
            parts = [batch, *leaves(condition)]
            if shape is None:
                shape, tree = batch.shape[1:], _number_leaves(condition)
                stem = path.with_suffix("")
                columns += [
                    ColumnWriter(Path(f"{stem}.{os.getpid()}.{n}.part"), len(images)) for n in range(len(parts))
                ]
            elif batch.shape[1:] != shape:
                raise ValueError(shape_mismatch_message(images.name, 0, shape, bar.n, batch.shape[1:]))
            with _keeping(images.name, path.parent):
                for column, part in zip(columns, parts, strict=True):
                    column.write(part)
            bar.update(len(batch))
    assert shape is not None
    processor = {name: value for name, value in vars(images.processor).items() if value is not None}
    kind = f"{type(images.dataset).__module__}.{type(images.dataset).__qualname__}"
    about = {"dataset": kind, "policy": processor, "shape": [len(images), *shape]}
    return about | {"condition": tree, "faults": {fault.item: fault.why for fault in loader.counter.faults}}


def _loader(images: MapStyleImages, loading: LoaderOptions) -> StreamLoader:
    workers = min(loading.num_workers or cpu_count(), -(-len(images) // _BATCH))
    decoding = copy(loading)
    decoding.batch_size, decoding.num_workers = _BATCH, workers
    decoding.prefetch_factor, decoding.persistent_workers, decoding.drop_last = None, False, False
    order = EvalSampler(len(images), _BATCH, 1, 0)
    loader = decoding.loader(images, "predict", order, (1, 0), seed=0, pin_memory=False)
    loader.counter.name = images.name
    return loader
