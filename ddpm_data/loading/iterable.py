"""Iterable sources, which decide the order of their images.

Each item gets its own position in the stream. Sources are split over processes and workers by themselves or by
:mod:`ddpm_data.sources._sharding`. The position of item ``c`` of worker ``w`` of ``W`` on rank ``r``
of ``R`` is ``epoch * POSITIONS_PER_EPOCH + (c * R + r) * W + w``. No two items share a position, but it depends on
``R`` and ``W``.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from ddpm_data._bytes import bytes_of
from ddpm_data._distributed import EpochShard, World, is_rank_zero, iterate_in_epoch
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.bad_items import BadItem, PeakCounter, WorkerBatch, check_same_shape, with_item_context
from ddpm_data.loading.collate import collate_conditions, collate_images
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import ENDLESS, EpochPlan, EpochPlans, Order
from ddpm_data.loading.stage_images import StageBatches
from ddpm_data.rng.philox import Key
from ddpm_data.sources._sharding import split_by_rank
from ddpm_data.sources._undecoded import stream_without_decoding
from ddpm_data.sources.tar_shards import refuse_damaged
from ddpm_data.types import BatchMeta, ImageBatch, Stage

POSITIONS_PER_EPOCH = (
    2**40 + 15
)  # more than any epoch has examples; a prime, so that low-discrepancy t differs by epoch
_ITEMS_INSPECTED = 32  # of a worker's, for a warning


class IterableOrder:
    """The order in which batches of an iterable source arrive: see :class:`~ddpm_data.loading.samplers.Order`.

    After a resume, the batches that were seen before are read again and skipped.

    Args:
        epoch: A function that returns the epoch, for loops that do not call ``set_epoch``; ``None`` in evaluation.
    """

    sampler = None

    def __init__(self, epoch: Callable[[], int] | None = None) -> None:
        # For iterable sources, offsets count batches: one batch is one "example" of the plan.
        self.plans = EpochPlans(EpochPlan(0, ENDLESS, 1, 1, drop_last=False)) if epoch else None
        self._find_epoch = epoch or (lambda: 0)
        self.repeats = False

    def set_batch_size(self, batch_size: int) -> None:
        """Do nothing: the order counts batches of any size."""

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch."""
        self._find_epoch = lambda: epoch

    def current_epoch(self) -> int:
        """Return the epoch of the stream that comes next."""
        return 0 if self.repeats else self._find_epoch()

    def has_ended(self) -> bool:
        """Return whether nothing is left of that epoch, since the run was resumed at its end."""
        return self.plans is not None and self.plans.has_ended(self._find_epoch())

    def place_batches(self, batches: Iterator[ImageBatch], num_workers: int) -> Iterator[ImageBatch]:
        """Move the epoch's batches to their positions. After a resume, skip the batches that were seen before.

        Raises:
            ValueError: Two workers begin with the same images.
        """
        epoch = self.current_epoch()
        skipped = self.plans.plan_for(self._find_epoch()).start if self.plans else 0
        batches = _refuse_identical_workers(batches, num_workers)
        for _ in tqdm(range(skipped), "Reading up to the checkpoint", disable=not (skipped and is_rank_zero())):
            next(batches, None)
        for images, meta in batches:
            yield ImageBatch(images, meta._replace(position=meta.position + epoch * POSITIONS_PER_EPOCH))


class SelfOrderedImages:
    """The base of iterable and prebatched images: the source decides their order.

    See :class:`~ddpm_data.loading.stage_images.StageImages`.
    """

    length = None
    is_strided = True

    def inspect(self, options: LoaderOptions | None = None, warns: bool = True) -> None:
        """Do nothing: reading items here could use up the source."""

    def first_items(self, count: int, options: LoaderOptions | None = None) -> None:
        """Return nothing: reading items here could use up the source."""

    def train_order(self, options: LoaderOptions, world: World, key: Key, epoch: Callable[[], int]) -> Order:
        """Return the source's own order."""
        return IterableOrder(epoch)

    def eval_order(self, options: LoaderOptions, world: World) -> Order:
        """Return the source's own order."""
        return IterableOrder()

    def stream_identity(self, options: LoaderOptions, world: World) -> dict[str, int]:
        """Return what positions depend on: how many processes and workers share the source, and how they batch it."""
        return {"world_size": world.size, "batch_size": options.batch_size, "num_workers": options.num_workers}

    def name_items(self) -> dict[str, str]:
        """Return nothing: each process has its own items."""
        return {}


class IterableImages(SelfOrderedImages):
    """The images of an iterable source, in the source's order.

    Args:
        source: Gives items each time it is iterated over; in a worker, that worker's share of them.
        processor: Makes an image of an item.
        name: What errors call the source.
        conditions: Where an item holds its conditions, and which of them are images; ``None`` takes none.
        replaces: Whether the good item before takes the place of one that cannot be used, instead of an error.
    """

    brings_workers = False

    def __init__(
        self,
        source: Iterable[object],
        processor: ItemProcessor,
        name: str,
        conditions: Conditions | None = None,
        replaces: bool = False,
    ) -> None:
        self.source = source
        self.processor = processor
        self.name = name
        self.conditions = conditions or Conditions()
        self.replaces = replaces
        self._share = EpochShard(0, 1, 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Any, BadItem | None]]:
        """Yield images with their conditions, and the item that was bad where one was replaced.

        What :meth:`~ddpm_data.loading.map_style.MapStyleImages.inspect` warns of before training, this warns of on the
        way: once, in the first worker.
        """
        info = get_worker_info()
        is_first = (self._share.epoch, self._share.rank) == (0, 0)
        peaks, is_told = PeakCounter(), not is_first or (info is not None and info.id > 0)
        for count, example in enumerate(self._load_examples(peaks)):
            if count == _ITEMS_INSPECTED and not is_told:
                is_told = True
                peaks.warn(self.name)
            yield example
        if not is_told:
            peaks.warn(self.name)

    def _load_examples(self, peaks: PeakCounter) -> Iterator[tuple[Tensor, Any, BadItem | None]]:
        info = get_worker_info()
        where = f"{self.name}, worker {info.id}, item" if info else f"{self.name}, item"
        last: tuple[Tensor, Any] | None = None
        leading: list[BadItem] = []  # bad items before the first good one, which takes their places too
        for count, item in enumerate(self._iterate_source(where)):
            try:
                last = self._load_example(item)
                if count < _ITEMS_INSPECTED:
                    peaks.add(self.processor.find_peak(item))
            except Exception as error:  # a user's dataset may raise anything
                named_error = with_item_context(f"{where} {count}", error, could_replace=not self.replaces)
                if not self.replaces or isinstance(error, MemoryError):
                    raise named_error from error
                bad_item = BadItem(count, str(named_error))
                if last is None:
                    leading.append(bad_item)
                    continue
                yield *last, bad_item
                continue
            for bad_item in leading:
                yield *last, bad_item
            leading = []
            yield *last, None
        if leading:
            raise ValueError(f"no item of {self.name} can be used; the first: {leading[0].reason}")

    def shard(self, shard: EpochShard) -> "IterableImages":
        """Return what one process reads in one epoch."""
        images = copy.copy(self)
        images._share = shard
        images.source = stream_without_decoding(self.source, lambda source: split_by_rank(source, shard))
        return images

    def batches(self, stage: Stage, options: LoaderOptions, world: World, key: Key) -> "IterableBatches":
        """Return this rank's batches."""
        return IterableBatches(self, stage, options.batch_size, options.drop_last and stage == "train", *world)

    def _load_example(self, item: object) -> tuple[Tensor, Any]:
        refuse_damaged(item)
        condition = self.conditions.find(item)
        raw = self.processor.decode(item)
        return self.processor.convert(raw), self.conditions.convert(condition, raw)

    def _iterate_source(self, where: str) -> Iterator[object]:
        """Yield the source's items. An error of the source ends its iteration, so it cannot be replaced."""
        count, items = 0, iterate_in_epoch(self.source, self._share.epoch)
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except Exception as error:  # a user's source may raise anything
                raise with_item_context(f"{where} {count}", error) from error
            yield item
            count += 1


class IterableBatches(StageBatches, IterableDataset[WorkerBatch]):
    """Batches of a source's images with their positions, as one process or one of its workers makes them.

    Args:
        images: The source.
        stage: The stage that gets the batches.
        batch_size: Images per batch.
        drop_last: Whether an incomplete batch, which each worker may end with, is dropped.
        world_size: Number of processes.
        rank: This process's rank.
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
        self._epoch = torch.zeros((), dtype=torch.int64, device="cpu")
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # torch's; so that persistent workers see the change

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, before workers begin it."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[WorkerBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first, step = self.rank * workers + worker, self.world_size * workers
        examples = iter(self.images.shard(EpochShard(int(self._epoch), self.world_size, self.rank)))
        for start in itertools.count(0, self.batch_size):
            batch = list(itertools.islice(examples, self.batch_size))
            if not batch or (self.drop_last and len(batch) < self.batch_size):
                return
            images, conditions, bad_items = zip(*batch, strict=True)
            counts = range(start, start + len(batch))
            check_same_shape(self.images.name, counts, images)
            condition = collate_conditions(self.images.name, conditions) if self.images.conditions else None
            meta = BatchMeta(torch.tensor(counts, device="cpu") * step + first, self.stage, condition)
            yield WorkerBatch(
                ImageBatch(collate_images(self.images.name, images), meta), tuple(filter(None, bad_items))
            )


def _refuse_identical_workers(batches: Iterator[ImageBatch], num_workers: int) -> Iterator[ImageBatch]:
    first: dict[bytes, int] = {}
    for number, batch in enumerate(batches):
        if number < num_workers > 1 and batch.images.min() < batch.images.max():  # blank ones may well be alike
            other = first.setdefault(blake2b(bytes_of(batch.images).data).digest(), number)
            if other != number:
                raise ValueError(
                    f"workers {other} and {number} begin with the same images: the source does not split itself, and "
                    "every worker would serve all of it. Set `loader.num_workers` to 0 or 1, or split it by "
                    "torch.utils.data.get_worker_info() in its __iter__."
                )
        yield batch
