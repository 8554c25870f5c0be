"""Scans of a dataset: by index in worker processes, or in the dataset's own order in this process."""

from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import NamedTuple, cast

from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ddpm_data._distributed import EpochShard
from ddpm_data.cli.checking.survey import ItemStats, ItemStatsDataset
from ddpm_data.loading.bad_items import BadItem
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.worker import call_in_worker
from ddpm_data.sources._paths import path_of
from ddpm_data.sources.tar_shards import refuse_damaged

_BLOCK_SIZE = 32  # items that a worker reads between two reports
_MAX_PREVIEWS = 64  # images to show
_MAX_SIDE = 128  # pixels of a preview's longer side
_REREAD = 16  # items that are read twice from an iterable dataset, to compare their order


class Preview(NamedTuple):
    """An image to show, and what it is.

    Attributes:
        image: The image as the processor delivers it, made smaller if it is large.
        number: Its index in the dataset, or its place in the dataset's own order.
        label: Its class, if its condition is one.
        path: Its file, if that is known.
    """

    image: Tensor
    number: int
    label: int | str | None
    path: str | None


class ScanResult(NamedTuple):
    """The result of scanning one dataset.

    Attributes:
        images: The dataset.
        stats: The statistics of its items.
        previews: Up to 64 images, spread evenly.
        order: A remark on the order of an iterable dataset; empty for a map-style dataset.
    """

    images: MapStyleImages | IterableImages
    stats: ItemStats
    previews: list[Preview]
    order: str = ""


def scan_map_style(images: MapStyleImages, options: LoaderOptions) -> ScanResult:
    """Read every item of a map-style dataset.

    Args:
        images: The dataset, and how its items become images.
        options: How many worker processes read (0 reads in this one), and how they start.

    Raises:
        RuntimeError: A worker was killed or crashed.
    """
    blocks, stats = ItemStatsDataset(images, _BLOCK_SIZE), ItemStats()
    num_workers = min(options.num_workers, len(blocks))
    # Statistics are no tensors, so the loader hands them on unchanged.
    loader = DataLoader(
        blocks,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=options.start_method if num_workers else None,
    )
    with tqdm(desc=f"Checking {images.name}", total=len(images.dataset), unit="image") as bar:
        try:
            for block_stats in loader:
                stats.merge(block_stats)
                bar.update(len(block_stats))
        except RuntimeError as error:
            raise RuntimeError(
                f"a worker was killed or crashed at an item of {images.name} soon after item {bar.n} ({error}). Check "
                "the memory. --num-workers 0 shows which item it is."
            ) from error
    good = stats.rows["index"]
    previews = call_in_worker(options, images.name, _read_previews, images, good[_spread_evenly(len(good))].tolist())
    return ScanResult(images, stats, previews)


def scan_iterable(images: IterableImages, max_items: int) -> ScanResult:
    """Read the first items of an iterable dataset in its own order, in this process.

    Args:
        images: The dataset, and how its items become images.
        max_items: Items to read at most.
    """
    with tqdm(desc=f"Checking {images.name}", total=max_items, unit="image") as bar:
        stats, previews = _scan_in_order(images, max_items, bar)
    again, _ = _scan_in_order(images, min(_REREAD, len(stats)), tqdm(disable=True))
    digests, first_digests = again.rows["content"], stats.rows["content"]
    order = "the same" if digests.tolist() == first_digests[: len(digests)].tolist() else "another"
    limit = f"; only the first {max_items:,} items were checked" if len(stats) == max_items else ""
    previews = [previews[index] for index in _spread_evenly(len(previews))]
    return ScanResult(images, stats, previews, f"its own, {order} each time{limit}")


def _scan_in_order(images: IterableImages, max_items: int, bar: tqdm) -> tuple[ItemStats, list[Preview]]:
    """Read a dataset's first items; returns their statistics, and fewer than 128 previews, evenly spaced."""
    stats, previews, step = ItemStats(), list[Preview](), 1
    items = _read_source(images)
    for index in range(max_items):
        started = perf_counter()
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception as error:  # after an error an iterator gives no more items
            stats.bad_items.append(BadItem(index, f"the source itself: {type(error).__name__}: {error}"))
            break
        stats.seconds += perf_counter() - started
        image = stats.add_item(index, partial(refuse_damaged, item), images.processor, images.conditions)
        bar.update()
        if image is not None and index % step == 0:
            previews.append(Preview(_shrink(image), index, stats.label, None))
        if len(previews) == 2 * _MAX_PREVIEWS:  # the number of items is unknown, so drop half of them
            previews, step = previews[::2], 2 * step
    return stats, previews


def _read_source(images: IterableImages) -> Iterator[object]:
    """Read a source's items as one process without workers does in training."""
    yield from images.shard(EpochShard(0, 1, 0)).source


def _read_previews(images: MapStyleImages, indices: list[int]) -> list[Preview]:
    stats, previews, get = ItemStats(), [], images.items.__getitem__
    for index in indices:
        image = stats.add_item(index, partial(get, index), images.processor, images.conditions)
        if image is not None:
            previews.append(Preview(_shrink(image), index, stats.label, path_of(images.dataset, index)))
    return previews


def _spread_evenly(count: int) -> list[int]:
    """Choose up to 64 indices below ``count``, evenly spread."""
    number = min(_MAX_PREVIEWS, count)
    return [index * (count - 1) // max(1, number - 1) for index in range(number)]


def _shrink(image: Tensor) -> Tensor:
    side = max(image.shape[-2:])
    if side <= _MAX_SIDE:
        return image
    size = [max(1, length * _MAX_SIDE // side) for length in image.shape[-2:]]
    return cast(Tensor, F.resize(image, size, antialias=True))
