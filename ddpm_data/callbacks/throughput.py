"""The callback that measures the speed of training batches, and how their time is spent."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.hooks import RemovableHandle

from ddpm_data._checks import check_int
from ddpm_data.callbacks import _stopwatch
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.types import ConditionedTriple, Triple


class Throughput(L.Callback):
    """A callback that logs images per second in training, and the share of the time that the data side takes.

    It logs ``images_per_s``: images per second over all processes, with loading and without validation. For the batches
    of a DDPMDataModule it also logs how the time from one batch to the next is spent on the first process, as shares in
    ``[0, 1]``:

    - ``loader_share``: waiting for the loader,
    - ``transfer_share``: moving the batch to the device,
    - ``transform_share``: turning it into triples.

    The rest is the time of the model, of other callbacks and of loggers.

    On a CUDA device these are shares of the device's time. They come from events in its queue, read after the device
    has passed them, so nothing waits for it. If the loader is slower than the model, its share is the time in which the
    device had nothing to do. If the loader works while the device is busy, its share is 0.

    Args:
        every_n_steps: Batches per reading, which is their mean. A reading may span several short epochs.

    Raises:
        TypeError: ``every_n_steps`` is no whole number.
        ValueError: ``every_n_steps`` is less than 1.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = check_int("Throughput", "callbacks.throughput.every_n_steps", every_n_steps, 1)
        self._images, self._batches, self._seconds, self._since = 0, 0, 0.0, 0.0
        self._watch = _stopwatch.Stopwatch(on_cuda=False)
        self._unread: list[_stopwatch.Lap] = []
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to measure, on the clock of the training device.

        A run that resumes inside an epoch has no ``on_train_epoch_start`` for that epoch, so measuring starts here too.
        """
        self.on_train_end(trainer, pl_module)
        self._watch = _stopwatch.Stopwatch(trainer.strategy.root_device.type == "cuda")
        self._unread = []
        if isinstance(datamodule := getattr(trainer, "datamodule", None), DDPMDataModule):
            # The transfer ends where the transform begins, inside one of the DataModule's hooks.
            self._hook = datamodule.transform.register_forward_pre_hook(lambda *_: self._watch.mark("moved"))
        self._images, self._batches, self._seconds = 0, 0, 0.0
        self._begin_epoch(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the hook from the DataModule's transform."""
        if self._hook is not None:
            self._hook.remove()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time between two epochs."""
        self._begin_epoch(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time of the validation."""
        self._restart()

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Triple | ConditionedTriple,
        batch_idx: int,
    ) -> None:
        """Mark the moment at which the triple is ready."""
        self._watch.mark("made")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # Lightning's
        batch: Triple | ConditionedTriple,
        batch_idx: int,
    ) -> None:
        """Count the batch, and log a reading when one is due."""
        now = time.perf_counter()
        self._watch.lap()
        self._images += len(batch.t) if hasattr(batch, "t") else extract_batch_size(batch)
        self._batches += 1
        self._seconds += now - self._since
        self._since = now
        if self._batches == self.every_n_steps:
            pl_module.log("images_per_s", self._images * trainer.world_size / self._seconds, prog_bar=True)
            self._images, self._batches, self._seconds = 0, 0, 0.0
            laps = self._watch.take()  # also if no shares are logged: otherwise the stopwatch would keep all laps
            self._unread = laps if self._hook is not None else []
        if self._unread and _stopwatch.has_passed(self._unread):
            shares = _stopwatch.shares(self._unread)
            pl_module.log_dict({f"{name}_share": share for name, share in shares.items()})
            self._unread = []

    def _begin_epoch(self, trainer: L.Trainer) -> None:
        if isinstance(trainer.train_dataloader, StreamLoader):
            trainer.train_dataloader.watch(self._watch.mark)
        self._restart()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._watch.restart()
