"""This process's rank and the world size, as torch's process group knows them, and calls that other ranks must join."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, TypeVar

from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

Item = TypeVar("Item")


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


_epoch: ContextVar[int] = ContextVar("_epoch", default=0)


def find_epoch() -> int:
    """Return the epoch that :func:`iterate_in_epoch` is reading; outside of it 0."""
    return _epoch.get()


def iterate_in_epoch(source: Iterable[Item], epoch: int) -> Iterator[Item]:
    """Iterate over a source, any part of which may ask :func:`find_epoch`."""
    items: Iterator[Item] | None = None
    while True:
        token = _epoch.set(epoch)
        try:
            items = iter(source) if items is None else items
            item = next(items)
        except StopIteration:
            return
        finally:
            _epoch.reset(token)
        yield item


def get_world() -> World:
    """Ask torch's process group for world size and rank; without a group this is the only process."""
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_world_size(), distributed.get_rank())
    return World(1, 0)


def is_rank_zero() -> bool:
    """Return whether this is rank 0, which alone prints what every process would print otherwise."""
    return get_world().rank == 0


class CollectiveGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Refuses what other ranks would have to join, and remembers that it did: see :func:`refuse_collectives`.

    torch sends every collective, and every message from rank to rank, through its dispatcher, whatever name of it was
    called.
    """

    refused = False

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # as torch types it
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # as torch types it
        """Call an operation that is this process's own."""
        if func.namespace in ("c10d", "_c10d_functional"):
            self.refuse()
        return func(*args, **(kwargs or {}))

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """Raise an error instead of waiting for the other ranks."""
        self.refused = True
        raise RuntimeError("a collective was called where one rank runs alone: it would wait for the others for ever")


@contextmanager
def refuse_collectives() -> Iterator[CollectiveGuard]:
    """Have collectives of this thread raise where only one of several processes is running, and others wait for it.

    Yields:
        What tells whether one was refused; also where the caller's code has caught the error.
    """
    guard = CollectiveGuard()  # type: ignore[no-untyped-call]  # torch's
    is_alone = get_world().size == 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if is_alone or not distributed.is_available():
        yield guard
        return
    with guard, _replaced(("new_group", "init_process_group"), guard.refuse):  # they meet at a store, not in operations
        yield guard


@contextmanager
def _replaced(names: Sequence[str], function: Callable[..., object]) -> Iterator[None]:
    modules = (distributed, distributed.distributed_c10d)
    originals = [(module, name, getattr(module, name)) for module in modules for name in names]
    try:
        for module, name, _ in originals:
            setattr(module, name, function)
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
