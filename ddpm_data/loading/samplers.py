"""Samplers choose the examples that this rank reads next, and their positions in the stream.

The position of a training example is ``n = epoch * len(dataset) + offset``, where ``offset`` examples of the epoch come
before it. The position of an evaluation example is its offset in the set. Everything random about an example follows
from its position, so ranks, batches and workers only divide one stream.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler, SequentialSampler

from ddpm_data.rng.permutation import RandomSubset, permute
from ddpm_data.rng.philox import Key, Purpose
from ddpm_data.types import ImageBatch

ENDLESS = 2**62  # the length of an epoch whose end is not known before it is reached
# Offsets shuffled at once: enough to spread the cost of the calls, few enough for a prompt first batch.
_BLOCK = 16384


class BatchRequest(NamedTuple):
    """A sampler's request for one batch.

    Attributes:
        positions: Positions of the examples in the stream.
        indices: Indices of the items in the dataset, int64. An array, because sending a tensor to a worker would take a
            file in shared memory.
    """

    positions: range
    indices: np.ndarray[Any, Any]


class EpochPlan(NamedTuple):
    """The division of an epoch, or of the rest of an epoch, into global batches.

    If the last examples do not fill a batch, they are dropped with ``drop_last``. Otherwise they form a smaller batch.
    If there are fewer examples than ranks, they are added to the previous batch, so that every rank gets an example. If
    there is no previous batch (a resumed epoch with a few examples left), they are dropped.

    Attributes:
        start: First offset, in ``[0, length]``.
        length: Examples per epoch.
        global_batch_size: Examples per step, over all ranks.
        world_size: Number of ranks.
        drop_last: Whether to drop an incomplete batch.
    """

    start: int
    length: int
    global_batch_size: int
    world_size: int
    drop_last: bool

    def count_batches(self) -> int:
        """Count the batches from ``start`` to the end."""
        full, rest = divmod(self.length - self.start, self.global_batch_size)
        return full + (rest >= self.world_size and not self.drop_last)

    def end(self, batch: int) -> int:
        """Return the offset after a batch; for batch -1, the start."""
        full, rest = divmod(self.length - self.start, self.global_batch_size)
        if batch < 0:
            return self.start
        if batch < full - (0 < rest < self.world_size):
            return self.start + (batch + 1) * self.global_batch_size
        return self.start + full * self.global_batch_size if self.drop_last else self.length


class EpochPlans:
    """The plans of all epochs. They are equal, except for an epoch that is resumed in the middle.

    Args:
        full: The plan of a full epoch.
    """

    def __init__(self, full: EpochPlan) -> None:
        self.full = full
        self._resumed = (0, 0)  # epoch and offset of the checkpoint
        self._ended: int | None = None

    def resume_at(self, epoch: int, offset: int, has_ended: bool = False) -> None:
        """Begin one epoch at an offset instead of at 0, or not at all where a limit had ended it there."""
        self._resumed = (epoch, offset)
        self._ended = epoch if has_ended else None

    def has_ended(self, epoch: int) -> bool:
        """Return whether an epoch was resumed at its end."""
        return epoch == self._ended

    def resize(self, global_batch_size: int) -> None:
        """Cut epochs that begin from now on into batches of another size."""
        self.full = self.full._replace(global_batch_size=global_batch_size)

    def plan_for(self, epoch: int) -> EpochPlan:
        """Return the plan of one epoch."""
        return self.full._replace(start=self._resumed[1]) if epoch == self._resumed[0] else self.full


class Order(Protocol):
    """The order in which a stage's examples reach this rank.

    Attributes:
        repeats: Whether every epoch is epoch 0 again, with its images, ``t`` and noise: Lightning's
            ``overfit_batches``.
    """

    repeats: bool

    @property
    def plans(self) -> EpochPlans | None:
        """The plans of the epochs; ``None`` in evaluation, where all epochs are the same."""
        ...

    @property
    def sampler(self) -> Sampler[BatchRequest] | None:
        """The sampler for a map-style dataset; ``None`` if the source decides its order."""
        ...

    def set_batch_size(self, batch_size: int, /) -> None:
        """Have epochs that begin from now on cut into batches of another size."""
        ...

    def set_epoch(self, epoch: int, /) -> None:
        """Say which epoch comes next."""
        ...

    def current_epoch(self) -> int:
        """Return the epoch of the stream that comes next."""
        ...

    def has_ended(self) -> bool:
        """Return whether nothing is left of that epoch, since the run was resumed at its end."""
        ...

    def place_batches(self, batches: Iterator[ImageBatch], num_workers: int, /) -> Iterator[ImageBatch]:
        """Move arriving batches to their positions in the stream."""
        ...


class _RequestSampler(DistributedSampler[BatchRequest], SequentialSampler):  # type: ignore[misc]  # of ints
    """A sampler of whole batches, which Lightning uses as it is and calls ``set_epoch`` on.

    Lightning replaces every sampler that is not a :class:`DistributedSampler`, and under ``overfit_batches`` every one
    that is not a :class:`SequentialSampler`. The base classes' ``__init__`` would ask for a dataset, and is not called.
    """

    plans: EpochPlans | None = None
    repeats = False
    epoch = 0

    @property
    def sampler(self) -> Sampler[BatchRequest]:
        """Itself: see :class:`Order`."""
        return self

    def set_batch_size(self, batch_size: int) -> None:
        """Do nothing: an order of evaluation is made anew for every loader."""

    def current_epoch(self) -> int:
        """Return the epoch of the stream that comes next."""
        return 0 if self.repeats else self.epoch

    def has_ended(self) -> bool:
        """Return whether nothing is left of that epoch, since the run was resumed at its end."""
        return self.plans is not None and self.plans.has_ended(self.epoch)

    def place_batches(self, batches: Iterator[ImageBatch], num_workers: int) -> Iterator[ImageBatch]:
        """Return the batches unchanged, because their requests contain the positions."""
        return batches


class StreamSampler(_RequestSampler):
    """This rank's share of each training epoch, shuffled, batch by batch.

    Its memory does not grow with the dataset.

    Global batches are consecutive runs of ``batch_size * world_size`` positions. Each rank takes a consecutive part, so
    that a low-discrepancy draw of ``t`` is even on every rank too.

    Args:
        length: Examples per epoch.
        batch_size: Images per process and step.
        world_size: Number of ranks.
        rank: This process's rank.
        key: The seed's key.
        drop_last: Whether to drop an incomplete global batch.
        subset: The items of the dataset that belong to the split; ``None`` takes all.
    """

    plans: EpochPlans

    def __init__(
        self,
        length: int,
        batch_size: int,
        world_size: int,
        rank: int,
        key: Key,
        drop_last: bool,
        subset: RandomSubset | None = None,
    ) -> None:
        self.plans = EpochPlans(EpochPlan(0, length, batch_size * world_size, world_size, drop_last))
        self.num_replicas = world_size
        self.rank = rank
        self.key = key
        self.subset = subset

    def set_batch_size(self, batch_size: int) -> None:
        """Have epochs that begin from now on cut into batches of another size."""
        self.plans.resize(batch_size * self.num_replicas)

    def __len__(self) -> int:
        """Return the batches of a full epoch, even if it is resumed: Lightning counts the earlier ones as done."""
        return self.plans.full.count_batches()

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]  # SequentialSampler has ints
        epoch = self.current_epoch()
        plan = self.plans.plan_for(self.epoch)

        def shuffle(offsets: Tensor) -> Tensor:
            indices = permute(offsets, plan.length, self.key, Purpose.SHUFFLE, epoch)
            return indices if self.subset is None else self.subset.indices(indices)

        ends = ((plan.end(i - 1), plan.end(i)) for i in range(plan.count_batches()))
        shares = (_take_share(*end, self.rank, self.num_replicas) for end in ends)
        return _make_requests(shares, epoch * plan.length, shuffle)


class EvalSampler(_RequestSampler):
    """This rank's share of a validation, test or prediction set: every item once, in order, none padded.

    The set is cut into ``k * world_size`` consecutive parts whose lengths differ by one at most. ``k`` is the smallest
    number that keeps the parts within ``batch_size``, as long as no part is empty. Every rank has ``k`` batches: batch
    ``b`` of rank ``r`` is part ``b * world_size + r``, so that the ranks' batches, taken in turn, are in order.

    Args:
        length: Items of the set.
        batch_size: Images per process and step, at most.
        world_size: Number of ranks.
        rank: This process's rank.
        subset: The items of the dataset that belong to the split; ``None`` takes all.
    """

    def __init__(
        self, length: int, batch_size: int, world_size: int, rank: int, subset: RandomSubset | None = None
    ) -> None:
        self.length = length
        self.subset = subset
        self.num_replicas = world_size
        self.rank = rank
        self.batches = min(-(-length // (batch_size * world_size)), length // world_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[BatchRequest]:  # type: ignore[override]  # SequentialSampler has ints
        parts = range(self.rank, self.batches * self.num_replicas, self.num_replicas)
        shares = (_take_share(0, self.length, part, self.batches * self.num_replicas) for part in parts)
        return _make_requests(shares, 0, self.subset.indices if self.subset is not None else lambda offsets: offsets)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: evaluation is the same in every epoch."""


def _take_share(start: int, stop: int, part: int, parts: int) -> range:
    length = stop - start
    return range(start + part * length // parts, start + (part + 1) * length // parts)


def _make_requests(
    shares: Iterator[range], first_position: int, find_indices: Callable[[Tensor], Tensor]
) -> Iterator[BatchRequest]:
    """Request batches for ranges of offsets, and compute the indices of many batches at once."""
    for share in shares:
        block = [share, *islice(shares, _BLOCK // len(share))]
        offsets = torch.cat([torch.arange(part.start, part.stop, device="cpu") for part in block])
        ends = list(accumulate(len(part) for part in block))[:-1]
        for part, indices in zip(block, np.split(find_indices(offsets).numpy(), ends), strict=True):
            yield BatchRequest(range(first_position + part.start, first_position + part.stop), indices)
