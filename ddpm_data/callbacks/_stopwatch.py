"""A stopwatch for training batches, on the host's clock or on the CUDA device's own."""

import time

import torch

# The parts of a batch's time that the data takes, each between two marks. The rest is the model's time, and the time
# that callbacks and loggers take between two batches.
PARTS = {"loader": ("asked", "arrived"), "transfer": ("arrived", "moved"), "transform": ("moved", "made")}

Moment = float | torch.cuda.Event
Lap = dict[str, Moment]  # one batch: when it began, its marks, when it ended


class Stopwatch:
    """A stopwatch that marks moments in one batch after another, so that the time between them can be added up.

    On a CUDA device the moments are events in the device's queue, so nothing waits for it. The time between two events
    is the time in which the device did that part, or had nothing to do. The host's clock would only say how long it
    took to queue the work.

    Args:
        on_cuda: Whether a CUDA device works on the batches.
    """

    def __init__(self, on_cuda: bool) -> None:
        self._on_cuda = on_cuda
        self._marks: Lap = {}
        self._laps: list[Lap] = []

    def restart(self) -> None:
        """Begin a batch now, and forget the marks made since the last one ended."""
        self._marks = {"began": self._now()}

    def mark(self, name: str) -> None:
        """Mark the moment.

        Lightning may fetch a second batch ahead. Then ``"asked"`` stays where it was, and the other marks move.
        """
        if name != "asked" or name not in self._marks:
            self._marks[name] = self._now()

    def lap(self) -> None:
        """End a batch now, and begin the next."""
        ended = self._now()
        self._laps.append(self._marks | {"ended": ended})
        self._marks = {"began": ended}

    def take(self) -> list[Lap]:
        """Return the batches that ended since the last call."""
        laps, self._laps = self._laps, []
        return laps

    def _now(self) -> Moment:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        event.record()
        return event


def has_passed(laps: list[Lap]) -> bool:
    """Tell whether the device has reached the end of these batches. On the host's clock this is always so."""
    ended = laps[-1]["ended"]
    return isinstance(ended, float) or bool(ended.query())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def shares(laps: list[Lap]) -> dict[str, float]:
    """Compute each part's share of the batches' time, in ``[0, 1]``. Together they are at most 1.

    Args:
        laps: Batches that :func:`has_passed`. Marks are missing where Lightning fetched the batch ahead.
    """
    total = sum(_seconds(lap["began"], lap["ended"]) for lap in laps)
    return {
        name: sum(_seconds(lap[first], lap[last]) for lap in laps if first in lap and last in lap) / total
        for name, (first, last) in PARTS.items()
    }


def _seconds(first: Moment, last: Moment) -> float:
    if isinstance(first, float) or isinstance(last, float):
        assert isinstance(first, float)
        assert isinstance(last, float)
        return last - first
    return float(first.elapsed_time(last)) / 1000
