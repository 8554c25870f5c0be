"""Which examples this process loads, in which order, and where in the stream each one stands.

A training example's position is ``n = epoch * len(dataset) + place``; an evaluation example's is its place. Positions
decide everything random about an example, so that ranks, batches and workers are only ways to cut one stream up.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from ddpm_data.rng.permutation import RandomSubset, permute
from ddpm_data.rng.philox import Key, Purpose

ENDLESS = 2**62  # the length of an epoch whose end is not known before it is met
# Places shuffled at once: enough to spread the cost of the calls, little enough for a prompt first batch.
_BLOCK = 16384


class BatchRequest(NamedTuple):
    """One batch, as a sampler asks for it: where in the stream, and which items (int64).

    An array, since a tensor on its way to a worker would take a file of shared memory.
    """

    positions: range
    indices: np.ndarray[Any, Any]


class EpochPlan(NamedTuple):
    """Where an epoch, or what is left of one, is cut into global batches.

    A rest that makes no whole batch is dropped under ``drop_last``; else it is a batch of its own, unless it has fewer
    examples than there are ranks: then it joins the batch before, so that no rank goes without. Where there is no batch
    before (a resumed epoch with a handful left), those few are dropped.

    Attributes:
        start: First place, in ``[0, length]``.
        length: Of the epoch, examples.
        batch: ImageBatch a global batch.
        world_size: Ranks.
        drop_last: Whether an incomplete batch is dropped.
    """

    start: int
    length: int
    batch: int
    world_size: int
    drop_last: bool

    def count_batches(self) -> int:
        """How many batches there are."""
        whole, rest = divmod(self.length - self.start, self.batch)
        return whole + (rest >= self.world_size and not self.drop_last)

    def end(self, batch: int) -> int:
        """The place after a batch; of batch -1, the start."""
        whole, rest = divmod(self.length - self.start, self.batch)
        if batch < 0:
            return self.start
        if batch < whole - (0 < rest < self.world_size):
            return self.start + (batch + 1) * self.batch
        return self.start + whole * self.batch if self.drop_last else self.length


class EpochPlans:
    """How each epoch is cut: all alike, but for one that is resumed from inside it.

    Args:
        plan: Of a whole epoch.
    """

    def __init__(self, plan: EpochPlan) -> None:
        self.plan = plan
        self.resumed = (0, 0)  # an epoch, and the place in it where a checkpoint left off

    def plan_for(self, epoch: int) -> EpochPlan:
        """How one epoch is cut."""
        return self.plan._replace(start=self.resumed[1]) if epoch == self.resumed[0] else self.plan


class StreamSampler(DistributedSampler[BatchRequest]):
    """This rank's share of each epoch, shuffled, a whole batch at a time; its memory does not grow with the dataset.

    Global batches are consecutive runs of ``batch_size * world_size`` positions; each rank takes a consecutive part, so
    that a low-discrepancy draw of ``t`` is even on every rank too.

    A :class:`DistributedSampler` in name, so that Lightning uses it as it is and calls ``set_epoch``.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        world_size: int,
        rank: int,
        key: Key,
        drop_last: bool,
        part: RandomSubset | None = None,
    ) -> None:
        self.epochs = EpochPlans(EpochPlan(0, length, batch_size * world_size, world_size, drop_last))
        self.num_replicas = world_size
        self.rank = rank
        self.key = key
        self.part = part
        self.epoch = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, also in one that is resumed: Lightning counts those done before as done."""
        return self.epochs.plan.count_batches()

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch = self.epoch
        plan = self.epochs.plan_for(epoch)

        def shuffled(places: Tensor) -> Tensor:
            indices = permute(places, plan.length, self.key, Purpose.SHUFFLE, epoch)
            return indices if self.part is None else self.part.indices(indices)

        ends = ((plan.end(i - 1), plan.end(i)) for i in range(plan.count_batches()))
        shares = (_share(*end, self.rank, self.num_replicas) for end in ends)
        return _requests(shares, epoch * plan.length, shuffled)


class EvalSampler(DistributedSampler[BatchRequest]):
    """This rank's share of a validation, test or prediction set: every item once, in order, none padded.

    The set is cut into ``k * world_size`` consecutive parts that differ by one in length at most, with the smallest
    ``k`` that keeps them within ``batch_size``, as far as no part is empty then: every rank has ``k`` batches.
    Batch ``b`` of rank ``r`` is part ``b * world_size + r``, so that the ranks' batches, in turn, are in order.
    """

    def __init__(
        self, length: int, batch_size: int, world_size: int, rank: int, part: RandomSubset | None = None
    ) -> None:
        self.length = length
        self.part = part
        self.num_replicas = world_size
        self.rank = rank
        self.batches = min(-(-length // (batch_size * world_size)), length // world_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[BatchRequest]:
        parts = range(self.rank, self.batches * self.num_replicas, self.num_replicas)
        shares = (_share(0, self.length, part, self.batches * self.num_replicas) for part in parts)
        return _requests(shares, 0, self.part.indices if self.part is not None else lambda places: places)

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same every epoch."""


def _share(start: int, stop: int, part: int, parts: int) -> range:
    length = stop - start
    return range(start + part * length // parts, start + (part + 1) * length // parts)


def _requests(shares: Iterator[range], offset: int, indices_of: Callable[[Tensor], Tensor]) -> Iterator[BatchRequest]:
    """Requests for ranges of places; the indices of many are computed at once."""
    for first in shares:
        block = [first, *islice(shares, _BLOCK // len(first))]
        places = torch.cat([torch.arange(share.start, share.stop) for share in block])
        ends = list(accumulate(len(share) for share in block))[:-1]
        for share, indices in zip(block, np.split(indices_of(places).numpy(), ends), strict=True):
            yield BatchRequest(range(offset + share.start, offset + share.stop), indices)
