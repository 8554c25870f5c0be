"""What decides a dataset's pixels, in one digest: two datasets that share it have the same images."""

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources.image_files import ImageFiles

_LOOKED_AT = 16  # items whose content is part of the digest


def fingerprint(images: MapStyleImages, version: int) -> str:
    """Digest a dataset: its kind and length, its files' names, sizes and times, a few items, the processor.

    A dataset that is neither files nor subsets of them is known by those few items' content alone.

    Args:
        images: The dataset and its processor.
        version: Of whatever is to be known by the digest.

    Returns:
        24 hexadecimal digits.

    Raises:
        OSError, TypeError, ValueError: An item cannot be converted.
        ValueError: An item is another each time it is asked for.
    """
    digest = blake2b(digest_size=12)
    known = [version, sorted(vars(images.processor).items()), images.condition, images.replaces]
    described = chain(known, _described(images.dataset))
    for part in described:
        digest.update(json.dumps(part).encode())
    for content in _looked_at(images):
        digest.update(f"{content.dtype} {tuple(content.shape)}".encode())
        digest.update(content.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _described(dataset: object) -> Iterator[object]:
    yield [type(dataset).__module__, type(dataset).__qualname__, len(dataset)]  # type: ignore[arg-type]  # map-style
    if isinstance(dataset, Subset):
        yield blake2b(np.asarray(dataset.indices, dtype=np.int64).tobytes()).hexdigest()
        yield from _described(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _described(part)
    elif isinstance(dataset, ImageFiles):
        yield from (_file(dataset.root, Path(name)) for name in dataset.names)
    elif isinstance(root := getattr(dataset, "root", None), str | Path):  # torchvision's folders of images
        samples = getattr(dataset, "samples", None)
        if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
            yield from (_file(Path(root), Path(sample[0])) for sample in samples)


def _file(root: Path, path: Path) -> tuple[str, int, int]:
    """Names are taken below the root, so that a folder may be moved."""
    about = (root / path).stat()
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return str(name), about.st_size, about.st_mtime_ns


def _looked_at(images: MapStyleImages) -> list[Tensor]:
    places = torch.linspace(0, len(images) - 1, min(_LOOKED_AT, len(images)), dtype=torch.float64).long().tolist()
    first, second = images.load_raw(places), images.load_raw(places)
    for (index, one, _), (_, other, _) in zip(first, second, strict=True):
        if not torch.equal(one, other):
            raise ValueError(
                f"{images.name}[{index}] is another image each time it is asked for (a random transform?), and a cache "
                "would keep one for ever. Move the randomness to `dataset.augment` or `dataset.flip`, which come after "
                "the cache, or leave `loader.cache_dir` null."
            )
    return [item.raw for item in first]
