"""The fingerprint of a dataset: two datasets that share it have the same images."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ddpm_data._bytes import all_equal, bytes_of
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles
from ddpm_data.sources._arrays import resolve_indices

_ITEMS_COMPARED = 16  # items whose content is part of the digest


def fingerprint(images: MapStyleImages, version: int) -> str:
    """Digest what decides a dataset's pixels.

    That is its kind and length, its files' names, sizes and times, the content of a few items, and the processor. A
    dataset that is neither files nor subsets of them is known by those few items' content alone.

    Args:
        images: The dataset and its processor.
        version: Of whatever the digest names.

    Returns:
        24 hexadecimal digits.

    Raises:
        OSError, TypeError, ValueError: An item cannot be converted.
        ValueError: An item is another each time it is asked for.
    """
    digest = blake2b(digest_size=12)
    options = [version, sorted(vars(images.processor).items()), images.condition, images.replaces]
    for part in chain(options, _describe(images.dataset)):
        digest.update(json.dumps(part).encode())
    for content in _load_sample(images):
        digest.update(f"{content.dtype} {tuple(content.shape)}".encode())
        digest.update(bytes_of(content).data)
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
        yield from (_describe_file(dataset.root, Path(name)) for name in dataset.names)
    elif isinstance(root := getattr(dataset, "root", None), str | Path):  # torchvision's folders of images
        samples = getattr(dataset, "samples", None)
        if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
            yield from (_describe_file(Path(root), Path(sample[0])) for sample in samples)


def _describe_file(root: Path, path: Path) -> tuple[str, int, int]:
    """Return a file's name below the root (so that a folder may be moved), size and time."""
    stat = (root / path).stat()
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return name.as_posix(), stat.st_size, stat.st_mtime_ns


def _load_sample(images: MapStyleImages) -> list[Tensor]:
    count = min(_ITEMS_COMPARED, len(images))
    indices = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long().tolist()
    first, second = images.load_raw(indices), images.load_raw(indices)
    for item, again in zip(first, second, strict=True):
        if not all_equal([item.image], [again.image]):
            raise ValueError(
                f"{images.name}[{item.item}] is another image each time it is asked for (a random transform?), and a "
                "cache would keep one for ever. Move the randomness to `dataset.augment` or `dataset.flip`, which come "
                "after the cache, or leave `loader.cache_dir` null."
            )
    return [item.image for item in first]
