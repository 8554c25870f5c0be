"""This process's rank and the world size, as torch's process group knows them."""

from typing import NamedTuple

from torch import distributed


class World(NamedTuple):
    """The number of processes that train together, and this process's number.

    Attributes:
        size: World size: the number of processes, at least 1.
        rank: This process's number, in ``[0, size)``.
    """

    size: int
    rank: int


class EpochShard(NamedTuple):
    """The share of a source that one process reads in one epoch.

    Attributes:
        epoch: The epoch, which selects the order in a source that has several.
        world_size: Number of processes.
        rank: This process's number, in ``[0, world_size)``.
    """

    epoch: int
    world_size: int
    rank: int


def get_world() -> World:
    """Ask torch's process group for world size and rank; without a group this is the only process."""
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_world_size(), distributed.get_rank())
    return World(1, 0)


def is_rank_zero() -> bool:
    """Return whether this is rank 0, which alone prints what every process would print otherwise."""
    return get_world().rank == 0
