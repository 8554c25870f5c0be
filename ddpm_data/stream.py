"""Which examples this process loads, in which order, and where in the stream each one stands.

A training example's position is ``n = epoch * len(dataset) + place``; an evaluation example's is its place. Positions
decide everything random about an example, so that ranks, batches and workers are only ways to cut one stream up.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ddpm_data.images import Images, same_shape
from ddpm_data.permutation import permute
from ddpm_data.philox import Key, Purpose
from ddpm_data.types import Examples, Stage

_BLOCK = (
    16384  # places shuffled at once: enough to spread the cost of the calls, little enough for a prompt first batch
)


class Request(NamedTuple):
    """One batch, as a sampler asks for it: where in the stream, and which items."""

    positions: list[int]
    indices: list[int]


class StreamSampler(DistributedSampler[Request]):
    """This rank's share of each epoch, shuffled, a whole batch at a time; its memory does not grow with the dataset.

    Global batches are consecutive runs of ``batch_size * world_size`` positions; each rank takes a consecutive part, so
    that a low-discrepancy draw of ``t`` is even on every rank too. With ``drop_last=False`` what is left at the end is
    shared out as evenly as it goes; fewer examples than ranks join the batch before, so that no rank goes without.

    A :class:`DistributedSampler` in name, so that Lightning uses it as it is and calls ``set_epoch``.
    """

    def __init__(self, length: int, batch_size: int, world_size: int, rank: int, key: Key, drop_last: bool) -> None:
        self.length = length
        self.global_batch = batch_size * world_size
        self.num_replicas = world_size
        self.rank = rank
        self.key = key
        self.epoch = 0
        whole, rest = divmod(length, self.global_batch)
        joins = whole and rest < world_size
        self.batches = whole if drop_last or joins or not rest else whole + 1
        self._end = whole * self.global_batch if drop_last else length

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Request]:
        at_once = max(1, _BLOCK * self.num_replicas // self.global_batch)
        for first in range(0, self.batches, at_once):
            own = [self._own(batch) for batch in range(first, min(first + at_once, self.batches))]
            places = torch.cat([torch.arange(part.start, part.stop) for part in own])
            indices = permute(places, self.length, self.key, Purpose.SHUFFLE, self.epoch).tolist()
            for part in own:
                offset = self.epoch * self.length
                yield Request([offset + place for place in part], indices[: len(part)])
                del indices[: len(part)]

    def _own(self, batch: int) -> range:
        start = batch * self.global_batch
        stop = self._end if batch == self.batches - 1 else start + self.global_batch
        return _share(start, stop, self.rank, self.num_replicas)


class EvalSampler(DistributedSampler[Request]):
    """This rank's share of a validation, test or prediction set: every item once, in order, none padded.

    The set is cut into ``k * world_size`` consecutive parts that differ by one in length at most, with the smallest
    ``k`` that keeps them within ``batch_size`` (or one item each): every rank has ``k`` batches, and none is empty.
    """

    def __init__(self, length: int, batch_size: int, world_size: int, rank: int) -> None:
        self.length = length
        self.num_replicas = world_size
        self.rank = rank
        self.batches = min(-(-length // (batch_size * world_size)), length // world_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Request]:
        for batch in range(self.batches):
            own = _share(0, self.length, batch * self.num_replicas + self.rank, self.batches * self.num_replicas)
            yield Request(list(own), list(own))

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same every epoch."""


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
        images = self.images.__getitems__(request.indices)
        same_shape(self.images.name, request.indices, images)
        # default_collate stacks straight into shared memory when it runs in a worker.
        return Examples(default_collate(images), torch.tensor(request.positions), self.stage)


class StreamLoader(DataLoader[Examples]):
    """A DataLoader that starts its workers at the first batch instead of at ``iter()``.

    Lightning calls ``iter()`` before ``set_epoch()``; a resumed run would get the positions of an earlier epoch.
    """

    def __iter__(self) -> Iterator[Examples]:  # type: ignore[override]  # any iterator will do for every caller
        yield from super().__iter__()


def split(key: Key, length: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of a training and a validation part, each in order, int64; the same for the same key and length."""
    held_out = round(length * fraction)
    starts = range(0, length, _BLOCK)
    blocks = [permute(torch.arange(i, min(i + _BLOCK, length)), length, key, Purpose.SPLIT) for i in starts]
    order = torch.cat(blocks) if blocks else torch.arange(0)
    return order[held_out:].sort().values, order[:held_out].sort().values


def _share(start: int, stop: int, part: int, parts: int) -> range:
    length = stop - start
    return range(start + part * length // parts, start + (part + 1) * length // parts)
