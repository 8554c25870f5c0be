"""Sources that give their items in an order of their own: images, places of their own, and taking them up again.

Such a source (an ``IterableDataset``, a streamed or sharded set) decides which image comes when; the stream decides the
rest. It is split over processes and workers by itself or by :mod:`ddpm_data.sources.tar_shards`. An item's position is
``epoch * POSITIONS_PER_EPOCH + (c * R + r) * W + w`` for item c of worker w of W on rank r of R. No two items share a
position, but it depends on R and W.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info
from tqdm import tqdm

from ddpm_data._distributed import EpochShard, is_rank_zero
from ddpm_data.images.items import find_condition
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.bad_items import BadItem, WorkerBatch, check_same_shape, with_item_context
from ddpm_data.loading.collate import collate_conditions
from ddpm_data.loading.samplers import ENDLESS, EpochPlan, EpochPlans
from ddpm_data.sources._sharding import split_by_rank
from ddpm_data.types import BatchMeta, ImageBatch, ItemKey, Stage

POSITIONS_PER_EPOCH = 2**40 + 15  # a prime: more places than any epoch has, and epochs that differ in low-discrepancy t


class IterableImages:
    """A source's items as their processor wants them, in the source's order.

    Args:
        source: Gives items each time it is iterated over, in a worker its share of them.
        processor: How an item becomes an image.
        name: What to call it in errors.
        condition: Where an item holds its condition; ``None`` takes none.
        replaces: Whether the good item before takes the place of one that cannot be used, instead of an error.
    """

    def __init__(
        self,
        source: Iterable[object],
        processor: ItemProcessor,
        name: str,
        condition: ItemKey | None = None,
        replaces: bool = False,
    ) -> None:
        self.source = source
        self.processor = processor
        self.name = name
        self.condition = condition
        self.replaces = replaces

    def __iter__(self) -> Iterator[tuple[Tensor, Any, BadItem | None]]:
        """Images with their conditions, and what was wrong with the item that one was to be."""
        info = get_worker_info()
        where = f"{self.name}, worker {info.id}, item" if info else f"{self.name}, item"
        last: tuple[Tensor, Any] | None = None
        early: list[BadItem] = []  # before the first good item, which takes their places too
        for count, item in enumerate(self._named(where)):
            try:
                last = self._entry(item)
            except Exception as error:  # a dataset of the user's may raise anything
                wrong = with_item_context(f"{where} {count}", error)
                if not self.replaces or isinstance(error, MemoryError):
                    raise wrong from error
                fault = BadItem(count, str(wrong))
                if last is None:
                    early.append(fault)
                    continue
                yield *last, fault
                continue
            for fault in early:
                yield *last, fault
            early = []
            yield *last, None
        if early:
            raise ValueError(f"no item of {self.name} can be used; the first: {early[0].why}")

    def _entry(self, item: object) -> tuple[Tensor, Any]:
        image = self.processor.convert(self.processor.decode(item))
        return image, None if self.condition is None else find_condition(item, self.condition)

    def _named(self, where: str) -> Iterator[object]:
        """The source's items; after an error of its own there are no more, so that nothing can be replaced."""
        count, items = 0, iter(self.source)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:  # a source of the user's may raise anything
                raise with_item_context(f"{where} {count}", error) from error
            yield item
            count += 1

    def shard(self, share: EpochShard) -> "IterableImages":
        """What one process reads in one epoch."""
        images = copy.copy(self)
        images.source = split_by_rank(self.source, share)
        return images


class IterableBatches(IterableDataset[WorkerBatch]):
    """Batches of a source's images with their places, as one process or one of its workers sees them.

    Args:
        images: The source.
        stage: The stream they are served to.
        batch_size: Images a batch.
        drop_last: Whether an incomplete batch, which each worker may end with, is dropped.
        world_size: Processes.
        rank: This one.
    """

    def __init__(
        self, images: IterableImages, stage: Stage, batch_size: int, drop_last: bool, world_size: int, rank: int
    ) -> None:
        self.images = images
        self.stage = stage
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.world_size = world_size
        self.rank = rank
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch's; so that workers that stay hear of it

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is to come, before workers begin it."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[WorkerBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first, step = self.rank * workers + worker, self.world_size * workers
        entries = iter(self.images.shard(EpochShard(int(self._epoch), self.world_size, self.rank)))
        for start in itertools.count(0, self.batch_size):
            batch = list(itertools.islice(entries, self.batch_size))
            if not batch or (self.drop_last and len(batch) < self.batch_size):
                return
            images, conditions, faults = zip(*batch, strict=True)
            counts = range(start, start + len(batch))
            check_same_shape(self.images.name, counts, images)
            condition = None if self.images.condition is None else collate_conditions(self.images.name, conditions)
            about = BatchMeta(torch.tensor(counts) * step + first, self.stage, condition)
            yield WorkerBatch(ImageBatch(default_collate(list(images)), about), tuple(filter(None, faults)))


class IterableOrder:
    """Batches of a source with an order of its own, as they arrive: moved to their epoch, those seen before left out.

    Args:
        epoch: Says which one it is.
    """

    def __init__(self, epoch: Callable[[], int]) -> None:
        self.epochs = EpochPlans(
            EpochPlan(0, ENDLESS, 1, 1, drop_last=False)
        )  # counts batches: each is a place of its own
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which one it is, in place of whom was asked."""
        self.epoch = lambda: epoch

    def place_batches(self, batches: Iterator[ImageBatch], workers: int) -> Iterator[ImageBatch]:
        """The epoch's batches, after a checkpoint those it had not seen: the source is read up to there.

        Raises:
            ValueError: Two workers begin with the same images.
        """
        epoch = self.epoch()
        batches = _refuse_identical_workers(batches, workers)
        for _ in tqdm(
            range(seen := self.epochs.plan_for(epoch).start),
            "Reading up to the checkpoint",
            disable=not (seen and is_rank_zero()),
        ):
            next(batches, None)
        for images, about in batches:
            yield ImageBatch(images, about._replace(position=about.position + epoch * POSITIONS_PER_EPOCH))


def _refuse_identical_workers(batches: Iterator[ImageBatch], workers: int) -> Iterator[ImageBatch]:
    first: dict[bytes, int] = {}
    for number, batch in enumerate(batches):
        if number < workers > 1 and batch.images.min() < batch.images.max():  # blank ones may well be alike
            other = first.setdefault(blake2b(batch.images.numpy().tobytes()).digest(), number)
            if other != number:
                raise ValueError(
                    f"workers {other} and {number} begin with the same images: the source does not split itself, and "
                    "every worker would serve all of it. Set `loader.num_workers` to 0 or 1, or split it by "
                    "torch.utils.data.get_worker_info() in its __iter__."
                )
        yield batch
