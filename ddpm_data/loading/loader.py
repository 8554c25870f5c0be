"""The DataLoader for one stage. It yields batches and counts replaced items."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from ddpm_data._checks import check_int
from ddpm_data._distributed import World
from ddpm_data._keys import find_naming
from ddpm_data.loading.bad_items import BadItemCounter, WorkerBatch
from ddpm_data.loading.collate import on_cpu
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import Order
from ddpm_data.loading.stage_images import StageBatches, StageImages
from ddpm_data.loading.worker import (
    check_importable,
    end_with_process,
    explain_lost_workers,
    start_worker,
    wait_before_fork,
)
from ddpm_data.rng.philox import key_from
from ddpm_data.types import ImageBatch, Stage


class StreamLoader(DataLoader[WorkerBatch]):
    """A DataLoader that starts its workers at the first batch instead of at ``iter()``.

    Lightning calls ``iter()`` before ``set_epoch()``. Workers that start at ``iter()`` would give a resumed run the
    positions of an earlier epoch.

    Args:
        dataset: The dataset that makes the batches.
        order: The order of the batches.
        counter: The counter of replaced items.
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
        self.naming_keys: Callable[[], AbstractContextManager[None]] = nullcontext

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call ``watcher("asked")`` when a batch is requested, and ``watcher("arrived")`` when it arrives."""
        self._watcher = watcher

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]  # any iterator will do for every caller
        with self.naming_keys():
            yield from self._place_batches()

    def _place_batches(self) -> Iterator[ImageBatch]:
        if self.order.has_ended():
            return
        self._notify("asked")
        if self.num_workers:
            context = self.multiprocessing_context
            check_importable(self.counter.name, context and context.get_start_method(), self.dataset)
            self.worker_init_fn = partial(start_worker, find_naming())
            wait_before_fork()
        self.dataset.set_epoch(self.order.current_epoch())
        with on_cpu():  # where torch draws its workers' seed
            batches = super().__iter__()
        end_with_process(batches)
        for batch in self.order.place_batches(self._count(batches), self.num_workers):
            self._notify("arrived")
            yield batch
            self._notify("asked")
        if not self.counter.seen and self.order.sampler is None:
            raise ValueError(
                f"{self.counter.name} gave no images in epoch {self.order.current_epoch()}. A source is iterated over "
                "once per epoch. Each time, its __iter__ must return a new iterator that starts from the beginning. "
                f"Change `dataset.{self.dataset.stage}`."
            )

    def _notify(self, moment: str) -> None:
        if self._watcher is not None:
            self._watcher(moment)

    def _count(self, batches: Iterator[WorkerBatch]) -> Iterator[ImageBatch]:
        self.counter.begin()
        try:
            while True:
                with explain_lost_workers(self.counter.name, self.timeout):
                    batch, bad_items = next(batches, (None, ()))
                if batch is None:
                    return
                self.counter.add(bad_items, len(batch.images))
                yield batch
        finally:
            self.counter.end()

    def set_epoch(self, epoch: int, offset: int = 0) -> None:
        """Set the next epoch of the training stream. In a loop without a Trainer, call this before each epoch.

        For validation, test and prediction this has no effect.

        Args:
            epoch: The epoch, counted from 0.
            offset: The number of the epoch's examples that all processes together have already seen. For an iterable
                source, the number of batches that this process has already seen. They are read again and skipped.

        Raises:
            TypeError: ``epoch`` or ``offset`` is no whole number.
            ValueError: The epoch has fewer examples.
        """
        epoch = check_int("StreamLoader.set_epoch", "epoch", epoch, 0)
        offset = check_int("StreamLoader.set_epoch", "offset", offset, 0)
        plans = self.order.plans
        if plans is None:
            return
        if offset > plans.full.length:
            raise ValueError(
                f"StreamLoader.set_epoch(epoch={epoch}, offset={offset}): an epoch has only {plans.full.length} "
                "examples. Set `offset` to the number of this epoch's examples that all processes have seen."
            )
        plans.resume_at(epoch, offset)
        self.order.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return nothing: the DataModule saves the position. Without this method Lightning warns that it is lost."""
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
        images: The images to load.
        stage: The stage that gets the batches.
        order: The order of the batches.
        options: The loader's options.
        world: The number of processes, and this process's rank.
        seed: The seed for random crops, and for a dataset's draws from torch's generator in a worker.
        pin_memory: Whether to copy batches to page-locked memory.
        counter: The counter of replaced items; the default one only prints.

    Raises:
        ValueError: The workers' prefetched batches would not fit into shared memory, or the processes have changed
            since the order was made.
    """
    planned_world = (getattr(order, "num_replicas", world.size), getattr(order, "rank", world.rank))
    if planned_world != world:
        raise ValueError(
            f"setup() found {planned_world[0]} process(es), and now this is process {world.rank} of {world.size}. "
            "Connect the processes (torch.distributed.init_process_group, Fabric's launch) before setup()."
        )
    num_workers = 0 if images.brings_workers else options.num_workers
    length = None if images.length is None else -(-images.length // world.size)
    return StreamLoader(
        images.batches(stage, options, world, key_from(seed)),
        order,
        counter or BadItemCounter(stage, options.max_bad_fraction, length),
        batch_size=None,  # the sampler or the dataset makes whole batches
        sampler=order.sampler,
        num_workers=num_workers,
        prefetch_factor=options.prefetch_factor if num_workers else None,
        persistent_workers=options.persistent_workers and num_workers > 0,
        multiprocessing_context=options.start_method if num_workers else None,
        generator=torch.Generator().manual_seed(
            (seed + world.rank) % 2**63
        ),  # otherwise drawn from the global generator
        pin_memory=pin_memory,
        timeout=options.timeout if num_workers else 0,
    )
