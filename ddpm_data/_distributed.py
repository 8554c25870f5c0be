"""Which of several processes this is, as torch's process group knows it."""

from typing import NamedTuple

from torch import distributed


def processes() -> tuple[int, int]:
    """How many processes there are, and which this is; one, where none are connected."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def is_rank_zero() -> bool:
    """Whether this process is the one to say what is true of the whole run, and would come from each otherwise."""
    return processes()[1] == 0


class EpochShard(NamedTuple):
    """What one process is to read of a source.

    Attributes:
        epoch: Which order, of a source that has several.
        world_size: How many processes there are.
        rank: Which of them this is.
    """

    epoch: int
    world_size: int
    rank: int
