"""Where the time of training batches goes: moments on the host's clock, or on the device's own."""

import time

import torch

# The parts of a batch's time that are the data's, each between two marks. What is left is the model's, and the time
# that callbacks and loggers take between two batches.
PARTS = {"loader": ("asked", "arrived"), "transfer": ("arrived", "moved"), "transform": ("moved", "made")}

Moment = float | torch.cuda.Event
Lap = dict[str, Moment]  # one batch: when it began, its marks, when it ended


class Stopwatch:
    """Marks the moments of one batch after the other, and adds up the parts between them.

    On a CUDA device the moments are events in its queue, so that nothing waits for it: a part is then the time in which
    the device did that, or stood idle for the want of it. The host's clock would only say how long queueing took.

    Args:
        on_cuda: Whether the batches are worked on by a CUDA device.
    """

    def __init__(self, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._marks: Lap = {}
        self._laps: list[Lap] = []

    def restart(self) -> None:
        """Begin a batch here, and forget what has been marked since the last one ended."""
        self._marks = {"began": self._now()}

    def mark(self, name: str) -> None:
        """Note the moment; of a second batch that is fetched ahead only when it has arrived."""
        if name != "asked" or name not in self._marks:
            self._marks[name] = self._now()

    def lap(self) -> None:
        """End a batch here, and begin the next."""
        ended = self._now()
        self._laps.append(self._marks | {"ended": ended})
        self._marks = {"began": ended}

    def take(self) -> list[Lap]:
        """The batches since the last call."""
        laps, self._laps = self._laps, []
        return laps

    def _now(self) -> Moment:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return event


def has_passed(laps: list[Lap]) -> bool:
    """Whether the device has come to the end of them; the host's clock always has."""
    ended = laps[-1]["ended"]
    return isinstance(ended, float) or bool(ended.query())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def shares(laps: list[Lap]) -> dict[str, float]:
    """Each part's share of the batches' time, in ``[0, 1]``; together at most 1.

    Args:
        laps: Batches that :func:`has_passed`. Marks are missing where Lightning fetched the batch ahead.
    """
    whole = sum(_seconds(lap["began"], lap["ended"]) for lap in laps)
    return {
        name: sum(_seconds(lap[first], lap[last]) for lap in laps if first in lap and last in lap) / whole
        for name, (first, last) in PARTS.items()
    }


def _seconds(first: Moment, last: Moment) -> float:
    if isinstance(first, float) or isinstance(last, float):
        assert isinstance(first, float)
        assert isinstance(last, float)
        return last - first
    return float(first.elapsed_time(last)) / 1000
