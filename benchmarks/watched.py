"""Processes that answer for one file after another, so that it is known which one a process died or hung at."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import connection, get_context
from pathlib import Path
from typing import NamedTuple

WARM = 500  # answers of a worker before its memory is first looked at: pools and tables are filled by then
SHARE = 250  # files a worker is handed at once
Work = Callable[[connection.Connection, Path], None]


class Verdict(NamedTuple):
    """What came of a file.

    Attributes:
        column: Of the table.
        detail: More of it, for people.
        resident: The worker's memory by then, MB.
    """

    column: str
    detail: str = ""
    resident: float = 0.0


class Worker:
    """A process that reads the files it is handed, and what it has not answered for yet.

    Args:
        folder: Where it may write.
        work: What it does, given its end of a pipe and the folder.
    """

    def __init__(self, folder: Path, work: Work) -> None:
        context = get_context("spawn")  # torch's threads do not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, folder), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.waiting: deque[int] = deque()
        self.heard = time.monotonic() + 60  # importing torch takes a while
        self.answered = 0
        self.warm = 0.0  # MB
        self.resident: deque[float] = deque(maxlen=WARM)  # MB, lately

    def hand(self, numbers: list[int]) -> None:
        """Have some more files read."""
        self.waiting.extend(numbers)
        self.heard = max(self.heard, time.monotonic())
        self.pipe.send(numbers)

    def note(self, verdict: Verdict) -> None:
        """Keep what an answer says of memory."""
        self.heard = time.monotonic()
        self.answered += 1
        self.resident.append(verdict.resident)
        if self.answered == WARM:
            self.warm = min(self.resident)

    def grown(self) -> float:
        """MB that are not given back any more; a large image stays until Python collects its garbage."""
        return min(self.resident) - self.warm if self.answered > WARM else 0.0


def verdicts(
    pool: list[Worker], numbers: range, another: Callable[[], Worker], limit: float
) -> Iterator[tuple[int, Verdict]]:
    """What came of each file, in no order.

    Args:
        pool: Workers; ones that die or hang are replaced in it.
        numbers: The files'.
        another: Makes a worker.
        limit: Seconds a file.
    """
    shares = deque(list(numbers[start : start + SHARE]) for start in range(0, len(numbers), SHARE))
    while shares or any(worker.waiting for worker in pool):
        for place, worker in enumerate(pool):
            fault = None
            try:
                if not worker.waiting and shares:
                    worker.hand(shares.popleft())
                while worker.waiting and worker.pipe.poll():
                    worker.note(verdict := worker.pipe.recv())
                    yield worker.waiting.popleft(), verdict
            except (EOFError, ConnectionError):
                worker.process.join()
                fault = Verdict("crashes", f"the process ended with status {worker.process.exitcode}")
            if worker.waiting and time.monotonic() - worker.heard > limit:
                fault = Verdict("hangs", f"no answer after {limit:g} s")
            if fault:
                worker.process.kill()
                worker.process.join()
                yield worker.waiting.popleft(), fault
                if worker.waiting:
                    shares.append(list(worker.waiting))
                pool[place] = another()
        connection.wait([worker.pipe for worker in pool], timeout=1)
