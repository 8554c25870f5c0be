"""Measure the training loss by ranges of t, and give :class:`LossAwareTimesteps` its tables."""

import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ddpm_data.diffusion.loss_aware import BINS, LossAwareTimesteps
from ddpm_data.diffusion.timestep_bins import TimestepBins
from ddpm_data.diffusion.transform import ForwardDiffusion

_KEY = "ddpm_data_loss_aware"  # of the state in a checkpoint


class LossAwareTables(L.Callback):
    """Sums the squares of the losses over all processes, and replaces the table of ``t``.

    The DataModule adds it to the Trainer right behind its StreamCheckpoint. So the sums hold a batch before any other
    callback can write a checkpoint of it. Losses of an unfinished gradient accumulation are kept apart, because a
    resumed run repeats its batches.

    Args:
        transform: The batch transform whose timesteps are loss-aware.
    """

    def __init__(self, transform: ForwardDiffusion) -> None:
        assert isinstance(transform.timesteps, LossAwareTimesteps)
        self.transform = transform
        self.timesteps = transform.timesteps
        self.bins = TimestepBins(transform.process.num_timesteps, BINS)
        self.number = 0  # of the table; 0 is uniform
        self.shares: list[int] | None = None
        self._sums = self._window = self.bins.empty_sums(torch.device("cpu"))
        self._step = 0
        transform.use_shares(None)

    def attach(self, trainer: L.Trainer) -> None:
        """Become the second of the Trainer's callbacks, and replace the one of an earlier ``fit``."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector of the Trainer's
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, LossAwareTables)]
        callbacks.insert(1, self)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the table, its number and the sums for the next one."""
        checkpoint[_KEY] = {"number": self.number, "shares": self.shares, "sums": self._sums.tolist()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the table and the sums of a checkpoint."""
        if trainer.state.fn != "fit" or _KEY not in checkpoint:
            return
        state = checkpoint[_KEY]
        self.number, self.shares = state["number"], state["shares"]
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)
        self.transform.use_shares(self.shares)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the sums to the model's device."""
        zeros = self.bins.empty_sums(pl_module.device)
        self._sums, self._window = self._sums.to(zeros), zeros
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # whatever training_step returned
        batch: Any,  # noqa: ANN401  # one of our batches
        batch_idx: int,
    ) -> None:
        """Add a batch's losses; after an optimizer step in ``every``, replace the table.

        Raises:
            TypeError: ``training_step`` did not return a loss per example.
        """
        losses = _find_losses(outputs, batch.t) * self.transform.objective.base_weight[batch.t]
        sums = self.bins.sum_losses(batch.t, losses.to(self._sums.dtype).square())
        self._window = self._window + trainer.strategy.reduce(sums, reduce_op="sum")
        before, self._step = self._step, trainer.global_step
        if self._step == before:
            return
        self._sums, self._window = self._sums + self._window, torch.zeros_like(self._window)
        if self._step // self.timesteps.every > before // self.timesteps.every:  # a batch may take several steps
            self._replace_table()

    def _replace_table(self) -> None:
        if not bool(self._sums.isfinite().all()):
            warnings.warn(
                f"LossAwareTimesteps: a training loss before step {self._step} is not finite. The density of t stays "
                "as it is, and its sums of losses begin again.",
                stacklevel=2,
            )
            self._sums = torch.zeros_like(self._sums)
        shares = self.timesteps.find_shares(self.bins, self._sums)
        if shares is not None:
            self.number, self.shares = self.number + 1, shares
            self._sums = self._sums * self.timesteps.decay
            self.transform.use_shares(shares)


def _find_losses(outputs: object, t: Tensor) -> Tensor:
    losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
    if isinstance(losses, Tensor) and losses.is_floating_point() and losses.shape == t.shape:
        return losses.detach()
    kind = f"{losses.dtype} of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else "none"
    raise TypeError(
        f"LossAwareTimesteps: training_step returned no loss of each of the {len(t)} examples ({kind} under 'losses'), "
        "so the density of t cannot follow the loss. Return {'loss': loss, 'losses': losses}: the losses are floats of "
        f"shape ({len(t)},), before datamodule.loss_weight(t) multiplies them. Or choose another `timesteps`."
    )
