"""The console that the commands and jobs print to."""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STATUS = 128 + 13  # what a shell says of a command that SIGPIPE has ended


@contextmanager
def allow_closed_output() -> Iterator[None]:
    """End without a traceback if who reads what is printed has ended before, such as ``head``.

    Raises:
        SystemExit: The output is closed; status 141.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # Python has none if it was started with a closed one
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout.fileno()):
            raise  # it was another pipe, such as a worker's
        with open(os.devnull, "w") as nowhere:  # for what is left in the buffer, which Python prints as it ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise SystemExit(_STATUS) from None


def _is_closed(descriptor: int) -> bool:
    """Return whether nobody reads what is written to a pipe."""
    if not hasattr(select, "poll"):
        return True  # Windows does not tell
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def escape_unprintable() -> None:
    """Let ``print`` escape characters that the console's encoding lacks, instead of ending the command.

    A file name may hold any character. Windows gives output that is sent to a file a code page of 256 of them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
