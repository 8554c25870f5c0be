"""The loader: batches of one stage, counted as they arrive."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ddpm_data._checks import check_int
from ddpm_data._distributed import World
from ddpm_data.loading.bad_items import BadItemCounter, WorkerBatch
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import Order
from ddpm_data.loading.stage_images import StageBatches, StageImages
from ddpm_data.loading.worker import naming_lost_workers, wait_before_fork
from ddpm_data.rng.philox import key_from
from ddpm_data.types import ImageBatch, Stage


class StreamLoader(DataLoader[WorkerBatch]):
    """A DataLoader that starts its workers at the first batch instead of at ``iter()``.

    Lightning calls ``iter()`` before ``set_epoch()``; a resumed run would get the positions of an earlier epoch.

    Args:
        dataset: Makes the batches.
        order: In which order they come.
        counter: Counts the items that were replaced.
        options: Any other option of :class:`torch.utils.data.DataLoader`.
    """

    dataset: StageBatches
    # What accelerate.Accelerator.prepare leaves as it is: the order is shared out to the processes already.
    _is_accelerate_prepared = True

    def __init__(
        self,
        dataset: StageBatches,
        order: Order,
        counter: BadItemCounter,
        **options: Any,  # noqa: ANN401  # DataLoader's own, which Lightning also fills in when it makes a loader anew
    ) -> None:
        super().__init__(dataset, **options)
        self.order = order
        self.counter = counter
        self._watcher: Callable[[str], None] | None = None

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Have a function told when a batch is ``"asked"`` for, and when it has ``"arrived"``."""
        self._watcher = watcher

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]  # any iterator will do for every caller
        self._tell("asked")
        if self.num_workers:
            wait_before_fork()
        self.dataset.set_epoch(self.order.current_epoch())
        for batch in self.order.place_batches(self._count(super().__iter__()), self.num_workers):
            self._tell("arrived")
            yield batch
            self._tell("asked")
        if not self.counter.seen and self.order.sampler is None:
            raise ValueError(
                f"{self.counter.name} gave no images in epoch {self.order.current_epoch()}. A source is iterated over "
                "once per epoch, so its __iter__ has to begin anew each time: it must not return an iterator that it "
                f"keeps. Change `dataset.{self.dataset.stage}`."
            )

    def _tell(self, moment: str) -> None:
        if self._watcher is not None:
            self._watcher(moment)

    def _count(self, batches: Iterator[WorkerBatch]) -> Iterator[ImageBatch]:
        self.counter.begin()
        try:
            while True:
                with naming_lost_workers(self.counter.name, self.timeout):
                    batch, bad_items = next(batches, (None, ()))
                if batch is None:
                    return
                self.counter.add(bad_items, len(batch.images))
                yield batch
        finally:
            self.counter.end()

    def set_epoch(self, epoch: int, offset: int = 0) -> None:
        """Say which epoch of the training stream comes next, in a loop without a Trainer: 0, then 1, and so on.

        Evaluation is the same in every epoch.

        Args:
            epoch: At least 0.
            offset: Where to begin in the epoch: how many of its examples all processes together have seen before. For
                an iterable source, how many of its batches this process has seen; they are read again and left out.

        Raises:
            TypeError: One of them is no whole number.
            ValueError: The epoch has fewer examples.
        """
        epoch = check_int("StreamLoader.set_epoch", "epoch", epoch, 0)
        offset = check_int("StreamLoader.set_epoch", "offset", offset, 0)
        plans = self.order.plans
        if plans is None:
            return
        if offset > plans.full.length:
            raise ValueError(
                f"StreamLoader.set_epoch(epoch={epoch}, offset={offset}): an epoch has {plans.full.length} examples. "
                "Count those of all processes, from the epoch's beginning: `offset`."
            )
        plans.resume_at(epoch, offset)
        self.order.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the DataModule keeps the position. Without this method Lightning warns that it is lost."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Do nothing, as there is nothing to load."""


def make_loader(
    images: StageImages,
    stage: Stage,
    order: Order,
    options: LoaderOptions,
    world: World,
    seed: int,
    pin_memory: bool = False,
    counter: BadItemCounter | None = None,
) -> StreamLoader:
    """Make the loader of one stage.

    Args:
        images: What to load.
        stage: The stream that the batches are served to.
        order: In which order.
        options: How.
        world: The processes, and which one this is.
        seed: Decides random crops, and what a dataset draws from torch's generator in a worker.
        pin_memory: Whether batches are copied to page-locked memory.
        counter: Counts replaced items; by default one that only prints.

    Raises:
        ValueError: The batches that workers keep ready would not fit into shared memory, or there are other processes
            than when the order was made.
    """
    planned = (getattr(order, "num_replicas", world.size), getattr(order, "rank", world.rank))
    if planned != world:
        raise ValueError(
            f"setup() found {planned[0]} process(es), and now this is process {world.rank} of {world.size}. Connect "
            "the processes (torch.distributed.init_process_group, Fabric's launch) before setup()."
        )
    num_workers = 0 if images.brings_workers else options.num_workers
    length = None if images.length is None else -(-images.length // world.size)
    return StreamLoader(
        images.batches(stage, options, world, key_from(seed)),
        order,
        counter or BadItemCounter(stage, options.max_bad_fraction, length),
        batch_size=None,  # the sampler, or the dataset, makes whole batches
        sampler=order.sampler,
        num_workers=num_workers,
        prefetch_factor=options.prefetch_factor if num_workers else None,
        persistent_workers=options.persistent_workers and num_workers > 0,
        multiprocessing_context=options.start_method if num_workers else None,
        generator=torch.Generator().manual_seed((seed + world.rank) % 2**63),  # else drawn from the global one
        pin_memory=pin_memory,
        timeout=options.timeout if num_workers else 0,
    )
