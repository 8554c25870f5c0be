"""The cache: a dataset's images, decoded and resized once, in one memory-mapped ``.npy`` file.

``<dataset>-<fingerprint>.npy`` holds the images. ``.1.npy`` and so on hold conditions, and a ``.json`` file describes
them. The ``.json`` file is written last. If it is missing, building was interrupted, and the other files are not used.
A different dataset, size or processor has a different fingerprint.
"""

import itertools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ddpm_data._distributed import World
from ddpm_data._nested import leaves, map_leaves
from ddpm_data.cache._column_files import ColumnWriter, find_damage, open_memmap, sync_to_disk, take_rows
from ddpm_data.cache._fingerprint import fingerprint
from ddpm_data.loading.bad_items import BadItemCounter, shape_mismatch_message
from ddpm_data.loading.collate import bytes_per_example
from ddpm_data.loading.loader import StreamLoader, make_loader
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions, cpu_count
from ddpm_data.loading.stage_images import ItemBatch
from ddpm_data.loading.worker import call_in_worker

_FORMAT = 3  # raised whenever the same dataset and processor give other bytes, or the files have another meaning
_BATCH_SIZE = 64  # images that a worker decodes at once


class Cache(NamedTuple):
    """Decoded images and their conditions, mapped into memory that all processes share.

    Attributes:
        path: The images' file.
        array: Its content, uint8 (latents: floats), shape ``(count, channels, height, width)``.
        condition: The conditions' arrays, in nested dicts and lists; ``None`` without conditions.
        bad_items: Why some images could not be used when the cache was built, by index.
    """

    path: Path
    array: Tensor
    condition: Any
    bad_items: dict[int, str]

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image in a batch, with its condition."""
        return self.array[0].nbytes + bytes_per_example(self.condition)

    def batch(self, indices: Tensor) -> ItemBatch:
        """Return some of the items."""
        return ItemBatch(self.array.index_select(0, indices), take_rows(self.condition, indices))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path only, so that a worker maps the files itself."""
        return _open_cache, (self.path,)


def decoding_options(options: LoaderOptions, count: int) -> LoaderOptions:
    """Return the options for building a cache: those of training, but with one worker per core instead of none.

    Args:
        options: The options of training.
        count: Images to decode.
    """
    return replace(
        options,
        batch_size=_BATCH_SIZE,
        num_workers=min(options.num_workers or cpu_count(), max(1, -(-count // _BATCH_SIZE))),
        prefetch_factor=None,
        persistent_workers=False,
        drop_last=False,
    )


def open_or_build(images: MapStyleImages, folder: Path, options: LoaderOptions) -> Cache:
    """Open a dataset's cache. If there is none, build it in one process while the other processes wait.

    Args:
        images: All images of the dataset, inspected.
        folder: The folder of caches.
        options: How many workers decode, and how they start: see :func:`decoding_options`.

    Raises:
        OSError: The folder cannot be written to, the disk is full, or an image cannot be read.
        TypeError: An item holds no image.
        ValueError: An image cannot be converted, images differ in shape, or an item differs each time it is read.
    """
    path = (
        folder
        / f"{type(images.dataset).__name__}-{call_in_worker(options, images.name, fingerprint, images, _FORMAT)}.npy"
    )
    if _is_complete(path):  # checked without a lock, because a read-only folder has none
        return _open_cache(path)
    with _explain_disk_errors(images.name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    try:
        if not _is_complete(path, warn=True):
            with _explain_disk_errors(images.name, folder):
                for leftover in folder.glob(f"{path.stem}.*.part"):  # from a killed process, since we hold the lock
                    leftover.unlink()
            _build(images, path, options)
    finally:
        lock.release()
    return _open_cache(path)


def _open_cache(path: Path) -> Cache:
    record = json.loads(_record_file(path).read_text(encoding="utf-8"))
    columns = [open_memmap(_column_file(path, number), file) for number, file in enumerate(record["files"])]
    array = columns[0]
    assert isinstance(array, Tensor)
    bad_items = {int(index): reason for index, reason in record["faults"].items()}
    return Cache(path, array, _read_tree(record["condition"], columns.__getitem__), bad_items)


def _column_file(path: Path, number: int) -> Path:
    """Return the images' file for 0, else one of the conditions'."""
    return path if number == 0 else path.with_suffix(f".{number}.npy")


def _record_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _lock(path: Path) -> FileLock:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        tqdm.write(f"Waiting for another process to build {path}", file=sys.stderr)
        lock.acquire()
    return lock


@contextmanager
def _explain_disk_errors(name: str, folder: Path) -> Iterator[None]:
    """Add to a disk error which cache could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        free = f" ({shutil.disk_usage(folder).free / 1e9:.3g} GB are free)" if folder.is_dir() else ""
        raise OSError(
            f"the cache of {name} cannot be written to {folder.absolute()}{free}: {error}. Choose another folder, "
            "or null to decode in every epoch: `loader.cache_dir`."
        ) from error


def _is_complete(path: Path, warn: bool = False) -> bool:
    if not _record_file(path).is_file():
        return False
    damage = _find_damage(path)
    if damage and warn:
        warnings.warn(f"the cache {path} {damage}; it is built again.", stacklevel=2)
    return not damage


def _find_damage(path: Path) -> str | None:
    try:
        record = json.loads(_record_file(path).read_text(encoding="utf-8"))
        files, _ = list(record["files"]), (record["condition"], record["faults"])
        damages = [find_damage(_column_file(path, number), file) for number, file in enumerate(files)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"cannot be checked, because {_record_file(path).name} is damaged"
    return next(filter(None, damages), None)


def _build(images: MapStyleImages, path: Path, options: LoaderOptions) -> None:
    columns: list[ColumnWriter] = []
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        record = _write_columns(images, path, options, columns)
        with _explain_disk_errors(images.name, path.parent):
            record["files"] = [column.finish() for column in columns]
            for number, column in enumerate(columns):
                os.replace(column.path, _column_file(path, number))
            with unfinished.open("wb") as file:
                file.write(json.dumps(record, indent=1).encode())
                sync_to_disk(file)
            os.replace(unfinished, _record_file(path))
    finally:
        unfinished.unlink(missing_ok=True)
        for column in columns:
            column.discard()


def _write_columns(
    images: MapStyleImages, path: Path, options: LoaderOptions, columns: list[ColumnWriter]
) -> dict[str, object]:
    """Decode every image into columns: one for the images, one for each part of the conditions."""
    loader, shape = _make_decoding_loader(images, options), None
    with tqdm(desc=f"Decoding {images.name} into {path.parent}", total=len(images), unit="image") as bar:
        for batch, (_, _, condition) in loader:
            parts = [batch, *leaves(condition)]
            if shape is None:
                shape, tree = batch.shape[1:], _number_leaves(condition)
                stem = path.with_suffix("")
                for number in range(len(parts)):
                    columns.append(ColumnWriter(Path(f"{stem}.{os.getpid()}.{number}.part"), len(images)))
            elif batch.shape[1:] != shape:
                raise ValueError(shape_mismatch_message(images.name, 0, shape, bar.n, batch.shape[1:]))
            with _explain_disk_errors(images.name, path.parent):
                for column, part in zip(columns, parts, strict=True):
                    column.write(part)
            bar.update(len(batch))
    assert shape is not None
    processor = {name: value for name, value in vars(images.processor).items() if value is not None}
    kind = f"{type(images.dataset).__module__}.{type(images.dataset).__qualname__}"
    return {
        "dataset": kind,
        "policy": processor,
        "shape": [len(images), *shape],
        "condition": _write_tree(tree),
        "faults": {bad.item: bad.reason for bad in loader.counter.bad_items},
    }


def _number_leaves(condition: Any) -> Any:  # noqa: ANN401  # nested conditions
    numbers = itertools.count(1)
    return map_leaves(lambda _: next(numbers), condition)


def _write_tree(tree: Any) -> Any:  # noqa: ANN401  # nested numbers
    """Return numbers nested in dicts and lists as JSON can keep them: it has no keys but strings."""
    if isinstance(tree, dict):
        return {"keys": list(tree), "parts": [_write_tree(part) for part in tree.values()]}
    return {"parts": [_write_tree(part) for part in tree]} if isinstance(tree, list) else tree


def _read_tree(tree: Any, open_column: Callable[[int], object]) -> Any:  # noqa: ANN401  # nested columns
    """Return the columns in place of the numbers that :func:`_write_tree` has kept."""
    if not isinstance(tree, dict):
        return None if tree is None else open_column(tree)
    parts = [_read_tree(part, open_column) for part in tree["parts"]]
    return dict(zip(tree["keys"], parts, strict=True)) if "keys" in tree else parts


def _make_decoding_loader(images: MapStyleImages, options: LoaderOptions) -> StreamLoader:
    world = World(1, 0)  # the other processes wait
    counter = BadItemCounter(images.name, options.max_bad_fraction, len(images))
    return make_loader(images, "predict", images.eval_order(options, world), options, world, seed=0, counter=counter)
