"""Commands that start processes of their own: none outlives its test, also where one of them hangs."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def started(command: list[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command at work in a folder; at the end it is killed with all it has started. Both outputs are one pipe."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # One by one, since torchrun puts each of its processes into a group of its own.
        for number in (*_descendants(process.pid), process.pid):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # those whose parent has died before them
        process.wait()


def _descendants(number: int) -> Iterator[int]:
    """Where Linux tells."""
    for path in Path(f"/proc/{number}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, path.read_text().split()):
                yield from _descendants(child)
                yield child


def finished(
    command: list[str], folder: Path, timeout: float = 120, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """A command's status and what it printed."""
    with started(command, folder, **(environment or {})) as process:
        said, _ = process.communicate(timeout=timeout)
    return process.returncode, said
