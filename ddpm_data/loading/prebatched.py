"""DataLoaders of the user's own, taken as they are: their batches, in their order, with places of our own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from ddpm_data.images.items import channels_come_last, find_condition, find_image
from ddpm_data.images.processor import ItemProcessor
from ddpm_data.loading.bad_items import WorkerBatch, with_item_context
from ddpm_data.types import BatchMeta, ImageBatch, ItemKey, Stage


class PrebatchedImages:
    """A DataLoader's batches as their processor wants them.

    Args:
        loader: Gives tensors or arrays of shape ``(batch, channels, height, width)`` (or channels last), or tuples or
            dicts that hold one.
        processor: How images become what is noised.
        name: What to call it in errors.
        condition: Where a batch holds its conditions, which are passed on as they are; ``None`` takes none.
    """

    def __init__(self, loader: DataLoader[Any], processor: ItemProcessor, name: str, condition: ItemKey | None) -> None:
        self.loader = loader
        self.processor = processor
        self.name = name
        self.condition = condition

    def check_world(self, world_size: int) -> None:
        """Refuse a loader that would give every process the same.

        Raises:
            ValueError: There are several processes, and it does not know.
        """
        sampler, source = self.loader.sampler, self.loader.dataset
        splits_itself = isinstance(source, IterableDataset) or isinstance(sampler, DistributedSampler)
        if world_size > 1 and not splits_itself and type(self.loader.batch_sampler).__module__.startswith("torch."):
            raise ValueError(
                f"{self.name} is a DataLoader with a {type(sampler).__name__}, and there are {world_size} processes: "
                f"each would see all of it. Give its dataset instead (`dataset.{self.name}`), or a loader with a "
                "DistributedSampler."
            )

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader's samplers the epoch, as Lightning would."""
        for sampler in (self.loader.sampler, getattr(self.loader.batch_sampler, "sampler", None), self.loader.dataset):
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        """Images with their conditions.

        Raises:
            OSError, RuntimeError, TypeError, ValueError: Something is wrong with a batch, which is named.
        """
        for number, batch in enumerate(self.loader):
            try:
                images = self.processor.convert(self._images(batch)).contiguous()
                condition = None if self.condition is None else find_condition(batch, self.condition)
            except Exception as error:  # whatever it is, the batch is to be named
                raise with_item_context(f"{self.name}, batch {number}", error) from error
            yield images, condition

    def _images(self, batch: object) -> Tensor:
        found = find_image(batch, self.processor.image_key, batched=True)
        values = torch.from_numpy(np.ascontiguousarray(found)) if isinstance(found, np.ndarray) else found
        assert isinstance(values, Tensor)
        is_last = not self.processor.channels_first and channels_come_last(
            values.shape[1:], isinstance(found, np.ndarray)
        )
        return values.permute(0, 3, 1, 2) if is_last else values


class PrebatchedBatches(IterableDataset[WorkerBatch]):
    """A DataLoader's batches with their places: those of process r of R are r, R + r, 2 R + r, ...

    Args:
        batches: The batches.
        stage: The stream they are served to.
        world_size: Processes.
        rank: This one.
    """

    def __init__(self, batches: PrebatchedImages, stage: Stage, world_size: int, rank: int) -> None:
        self.batches = batches
        self.stage = stage
        self.world_size = world_size
        self.rank = rank

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is to come."""
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[WorkerBatch]:
        count = 0
        for images, condition in self.batches:
            position = torch.arange(count, count + len(images)) * self.world_size + self.rank
            count += len(images)
            yield WorkerBatch(ImageBatch(images, BatchMeta(position, self.stage, condition)), ())
