"""Batches as a worker or this process makes them of a sampler's requests, counted as they arrive."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from ddpm_data._checks import check_int
from ddpm_data.loading.bad_items import BadItemCounter, WorkerBatch
from ddpm_data.loading.iterable import IterableBatches, IterableOrder
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.prebatched import PrebatchedBatches
from ddpm_data.loading.samplers import BatchRequest, StreamSampler
from ddpm_data.rng.philox import Key, Purpose, words
from ddpm_data.types import BatchMeta, ImageBatch, Stage

# CPython before 3.11.10 (gh-112275): a process forked while another thread asks for the GIL may never wake up. gloo's
# threads do so when they let go of a collective's tensors; a moment later they are done. benchmarks/forks.py counts.
_MOMENT = 0.01 if sys.version_info < (3, 11, 10) else 0.0  # seconds
SHARED = Path("/dev/shm")  # memory that workers hand batches over in, where Linux has it


class MapStyleBatches(Dataset[WorkerBatch]):
    """Batches of images with their positions: ``dataset[request]``.

    Args:
        images: The images.
        stage: The stream they are served to.
        key: The seed's, where images are cropped by their positions.
    """

    def __init__(self, images: MapStyleImages, stage: Stage, key: Key | None) -> None:
        self.images = images
        self.stage = stage
        self.key = key

    def __getitem__(self, request: BatchRequest) -> WorkerBatch:
        position = torch.arange(request.positions.start, request.positions.stop)
        crop_offsets = None
        if self.key is not None:
            crop_offsets = torch.cat(words(self.key, Purpose.CROP, self.stage, position)[:2], dim=1)
        images, condition, faults = self.images.batch(request.indices, crop_offsets)
        return WorkerBatch(ImageBatch(images, BatchMeta(position, self.stage, condition)), faults)


class StreamLoader(DataLoader[WorkerBatch]):
    """A DataLoader that starts its workers at the first batch instead of at ``iter()``.

    Lightning calls ``iter()`` before ``set_epoch()``; a resumed run would get the positions of an earlier epoch.
    """

    dataset: MapStyleBatches | IterableBatches | PrebatchedBatches
    arrivals: IterableOrder | None = None
    counter: BadItemCounter
    mark: Callable[[str], None] | None = None  # told when a batch is "asked" for, and when it has "arrived"

    def __iter__(self) -> Iterator[ImageBatch]:  # type: ignore[override]  # any iterator will do for every caller
        self._tell("asked")
        if self.num_workers and distributed.is_available() and distributed.is_initialized():
            time.sleep(_MOMENT)
        if self.arrivals and isinstance(self.dataset, IterableBatches | PrebatchedBatches):
            self.dataset.set_epoch(self.arrivals.epoch())
        batches = self._counted(super().__iter__())
        for examples in self.arrivals.place_batches(batches, self.num_workers) if self.arrivals else batches:
            self._tell("arrived")
            yield examples
            self._tell("asked")

    def _tell(self, moment: str) -> None:
        if self.mark is not None:
            self.mark(moment)

    def _counted(self, batches: Iterator[WorkerBatch]) -> Iterator[ImageBatch]:
        self.counter.begin()
        try:
            for examples, faults in batches:
                self.counter.add(faults, len(examples.images))
                yield examples
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader"):
                raise
            raise RuntimeError(
                f"a worker that loads {self.counter.name} images was killed, crashed, or gave no batch within "
                f"{self.timeout:g} s ({type(error).__name__}: {error}). Look at the memory ({SHARED} too) and at the "
                "dataset; change `loader.num_workers`, `loader.prefetch_factor` or `loader.timeout`."
            ) from error
        finally:
            self.counter.end()

    def set_epoch(self, epoch: int, place: int = 0) -> None:
        """Say, in a loop without a Trainer, which epoch of the training stream is to come: 0, then 1, and so on.

        Evaluation is the same every epoch.

        Args:
            epoch: At least 0.
            place: Where in it to begin: how many of its examples all processes together have seen before. Of a source
                with an order of its own, how many of its batches this process has, which are read again and left out.

        Raises:
            TypeError: One of them is no whole number.
            ValueError: There is no such place.
        """
        epoch = check_int("StreamLoader.set_epoch", "epoch", epoch, 0)
        place = check_int("StreamLoader.set_epoch", "place", place, 0)
        order = self.arrivals or self.sampler
        if not isinstance(order, StreamSampler | IterableOrder) or self.dataset.stage != "train":
            return
        if place > order.epochs.plan.length:
            raise ValueError(
                f"StreamLoader.set_epoch(epoch={epoch}, place={place}): an epoch has {order.epochs.plan.length} "
                "examples. Count those of all processes, from the epoch's beginning: `place`."
            )
        order.epochs.resumed = (epoch, place)
        order.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Nothing: the DataModule keeps the stream's place. Without this method Lightning warns of a lost place."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing, as there is nothing to load."""
