"""A callback that real jobs are given, and a function that runs them: real signals at moments that a test can name."""

import os
import signal
from pathlib import Path

import lightning as L

from tests.conftest import ROOT
from tests.groups import started


class Send(L.Callback):
    """Sends signals once each, to this process alone or to its group, as a terminal does.

    Args:
        events: By moment the name of a signal, or ``none``. ``step 6`` is the end of that step, ``validation 8`` the
            first batch of the validation after it.
        notes: A folder that tells a resumed run what was sent.
        to_group: Whether also the workers, and the other ranks, get the signal.
    """

    def __init__(self, events: dict[str, str], notes: str, to_group: bool = False) -> None:
        self.events, self.notes, self.to_group = events, Path(notes), to_group

    def send(self, trainer: L.Trainer, moment: str) -> None:
        name, note = self.events.get(moment, "none"), self.notes / moment
        if name == "none" or not trainer.is_global_zero or note.exists():
            return
        note.touch()
        number = signal.Signals[name]
        os.killpg(os.getpgid(0), number) if self.to_group else os.kill(os.getpid(), number)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.send(trainer, f"step {trainer.global_step}")

    def on_validation_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if not trainer.sanity_checking:
            self.send(trainer, f"validation {trainer.global_step}")


def shell(command: str, cwd: Path) -> tuple[int, str]:
    """Run a command line in a shell of its own session; its status and what it printed."""
    with started(["sh", "-c", f"exec {command}"], cwd, PYTHONPATH=str(ROOT)) as running:
        return running.finished()


def printed_command(printed: str) -> str:
    """The command line that an interrupted job prints last."""
    lines = printed.splitlines()
    return next(line for line in lines[::-1] if line.startswith("  "))
