"""Losses by timestep, while training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from ddpm_data._checks import check_int
from ddpm_data.callbacks._common import _checked_folder, _datamodule_of, _folder_of
from ddpm_data.callbacks._logging import log_picture
from ddpm_data.callbacks.throughput import Throughput as Throughput
from ddpm_data.diffusion.timestep_bins import BinLoss, TimestepBins, read_losses, write_losses
from ddpm_data.types import ConditionedTriple, Triple


class TimestepLoss(L.Callback):
    """Which steps the model does badly: the validation loss in ranges of t, over all processes.

    The model's ``validation_step`` returns the loss of each example, as a tensor of shape ``(batch,)`` or in a dict
    under ``losses``. Each range's mean is logged (``val_loss_t/0000-0099``); a range without examples is not. A fit
    also writes ``timestep_loss.csv``, which a resumed run goes on with and a new one begins anew
    (:class:`~ddpm_data.diffusion.timestep_bins.BinLoss` has its columns), and ``timestep_loss.png``.

    Args:
        buckets: Ranges that the steps are cut into.
        folder: For the files; ``None`` is the Trainer's ``log_dir``.

    Raises:
        ImportError: There is no matplotlib.
    """

    def __init__(self, buckets: int = 10, folder: str | Path | None = None) -> None:
        from ddpm_data import plots

        self.buckets = check_int("TimestepLoss", "callbacks.timestep_loss.buckets", buckets, 1)
        self.folder = _checked_folder("TimestepLoss", "callbacks.timestep_loss.folder", folder)
        self._draw = plots.timestep_losses
        self._rows: list[BinLoss] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the steps and the folder.

        Raises:
            ValueError: The data are no DDPMDataModule's.
        """
        self._process = _datamodule_of(trainer, "TimestepLoss").transform.process
        self._ranges = TimestepBins(self._process.num_timesteps, self.buckets)
        self._path = _folder_of(trainer, self.folder) / "timestep_loss.csv"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up the table of the run that is resumed, as far as it had come then."""
        self._rows = []
        if trainer.is_global_zero and trainer.global_step and self._path.exists():
            self._rows = [row for row in read_losses(self._path) if row.step <= trainer.global_step]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the sums."""
        self._sums = self._ranges.empty_sums(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # whatever validation_step returned
        batch: Triple | ConditionedTriple,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch's losses; in the sanity check only look at them.

        Raises:
            TypeError: ``validation_step`` returned something else.
        """
        self._sums = self._sums + self._ranges.sum_losses(batch.t, _losses_in(outputs, batch.t))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means, and in a fit write the files."""
        if trainer.sanity_checking:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        rows = self._ranges.to_rows(sums, self._process, trainer.current_epoch, trainer.global_step)
        means = {f"val_loss_t/{name}": row.loss for name, row in zip(self._ranges.names, rows, strict=True)}
        # They are the same on all processes; without sync_dist Lightning would warn that they might not be.
        pl_module.log_dict({name: mean for name, mean in means.items() if mean is not None}, sync_dist=True)
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self._rows = [row for row in self._rows if row.step != trainer.global_step] + rows
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_losses(self._rows, self._path)
            self._draw(self._rows, self._path.with_suffix(".png"))
            log_picture(trainer, "timestep_loss", self._path.with_suffix(".png"))


def _losses_in(outputs: object, t: Tensor) -> Tensor:
    found = outputs.get("losses") if isinstance(outputs, Mapping) else outputs
    if isinstance(found, Tensor) and found.is_floating_point() and found.shape == t.shape:
        return found.detach()
    what = f"a {type(outputs).__name__}" if outputs is not None else "nothing"
    if isinstance(found, Tensor):
        what = f"{found.dtype} of shape {tuple(found.shape)}"
    elif isinstance(outputs, Mapping):
        what = f"a dict of {', '.join(map(repr, outputs))}"
    raise TypeError(
        f"TimestepLoss: validation_step returned {what} for a batch of {len(t)}, and the loss of each example is "
        f"needed to tell steps apart: floats of shape ({len(t)},), alone or in a dict under 'losses', such as "
        'F.mse_loss(predicted, noise, reduction="none").flatten(1).mean(1). Return them from validation_step, or leave '
        "out the callback, `~callbacks.timestep_loss`."
    )
