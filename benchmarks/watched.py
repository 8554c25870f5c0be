"""Worker processes that answer for each file, so that we know at which file a process died or hung."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import connection, get_context
from pathlib import Path
from typing import NamedTuple

WARM_UP = 500  # files a worker reads before its memory is first noted: by then pools and tables are filled
SHARE = 250  # files that a worker is given at once
Work = Callable[[connection.Connection, Path], None]


class Verdict(NamedTuple):
    """The result of reading one file.

    Attributes:
        column: The column of the table that counts it.
        detail: More about it, for people.
        resident: The worker's memory after the file, in MB.
    """

    column: str
    detail: str = ""
    resident: float = 0.0


class Worker:
    """A process that reads the files it is given, and the files that it has not answered for yet.

    Args:
        folder: Folder that it may write to.
        work: The function it runs, with its end of a pipe and the folder.
    """

    def __init__(self, folder: Path, work: Work) -> None:
        context = get_context("spawn")  # torch's threads do not survive a fork
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=work, args=(worker_end, folder), daemon=True)
        self.process.start()
        worker_end.close()  # so that the pipe ends with the process
        self.waiting: deque[int] = deque()
        self.last_answer = time.monotonic() + 60  # importing torch takes a while
        self.answers = 0
        self.warm_memory = 0.0  # MB
        self.memory: deque[float] = deque(maxlen=WARM_UP)  # MB, after each of the latest files

    def give(self, numbers: list[int]) -> None:
        """Give the worker more files to read."""
        self.waiting.extend(numbers)
        self.last_answer = max(self.last_answer, time.monotonic())
        self.pipe.send(numbers)

    def note_answer(self, verdict: Verdict) -> None:
        """Note when an answer came, and the memory it reports."""
        self.last_answer = time.monotonic()
        self.answers += 1
        self.memory.append(verdict.resident)
        if self.answers == WARM_UP:
            self.warm_memory = min(self.memory)

    def memory_growth(self) -> float:
        """Return the MB that the worker has gained and does not give back.

        Single readings may be higher: a large image stays in memory until Python collects its garbage.
        """
        return min(self.memory) - self.warm_memory if self.answers > WARM_UP else 0.0


def collect_verdicts(
    pool: list[Worker], numbers: range, make_worker: Callable[[], Worker], limit: float
) -> Iterator[tuple[int, Verdict]]:
    """Have files read, and yield each file's number and verdict, in no particular order.

    Args:
        pool: Workers. Those that die or hang are replaced in this list.
        numbers: The files' numbers.
        make_worker: Makes a new worker.
        limit: Seconds that a file may take.
    """
    shares = deque(list(numbers[start : start + SHARE]) for start in range(0, len(numbers), SHARE))
    while shares or any(worker.waiting for worker in pool):
        for index, worker in enumerate(pool):
            fault = None
            try:
                if not worker.waiting and shares:
                    worker.give(shares.popleft())
                while worker.waiting and worker.pipe.poll():
                    worker.note_answer(verdict := worker.pipe.recv())
                    yield worker.waiting.popleft(), verdict
            except (EOFError, ConnectionError):
                worker.process.join()
                fault = Verdict("crashes", f"the process ended with status {worker.process.exitcode}")
            if worker.waiting and time.monotonic() - worker.last_answer > limit:
                fault = Verdict("hangs", f"no answer after {limit:g} s")
            if fault:
                worker.process.kill()
                worker.process.join()
                yield worker.waiting.popleft(), fault
                if worker.waiting:
                    shares.append(list(worker.waiting))
                pool[index] = make_worker()
        connection.wait([worker.pipe for worker in pool], timeout=1)
