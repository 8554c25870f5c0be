"""Lightning callbacks."""

import time
from typing import Any

import lightning as L

from ddpm_data import checks
from ddpm_data.types import Triple


class Throughput(L.Callback):
    """Logs ``images_per_s``: training images a second over all processes, loading included, validation left out.

    Args:
        every_n_steps: Batches a reading, which is their mean; short epochs share one.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = checks.whole("Throughput", "callbacks.throughput.every_n_steps", every_n_steps, 1)
        self._images, self._batches, self._seconds, self._since = 0, 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out what happened between two epochs."""
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time that validation took."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # Lightning's
        batch: Triple,
        batch_idx: int,
    ) -> None:
        """Count, and log a reading when one is due."""
        now = time.perf_counter()
        self._images += len(batch.t)
        self._batches += 1
        self._seconds += now - self._since
        self._since = now
        if self._batches == self.every_n_steps:
            pl_module.log("images_per_s", self._images * trainer.world_size / self._seconds, prog_bar=True)
            self._images, self._batches, self._seconds = 0, 0, 0.0
