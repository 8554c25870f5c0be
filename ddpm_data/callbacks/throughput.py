"""How fast training batches come, and where their time goes."""

import time
from typing import Any

import lightning as L
from torch.utils.hooks import RemovableHandle

from ddpm_data._checks import check_int
from ddpm_data.callbacks import _stopwatch
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.loading.loader import StreamLoader
from ddpm_data.types import ConditionedTriple, Triple


class Throughput(L.Callback):
    """Logs how fast training batches come and what part of their time the data takes; validation is left out.

    ``images_per_s``: images a second over all processes, loading included. Of a DDPMDataModule's batches also the
    shares, in ``[0, 1]``, of the time from one batch to the next, on the first process: ``loader_share`` (waiting for
    the loader), ``transfer_share`` (to the device), ``transform_share`` (making the triple). What is left is the
    model's, other callbacks' and loggers'.

    On CUDA devices the shares are of the device's time, by events in its queue that are read once it has come to them:
    nothing waits for it. A loader slower than the model shows as the share of the time in which the device had nothing
    to do; one whose work is hidden behind the device's shows as none.

    Args:
        every_n_steps: Batches a reading, which is their mean; short epochs share one.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = check_int("Throughput", "callbacks.throughput.every_n_steps", every_n_steps, 1)
        self._images, self._batches, self._seconds, self._since = 0, 0, 0.0, 0.0
        self._watch = _stopwatch.Stopwatch(on_cuda=False)
        self._unread: list[_stopwatch.Lap] = []
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to watch the batches."""
        self.on_train_end(trainer, pl_module)
        self._watch = _stopwatch.Stopwatch(trainer.strategy.root_device.type == "cuda")
        self._unread = []
        if isinstance(datamodule := getattr(trainer, "datamodule", None), DDPMDataModule):
            # The transfer ends where the transform begins, inside a hook of the DataModule's.
            self._hook = datamodule.transform.register_forward_pre_hook(lambda *_: self._watch.mark("moved"))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the DataModule as it was."""
        if self._hook is not None:
            self._hook.remove()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out what happened between two epochs."""
        if isinstance(trainer.train_dataloader, StreamLoader):
            trainer.train_dataloader.mark = self._watch.mark
        self._restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time that validation took."""
        self._restart()

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Triple | ConditionedTriple,
        batch_idx: int,
    ) -> None:
        """The triple is there."""
        self._watch.mark("made")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # Lightning's
        batch: Triple | ConditionedTriple,
        batch_idx: int,
    ) -> None:
        """Count, and log a reading when one is due."""
        now = time.perf_counter()
        self._watch.lap()
        self._images += len(batch.t)
        self._batches += 1
        self._seconds += now - self._since
        self._since = now
        if self._batches == self.every_n_steps:
            pl_module.log("images_per_s", self._images * trainer.world_size / self._seconds, prog_bar=True)
            self._images, self._batches, self._seconds = 0, 0, 0.0
            laps = self._watch.take()  # also where nobody asks for the shares: it would keep every batch
            self._unread = laps if self._hook is not None else []
        if self._unread and _stopwatch.has_passed(self._unread):
            shares = _stopwatch.shares(self._unread)
            pl_module.log_dict({f"{name}_share": share for name, share in shares.items()})
            self._unread = []

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._watch.restart()
