"""How batches are loaded: in this process or in workers, what becomes of bad items, how long to wait."""

import multiprocessing
import os
import shutil
from collections.abc import Callable

import torch

from ddpm_data._checks import check_float, check_int
from ddpm_data.loading.bad_items import BadItemCounter
from ddpm_data.loading.iterable import IterableBatches, IterableImages, IterableOrder
from ddpm_data.loading.loader import SHARED, MapStyleBatches, StreamLoader
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.prebatched import PrebatchedBatches, PrebatchedImages
from ddpm_data.loading.samplers import EvalSampler, StreamSampler
from ddpm_data.rng.philox import key_from
from ddpm_data.types import Stage

AnyImages = MapStyleImages | IterableImages | PrebatchedImages


class LoaderOptions:
    """How batches are loaded; the arguments are those of :class:`torch.utils.data.DataLoader`.

    Args:
        batch_size: Images a process and batch, at least 1.
        num_workers: Processes that load images; 0 loads in this one.
        prefetch_factor: Batches each worker has ready, at least 1; ``None`` is torch's default, 2.
        persistent_workers: Keep workers from one epoch to the next.
        multiprocessing_context: How workers start: ``"fork"``, ``"forkserver"`` or ``"spawn"``; ``None`` is the
            system's default.
        drop_last: Leave out an epoch's last global batch where it is incomplete.
        timeout: Seconds that workers have for a batch before the run ends with an error; 0 waits for ever.
        on_bad_item: ``"raise"``: an item that cannot be used ends the run; ``"replace"``: a neighbour takes its place.
        max_bad_fraction: The share of an epoch's images that may be replaced before the run ends, in ``[0, 1]``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: It is out of range.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        prefetch_factor: int | None,
        persistent_workers: bool,
        multiprocessing_context: str | None,
        drop_last: bool,
        timeout: float = 300,
        on_bad_item: str = "raise",
        max_bad_fraction: float = 0.01,
    ) -> None:
        self.batch_size = check_int("DDPMDataModule", "loader.batch_size", batch_size, 1)
        self.num_workers = check_int("DDPMDataModule", "loader.num_workers", num_workers, 0)
        if prefetch_factor is not None:
            prefetch_factor = check_int("DDPMDataModule", "loader.prefetch_factor", prefetch_factor, 1)
        self.prefetch_factor = prefetch_factor
        self.persistent_workers = _flag("persistent_workers", persistent_workers)
        if self.num_workers == 0 and (prefetch_factor, multiprocessing_context) != (None, None):
            raise ValueError(
                "DDPMDataModule(num_workers=0): there are no workers that could prefetch or be started. Leave "
                "`loader.prefetch_factor` and `loader.multiprocessing_context` null, or raise `loader.num_workers`."
            )
        methods = multiprocessing.get_all_start_methods()
        if multiprocessing_context not in (None, *methods):
            raise ValueError(
                f"DDPMDataModule(multiprocessing_context={multiprocessing_context!r}): workers start by "
                f"{', '.join(methods)}. Change `loader.multiprocessing_context`."
            )
        self.multiprocessing_context = multiprocessing_context
        self.drop_last = _flag("drop_last", drop_last)
        self.timeout = check_float("DDPMDataModule", "loader.timeout", timeout)
        if self.timeout < 0:
            raise ValueError(f"DDPMDataModule(timeout={timeout}): seconds, at least 0. Change `loader.timeout`.")
        if on_bad_item not in ("raise", "replace"):
            raise ValueError(
                f"DDPMDataModule(on_bad_item={on_bad_item!r}): 'raise' or 'replace'. Change `loader.on_bad_item`."
            )
        self.replaces = on_bad_item == "replace"
        self.max_bad_fraction = check_float("DDPMDataModule", "loader.max_bad_fraction", max_bad_fraction)
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(
                f"DDPMDataModule(max_bad_fraction={max_bad_fraction}): a share lies in [0, 1]. Change "
                "`loader.max_bad_fraction`."
            )

    def check_length(self, stage: Stage, length: int, world_size: int) -> None:
        """Refuse a set that would leave a process without a batch.

        Raises:
            ValueError: It is too small.
        """
        needed = world_size * self.batch_size if stage == "train" and self.drop_last else world_size
        if length < needed:
            raise ValueError(
                f"{stage} has {length} images, but {world_size} process(es) with batch_size={self.batch_size} and "
                f"drop_last={self.drop_last} need {needed} for a first batch. Lower `loader.batch_size`, set "
                "`loader.drop_last=false`, or use fewer devices."
            )

    def loader(
        self,
        images: AnyImages,
        stage: Stage,
        order: StreamSampler | EvalSampler | IterableOrder,
        world: tuple[int, int],
        seed: int,
        pin_memory: bool,
        report: Callable[[str, int], None] = lambda name, count: None,
    ) -> StreamLoader:
        """Batches of one stage.

        Args:
            images: What to load.
            stage: The stream they are served to.
            order: A sampler that says which images, or what places a source's own order.
            world: Number of processes, and which this one is.
            seed: Decides random crops, and what a dataset draws from torch's generator in a worker.
            pin_memory: Whether batches are to be copied to page-locked memory.
            report: See :class:`~ddpm_data.loading.bad_items.BadItemCounter`.

        Raises:
            ValueError: The batches that workers have ready would not fit into shared memory, or there are other
                processes than when the order was made.
        """
        if isinstance(order, StreamSampler) and (order.num_replicas, order.rank) != world:
            raise ValueError(
                f"setup() found {order.num_replicas} process(es), and now this is process {world[1]} of {world[0]}. "
                "Connect the processes (torch.distributed.init_process_group, Fabric's launch) before setup()."
            )
        dataset: MapStyleBatches | IterableBatches | PrebatchedBatches
        num_workers = self.num_workers
        if isinstance(images, MapStyleImages):
            self._check_shared(images)
            crops = stage == "train" and getattr(images.processor, "crop", "center") == "random"
            dataset = MapStyleBatches(images, stage, key_from(seed) if crops else None)
        elif isinstance(images, PrebatchedImages):
            images.check_world(world[0])
            dataset, num_workers = PrebatchedBatches(images, stage, *world), 0  # it may have workers of its own
        else:
            dataset = IterableBatches(images, stage, self.batch_size, self.drop_last and stage == "train", *world)
        loader = StreamLoader(
            dataset,
            batch_size=None,  # the sampler, or the dataset, makes whole batches
            sampler=None if isinstance(order, IterableOrder) else order,
            num_workers=num_workers,
            prefetch_factor=self.prefetch_factor if num_workers else None,
            persistent_workers=self.persistent_workers and num_workers > 0,
            multiprocessing_context=_start_method(self.multiprocessing_context) if num_workers else None,
            generator=torch.Generator().manual_seed((seed + world[1]) % 2**63),  # else drawn from the global one
            pin_memory=pin_memory,
            timeout=self.timeout if num_workers else 0,
        )
        loader.arrivals = order if isinstance(order, IterableOrder) else None
        length = -(-len(images) // world[0]) if isinstance(images, MapStyleImages) else None
        loader.counter = BadItemCounter(stage, self.max_bad_fraction, length, report)
        return loader

    def shm_bytes(self, bytes_per_image: int) -> int:
        """Bytes of shared memory that the batches take which workers have ready."""
        return self.num_workers * (self.prefetch_factor or 2) * self.batch_size * bytes_per_image

    def _check_shared(self, images: MapStyleImages) -> None:
        """Workers hand batches over in shared memory; where it is full they die of a bus error."""
        if not self.num_workers or not SHARED.is_dir():
            return
        needed = self.shm_bytes(images.bytes_per_image)
        free = shutil.disk_usage(SHARED).free
        if needed > free:
            raise ValueError(
                f"{self.num_workers} workers with {self.prefetch_factor or 2} batches of {self.batch_size} images each "
                f"need {needed / 1e6:.3g} MB of shared memory, and {SHARED} has {free / 1e6:.3g} MB free (in a "
                "container: docker run --shm-size). Lower `loader.num_workers`, `loader.prefetch_factor` or "
                "`loader.batch_size`."
            )


def cpu_count() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_method(wanted: str | None) -> str | None:
    """In a job of joblib's the default is loky's own method, by which torch's workers cannot be started."""
    methods = multiprocessing.get_all_start_methods()  # the system's default first
    is_foreign = multiprocessing.get_start_method(allow_none=True) not in (None, *methods)
    return methods[0] if wanted is None and is_foreign else wanted


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"DDPMDataModule({name}={value!r}): true or false. Change `loader.{name}`.")
    return value


Loading = LoaderOptions  # its name before 0.1, kept for 0.1
