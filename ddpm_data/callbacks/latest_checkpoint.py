"""The callback that keeps a run resumable: a checkpoint every few steps, and one when the run is interrupted."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from ddpm_data._checks import check_int
from ddpm_data.callbacks._common import check_folder

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, kill and preemption, SLURM's warning; Windows lacks the last
_SECONDS_BETWEEN_PRESSES = 1.0  # torchrun sends a Ctrl-C on to processes that the terminal has already told


class LatestCheckpoint(ModelCheckpoint):
    """A callback that overwrites ``latest.ckpt`` every few steps, and writes it when a signal ends the run.

    On Ctrl-C (SIGINT), SIGTERM or SIGUSR1, ``fit`` finishes the step, writes the checkpoint and raises ``SystemExit``
    with 128 plus the signal's number: 130, 143 or 138. A validation is not finished; the resumed run repeats it. A
    second Ctrl-C ends the run at once, without a checkpoint.

    With several processes it is enough that one of them gets the signal: all stop after the same step. The first
    process alone exits with that status, the others with 0, because Lightning kills the first one if another fails.
    If Lightning requeues SLURM jobs on SIGUSR1, it does so after the step, too, once ``latest.ckpt`` is written.
    Lightning alone would save wherever the signal meets the program, perhaps in the middle of an optimizer step.

    Args:
        dirpath: Folder of ``latest.ckpt``. ``None`` is ``checkpoints`` in the logger's folder, as for Lightning's
            ``ModelCheckpoint``.
        every_n_train_steps: Optimizer steps between two checkpoints. A run that is killed loses at most so many.

    Raises:
        TypeError: ``every_n_train_steps`` is no whole number, or ``dirpath`` is no path.
        ValueError: ``every_n_train_steps`` is less than 1.
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_train_steps: int = 100) -> None:
        check_int("LatestCheckpoint", "callbacks.latest.every_n_train_steps", every_n_train_steps, 1)
        super().__init__(
            check_folder("LatestCheckpoint", "callbacks.latest.dirpath", dirpath),
            "latest",
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        self._received = 0
        self._received_at = 0.0
        self._group: distributed.ProcessGroup | None = None
        self._requeue: Callable[[int, None], object] | None = None  # Lightning's handler of SIGUSR1
        self._receive: object = None  # ours

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder. A resumed run finds files in it, so Lightning's warning of them is left out."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty", UserWarning)
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the signals of an earlier run."""
        self._received, self._group, self._requeue = 0, _make_cpu_group(), None

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals, now that Lightning has set its own handlers."""
        self._listen(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals, also in a run without a sanity check."""
        super().on_train_start(trainer, pl_module)
        self._listen(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        """End the run if a signal came: the step before is finished, and its metrics are logged."""
        self._stop_if_told(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the run if a signal came in its last step, so that nothing that follows ``fit`` begins."""
        super().on_train_end(trainer, pl_module)
        self._stop_if_told(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        """End the run if a signal came. Several processes may have different numbers of batches, so they go on."""
        if trainer.world_size == 1:
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a checkpoint that waited for the validation, and end the run if a signal came."""
        super().on_validation_end(trainer, pl_module)
        self._stop_if_told(trainer)

    def _listen(self, trainer: L.Trainer) -> None:
        """Replace the handlers of signals until Lightning restores those of before the run, when ``fit`` ends.

        Lightning's own handler of SIGTERM calls a collective wherever the signal meets the program, and lets the run
        end with status 0.
        """
        if trainer.state.fn != "fit" or threading.current_thread() is not threading.main_thread():
            return
        owner = os.getpid()

        def receive(number: int, _: FrameType | None) -> None:
            if os.getpid() != owner:  # a process that was forked from this one
                return
            if not self._received:
                self._received, self._received_at = number, time.monotonic()
                if number == signal.SIGINT and trainer.is_global_zero:
                    os.write(2, b"\nFinishing this step, then saving what was trained. ")
                    os.write(2, b"Press Ctrl-C again to stop at once.\n")
            elif number == signal.SIGINT and time.monotonic() - self._received_at > _SECONDS_BETWEEN_PRESSES:
                _end_at_once(trainer, number)

        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is None:
                continue
            before = signal.signal(number, receive)
            if name == "SIGUSR1" and callable(before) and before is not self._receive:
                self._requeue = before
        self._receive = receive

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        """Save the checkpoint, and end the run or have it requeued, if a process has received a signal.

        Raises:
            SystemExit: One has, and the job is not requeued.
        """
        if trainer.state.fn != "fit":
            return
        number = self._received if trainer.world_size == 1 else _highest(self._received, self._group)
        if not number:
            return
        # Where max_steps ends an epoch early, Lightning counts it as finished: a resumed run would skip its rest.
        is_cut = trainer.fit_loop.done and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not is_cut and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if self._requeue is not None and number == signal.SIGUSR1:
            self._received = 0
            self._requeue(number, None)
            return  # SLURM ends the run
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


def _make_cpu_group() -> distributed.ProcessGroup | None:
    """Return a group of all processes that works on CPU tensors; ``None`` is the default group, or no group at all.

    With it the processes can agree after every step, and none waits for its device.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_backend() == "gloo":
        return None
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)  # torch gives a number to processes that are not in it
    return group


def _highest(number: int, group: distributed.ProcessGroup | None) -> int:
    """Return the highest of all processes' numbers."""
    tensor = torch.tensor([number])
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group)
    return int(tensor)


def _end_at_once(trainer: L.Trainer, number: int) -> None:
    """End this process, and those that Lightning started from it.

    Raises:
        SystemExit: Always.
    """
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))
    raise SystemExit(128 + number)
