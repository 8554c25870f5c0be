"""A process for the fuzzer to lose; by itself, since it imports nothing that takes long."""

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.watched import Verdict


def unwell(pipe: Connection, folder: Path) -> None:
    """Dies at file 3, hangs at file 5."""
    while True:
        for number in pipe.recv():
            if number == 3:
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60 * (number == 5))
            pipe.send(Verdict("images"))
