"""The fingerprint of a dataset: two datasets that share it have the same images."""

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ddpm_data._bytes import bytes_of
from ddpm_data._nested import leaves
from ddpm_data.cache._state import digest_state
from ddpm_data.loading.bad_items import ITEM_ERRORS, with_item_context
from ddpm_data.loading.collate import collate_conditions
from ddpm_data.loading.map_style import MapStyleImages, RawItem
from ddpm_data.sources import ImageFiles
from ddpm_data.sources._arrays import resolve_indices

_ITEMS_COMPARED = 16  # items whose content is part of the digest


def fingerprint(images: MapStyleImages, version: int) -> str:
    """Digest what decides a dataset's pixels and conditions.

    That is its kind and length, its files' names, sizes and times, the content of a few items, and the processor. A
    dataset that is neither files nor subsets of them is known by those few items' content alone. Where there are
    conditions, what the dataset keeps of them counts too, see :func:`~ddpm_data.cache._state.digest_state`.

    Args:
        images: The dataset and its processor.
        version: Of whatever the digest names.

    Returns:
        24 hexadecimal digits.

    Raises:
        OSError, TypeError, ValueError: An item cannot be converted.
        ValueError: An item, or its condition, is another each time it is asked for.
    """
    digest = blake2b(digest_size=12)
    options = [version, sorted(vars(images.processor).items()), images.conditions.describe(), images.replaces]
    for part in chain(options, _describe(images.dataset)):
        digest.update(json.dumps(part).encode())
    if images.conditions:
        digest.update(digest_state(images.dataset).encode())
    for content in _load_sample(images):
        digest.update(content)
    return digest.hexdigest()


def _describe(dataset: object) -> Iterator[object]:
    yield [type(dataset).__module__, type(dataset).__qualname__, len(dataset)]  # type: ignore[arg-type]  # map-style
    if isinstance(dataset, Subset):
        indices = resolve_indices(dataset.indices, len(dataset.dataset))  # type: ignore[arg-type]  # map-style
        content = bytes_of(indices).data if indices is not None else str([*dataset.indices]).encode()
        yield blake2b(content).hexdigest()
        yield from _describe(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _describe(part)
    elif isinstance(dataset, ImageFiles):
        folder = str(dataset.root)
        yield from (_describe_file(folder, f"{folder}{os.sep}{name}") for name in dataset.names)
    elif isinstance(root := getattr(dataset, "root", None), str | Path):  # torchvision's folders of images
        samples = getattr(dataset, "samples", None)
        if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
            yield from (_describe_file(str(root), str(sample[0])) for sample in samples)


def _describe_file(root: str, path: str) -> tuple[str, int, int]:
    """Return a file's name below the root (so that a folder may be moved), size and time.

    There may be millions of files, and a ``Path`` would take longer than all the rest. A file that is not there, or
    that may not be looked at, has neither size nor time. Whoever reads it says so.
    """
    try:
        stat = os.stat(path)
        size, time = stat.st_size, stat.st_mtime_ns
    except OSError:
        size, time = -1, -1
    name = os.path.normpath(path).removeprefix(os.path.join(os.path.normpath(root), ""))
    return name.replace(os.sep, "/"), size, time


def _load_sample(images: MapStyleImages) -> Iterator[bytes]:
    """Yield the content of a few items, read at least twice, to see whether it changes."""
    count = min(_ITEMS_COMPARED, len(images))
    indices = torch.linspace(0, len(images) - 1, count, dtype=torch.float64, device="cpu").long().tolist()
    items = images.load_raw(indices)
    # One of two captions is the same in half of the readings: 16 of them leave one chance in 65,536.
    readings = -(-_ITEMS_COMPARED // count) if images.conditions else 1
    contents = [_read_content(images, item) for item in items]
    for _ in range(readings):
        for item, content, again in zip(items, contents, images.load_raw(indices), strict=True):
            image, condition = _read_content(images, again)
            if image != content[0]:
                raise ValueError(
                    f"{images.name}[{item.item}] is another image each time it is asked for (a random transform?), and "
                    "a cache would keep one for ever. Move the randomness to `dataset.augment` or `dataset.flip`, "
                    "which come after the cache, or leave `loader.cache_dir` null."
                )
            if condition != content[1]:
                raise ValueError(
                    f"{images.name}[{item.item}] has another condition each time it is asked for (one of several "
                    "captions, by chance?), and a cache would keep one for ever. Let the dataset give all of them and "
                    "choose in the model, or leave `loader.cache_dir` null."
                )
    return chain.from_iterable(contents)


def _read_content(images: MapStyleImages, item: RawItem) -> tuple[bytes, bytes]:
    """Return the bytes of an item's image and condition."""
    if not images.conditions:
        return _to_bytes(item.image), b""
    try:
        condition = collate_conditions(images.name, [images.conditions.convert(item.condition, item.image)])
    except ITEM_ERRORS as error:
        if not images.replaces:
            raise with_item_context(f"{images.name}[{item.item}]", error) from error
        return _to_bytes(item.image), str(error).encode()
    parts = (_to_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode() for leaf in leaves(condition))
    return _to_bytes(item.image), b"".join(parts)


def _to_bytes(values: Tensor) -> bytes:
    return f"{values.dtype} {tuple(values.shape)}".encode() + bytes_of(values).tobytes()
