"""From a sampler's requests, or a source's own order, to batches: in this process or in workers."""

import multiprocessing
import sys
import time
from collections.abc import Iterator

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from ddpm_data import checks
from ddpm_data.images import Images
from ddpm_data.iterables import Arrivals, IterableImages, PositionedItems
from ddpm_data.stream import EvalSampler, Request, StreamSampler
from ddpm_data.types import Examples, Place, Stage

# CPython before 3.11.10 (gh-112275): a process forked while another thread asks for the GIL may never wake up. gloo's
# threads do so when they let go of a collective's tensors; a moment later they are done. benchmarks/forks.py counts.
_MOMENT = 0.01 if sys.version_info < (3, 11, 10) else 0.0  # seconds


class Positioned(Dataset[Examples]):
    """Batches of images with their positions: ``dataset[request]``.

    Args:
        images: The images.
        stage: The stream they are served to.
    """

    def __init__(self, images: Images, stage: Stage) -> None:
        self.images = images
        self.stage = stage

    def __getitem__(self, request: Request) -> Examples:
        positions = torch.arange(request.positions.start, request.positions.stop)
        return Examples(self.images.batch(request.indices), Place(positions, self.stage))


class StreamLoader(DataLoader[Examples]):
    """A DataLoader that starts its workers at the first batch instead of at ``iter()``.

    Lightning calls ``iter()`` before ``set_epoch()``; a resumed run would get the positions of an earlier epoch.
    """

    arrivals: Arrivals | None = None

    def __iter__(self) -> Iterator[Examples]:  # type: ignore[override]  # any iterator will do for every caller
        if self.num_workers and distributed.is_available() and distributed.is_initialized():
            time.sleep(_MOMENT)
        if self.arrivals and isinstance(self.dataset, PositionedItems):
            self.dataset.set_epoch(self.arrivals.epoch())
        batches = super().__iter__()
        yield from self.arrivals.placed(batches, self.num_workers) if self.arrivals else batches

    def state_dict(self) -> dict[str, int]:
        """Nothing: the DataModule keeps the stream's place. Without this method Lightning warns of a lost place."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing, as there is nothing to load."""


class Loading:
    """How batches are loaded; the arguments are those of :class:`torch.utils.data.DataLoader`.

    Args:
        batch_size: Images a process and batch, at least 1.
        num_workers: Processes that load images; 0 loads in this one.
        prefetch_factor: Batches each worker has ready, at least 1; ``None`` is torch's default, 2.
        persistent_workers: Keep workers from one epoch to the next.
        multiprocessing_context: How workers start: ``"fork"``, ``"forkserver"`` or ``"spawn"``; ``None`` is the
            system's default.
        drop_last: Leave out an epoch's last global batch where it is incomplete.

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
    ) -> None:
        self.batch_size = checks.whole("DDPMDataModule", "loader.batch_size", batch_size, 1)
        self.num_workers = checks.whole("DDPMDataModule", "loader.num_workers", num_workers, 0)
        if prefetch_factor is not None:
            prefetch_factor = checks.whole("DDPMDataModule", "loader.prefetch_factor", prefetch_factor, 1)
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
        images: Images | IterableImages,
        stage: Stage,
        order: StreamSampler | EvalSampler | Arrivals,
        world: tuple[int, int],
        seed: int,
        pin_memory: bool,
    ) -> StreamLoader:
        """Batches of one stage.

        Args:
            images: What to load.
            stage: The stream they are served to.
            order: A sampler that says which images, or what places a source's own order.
            world: Number of processes, and which this one is.
            seed: For what a dataset draws from torch's generator in a worker.
            pin_memory: Whether batches are to be copied to page-locked memory.
        """
        dataset: Positioned | PositionedItems
        if isinstance(images, Images):
            dataset = Positioned(images, stage)
        else:
            dataset = PositionedItems(images, stage, self.batch_size, self.drop_last and stage == "train", *world)
        loader = StreamLoader(
            dataset,
            batch_size=None,  # the sampler, or the dataset, makes whole batches
            sampler=None if isinstance(order, Arrivals) else order,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch_factor,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
            multiprocessing_context=self.multiprocessing_context,
            generator=torch.Generator().manual_seed((seed + world[1]) % 2**63),  # else drawn from the global one
            pin_memory=pin_memory,
        )
        loader.arrivals = order if isinstance(order, Arrivals) else None
        return loader


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"DDPMDataModule({name}={value!r}): true or false. Change `loader.{name}`.")
    return value
