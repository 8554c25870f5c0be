"""Which of several processes this is."""

from typing import NamedTuple

from torch import distributed


class World(NamedTuple):
    """The processes that train together, and which of them this is.

    Attributes:
        size: Number of processes, at least 1.
        rank: This process, in ``[0, size)``.
    """

    size: int
    rank: int


class EpochShard(NamedTuple):
    """What one process reads of a source.

    Attributes:
        epoch: Picks the order, where a source has several.
        world_size: Number of processes.
        rank: Which of them this is.
    """

    epoch: int
    world_size: int
    rank: int


def get_world() -> World:
    """Ask torch's process group; where none is initialized there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_world_size(), distributed.get_rank())
    return World(1, 0)


def is_rank_zero() -> bool:
    """Tell whether this process prints what would otherwise be printed once per process."""
    return get_world().rank == 0
