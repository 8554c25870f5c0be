"""The user's own DataLoaders: we keep their batches and order, and give each example a position."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ddpm_data._distributed import World, iterate_in_epoch
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.bad_items import WorkerBatch, with_item_context
from ddpm_data.loading.iterable import SelfOrderedImages
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.stage_images import StageBatches
from ddpm_data.rng.philox import Key
from ddpm_data.sources._epochs import tell_epoch
from ddpm_data.types import BatchMeta, ImageBatch, Stage


class PrebatchedImages(SelfOrderedImages):
    """The images of a DataLoader, in its batches.

    Args:
        loader: Gives tensors or arrays of shape ``(batch, channels, height, width)`` (or channels last), or tuples or
            dicts that hold one.
        processor: Converts the images.
        name: What errors call the loader.
        conditions: Where a batch holds its conditions, which are passed on as they are, and which of them are images,
            which are not; ``None`` takes none.
    """

    brings_workers = True

    def __init__(
        self, loader: DataLoader[Any], processor: ItemProcessor, name: str, conditions: Conditions | None = None
    ) -> None:
        self.loader = loader
        self.processor = processor
        self.name = name
        self.conditions = conditions or Conditions()
        self.epoch = 0

    def batches(self, stage: Stage, options: LoaderOptions, world: World, key: Key) -> "PrebatchedBatches":
        """Return the loader's batches.

        Raises:
            ValueError: There are several processes, and the loader would give each of them the same batches.
        """
        self.check_world(world.size)
        return PrebatchedBatches(self, stage, *world)

    def check_world(self, world_size: int) -> None:
        """Refuse a loader that would give every process the same batches.

        Raises:
            ValueError: There are several processes, and neither the loader's sampler, nor its batch sampler, nor its
                dataset splits itself over them.
        """
        sampler, batch_sampler = self.loader.sampler, self.loader.batch_sampler
        if world_size == 1 or isinstance(self.loader.dataset, IterableDataset):
            return
        parts = [sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
        if not any(_knows_its_rank(part) for part in parts):
            is_torchs = type(batch_sampler).__module__.startswith("torch.")
            kind = type(sampler if is_torchs else batch_sampler).__name__
            raise ValueError(
                f"{self.name} is a DataLoader with a {kind}, and there are {world_size} processes: each would see all "
                f"of it, since it knows no rank. Give its dataset instead (`dataset.{self.name}`), a loader with a "
                "DistributedSampler, or a batch sampler that has `num_replicas` and `rank`."
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the loader's samplers and dataset."""
        self.epoch = epoch
        batch_sampler = self.loader.batch_sampler
        for part in (self.loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None), self.loader.dataset):
            tell_epoch(part, epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        """Yield images with their conditions.

        Raises:
            OSError, RuntimeError, TypeError, ValueError: A batch cannot be used; the error names it.
        """
        for number, batch in enumerate(iterate_in_epoch(self.loader, self.epoch)):
            try:
                raw, condition = self.processor.decode_batch(batch), self.conditions.find(batch, batched=True)
                images = self.processor.convert(raw).contiguous()
                condition = self.conditions.convert(condition, raw, batched=True)
            except Exception as error:  # whatever it is, the batch is named
                raise with_item_context(f"{self.name}, batch {number}", error) from error
            yield images, condition


def _knows_its_rank(sampler: object) -> bool:
    """Tell whether a sampler, or batch sampler, is one of several that share the data."""
    names = ("num_replicas", "world_size", "rank", "process_index")  # torch's, mosaic's and accelerate's
    return isinstance(sampler, DistributedSampler) or any(hasattr(sampler, name) for name in names)


class PrebatchedBatches(StageBatches, IterableDataset[WorkerBatch]):
    """A DataLoader's batches with their positions: those of rank ``r`` of ``R`` are ``r``, ``R + r``, ``2 R + r``, ...

    Args:
        images: The batches.
        stage: The stage that gets the batches.
        world_size: Number of processes.
        rank: This process's rank.
    """

    def __init__(self, images: PrebatchedImages, stage: Stage, world_size: int, rank: int) -> None:
        self.images = images
        self.stage = stage
        self.world_size = world_size
        self.rank = rank

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.images.set_epoch(epoch)

    def __iter__(self) -> Iterator[WorkerBatch]:
        count = 0
        for images, condition in self.images:
            position = torch.arange(count, count + len(images), device="cpu") * self.world_size + self.rank
            count += len(images)
            yield WorkerBatch(ImageBatch(images, BatchMeta(position, self.stage, condition)), ())
