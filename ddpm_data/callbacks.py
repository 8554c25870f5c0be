"""Lightning callbacks."""

import time
from typing import Any

import lightning as L

from ddpm_data.types import Triple


class Throughput(L.Callback):
    """Logs ``images_per_s``: training images a second over all processes, loading included, validation left out.

    Args:
        every_n_steps: Batches between two readings; each reading is the mean since the last.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._restart()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out what happened between two epochs."""
        self._restart()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time that validation took."""
        self._restart()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # Lightning's
        batch: Triple,
        batch_idx: int,
    ) -> None:
        """Count, and log a reading when one is due."""
        self._images += len(batch.t)
        self._batches += 1
        if self._batches == self.every_n_steps:
            rate = self._images * trainer.world_size / (time.perf_counter() - self._since)
            pl_module.log("images_per_s", rate, prog_bar=True)
            self._restart()

    def _restart(self) -> None:
        self._images, self._batches, self._since = 0, 0, time.perf_counter()
