"""Commands that start processes of their own: none outlives its test, also where one of them hangs."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

# Seconds until a command counts as hung: ten times what the slowest takes on two busy cores, so that none fails for
# being slow. What a test says of time, it says with a bound of its own.
PATIENCE = 1200


class Started(NamedTuple):
    """A command at work, and the file that both of its outputs go to: pipes of several would have to be emptied."""

    process: subprocess.Popen[str]
    output: IO[str]

    def finished(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Its status and what it printed."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self.output.seek(0)
            raise AssertionError(f"still at work after {timeout} s: {self.output.read()[-3000:]}") from error
        # Lightning's first rank may end before another one has said why: on a busy machine it would be killed too soon.
        deadline = time.monotonic() + PATIENCE / 10
        while _is_at_work(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.output.seek(0)
        return code, self.output.read()


@contextmanager
def started(command: list[str], folder: Path, **environment: str) -> Iterator[Started]:
    """A command at work in a folder; at the end it is killed with all it has started."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | environment,
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Started(process, output)
        finally:
            # One by one, since torchrun puts each of its processes into a group of its own.
            for number in _descendants(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also those whose parent has died before them
            process.wait()


def finished(command: list[str], folder: Path, timeout: float = PATIENCE) -> tuple[int, str]:
    """A command's status and what it printed."""
    with started(command, folder) as running:
        return running.finished(timeout)


def _is_at_work(group: int) -> bool:
    """Whether a process of the group is left that has not ended, where Linux tells."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def _descendants(number: int) -> list[int]:
    """Where Linux tells."""
    found: list[int] = []
    for path in Path(f"/proc/{number}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, path.read_text().split()):
                found += [child, *_descendants(child)]
    return found
