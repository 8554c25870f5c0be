"""The callback that logs the validation loss by timestep."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ddpm_data._checks import check_int
from ddpm_data.callbacks._common import check_folder, find_datamodule, output_folder
from ddpm_data.callbacks._logging import log_picture
from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.linear_denoiser import LinearBaseline, linear_baseline
from ddpm_data.diffusion.timestep_bins import BinLoss, TimestepBins, read_losses, write_losses
from ddpm_data.rng.philox import key_from
from ddpm_data.types import Batch, Stage

_MIN_IMAGES, _MAX_IMAGES = 16, 256  # for the linear denoiser; fewer would not tell its loss
_MAX_VALUES = 2**23  # of images beyond the fewest, so that large ones take no more than a second


class TimestepLoss(L.Callback):
    """A callback that logs the validation loss in ranges of t, so that you see where the loss is high.

    Your ``validation_step`` returns the loss of each example: a float tensor of shape ``(batch,)``, alone or in a dict
    under ``losses``. The callback logs each range's mean over all processes, such as ``val_loss_t/0000-0099``. A range
    without examples is not logged.

    A fit also writes ``timestep_loss.csv`` and draws it in ``timestep_loss.png``. A resumed run continues the table, a
    new run starts it again. :class:`~ddpm_data.diffusion.timestep_bins.BinLoss` describes the columns.

    The loss of any model is highest at small t, where there is hardly any noise to see. So the picture also shows the
    loss of the best linear denoiser (:mod:`ddpm_data.diffusion.linear_denoiser`), and the model's loss as a multiple of
    it. Above 1, the linear denoiser is better than the model. At large t, where nearly all is noise, no model gets much
    below 1. The linear denoiser is that of up to 256 of the first process's validation images. With fewer than 16 of
    one shape, or with a variant of the noise, it is left out.

    Args:
        buckets: Ranges that the steps are divided into.
        folder: Folder for the files. ``None`` is the Trainer's ``log_dir``.
        linear: Whether the picture shows the linear denoiser. Its loss is the mean squared error of the target, so set
            this to false if your ``validation_step`` returns another loss.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``buckets`` is no whole number, ``folder`` is not a path, or ``linear`` is not a bool.
        ValueError: ``buckets`` is less than 1.
    """

    def __init__(self, buckets: int = 10, folder: str | Path | None = None, linear: bool = True) -> None:
        from ddpm_data import plots

        if not isinstance(linear, bool):
            raise TypeError(
                f"TimestepLoss(linear={linear!r}): expected true or false. Change `callbacks.timestep_loss.linear`."
            )

        self.buckets = check_int("TimestepLoss", "callbacks.timestep_loss.buckets", buckets, 1)
        self.folder = check_folder("TimestepLoss", "callbacks.timestep_loss.folder", folder)
        self.linear = linear
        self._draw = plots.timestep_losses
        self._rows: list[BinLoss] = []
        self._baseline: LinearBaseline | None = None
        self._x_0: list[Tensor] = []
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the forward process and the output folder.

        Raises:
            ValueError: The Trainer was given no DDPMDataModule.
        """
        self._transform = find_datamodule(trainer, "TimestepLoss").transform
        self._process, self._baseline = self._transform.process, None
        self._ranges = TimestepBins(self._process.num_timesteps, self.buckets)
        self._path = output_folder(trainer, self.folder) / "timestep_loss.csv"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the table of a resumed run, up to the step it is resumed at; start a new run's table empty."""
        self._rows = []
        if trainer.is_global_zero and trainer.global_step and self._path.exists():
            self._rows = [row for row in read_losses(self._path) if row.step <= trainer.global_step]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the sums of losses to zero; in a fit's first validation, begin to collect images."""
        self._sums = self._ranges.empty_sums(pl_module.device)
        is_drawn = trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.sanity_checking
        has_white_noise = self._transform.noise is None  # the linear denoiser's loss is that of such noise
        if self.linear and has_white_noise and is_drawn and self._baseline is None:
            self._hook = self._transform.register_forward_pre_hook(self._keep_images)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # whatever validation_step returned
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Check a batch's losses, and add them to the sums: of the first loader alone, if validation has several.

        The sums of the sanity check are discarded. It only detects a ``validation_step`` with another return value.

        Raises:
            TypeError: ``validation_step`` did not return a loss per example.
        """
        if dataloader_idx == 0:
            self._sums = self._sums + self._ranges.sum_losses(batch.t, _find_losses(outputs, batch.t))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means, and write the files if this is a fit."""
        if trainer.sanity_checking:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        rows = self._ranges.to_rows(sums, self._process, trainer.current_epoch, trainer.global_step)
        means = {f"val_loss_t/{name}": row.loss for name, row in zip(self._ranges.names, rows, strict=True)}
        # The means are the same on all processes. Without sync_dist Lightning would warn that they might differ.
        pl_module.log_dict({name: mean for name, mean in means.items() if mean is not None}, sync_dist=True)
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self._rows = [row for row in self._rows if row.step != trainer.global_step] + rows
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_losses(self._rows, self._path)
            self._find_baseline()
            self._draw(self._rows, self._path.with_suffix(".png"), self._baseline)
            log_picture(trainer, "timestep_loss", self._path.with_suffix(".png"))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop to collect images, if an error or a limit has ended the run within its first validation."""
        self._stop_keeping()

    def _keep_images(self, _: torch.nn.Module, inputs: tuple[Tensor, Tensor, Stage]) -> None:
        """Keep the first clean images that validation noises, as long as they have one shape."""
        images, position, stage = inputs[:3]
        most = max(_MIN_IMAGES, min(_MAX_IMAGES, _MAX_VALUES // images[0].numel()))
        missing = most - sum(map(len, self._x_0))
        if stage != "val" or missing <= 0:
            return
        x_0 = images[:missing]
        if self._transform.latents is not None:
            x_0 = self._transform.latents.sample(key_from(self._transform.seed), x_0, position[:missing], stage)
        if not self._x_0 or self._x_0[0].shape[1:] == x_0.shape[1:]:
            self._x_0.append(scale_images(x_0).cpu())

    def _find_baseline(self) -> None:
        """Compute the linear denoiser's loss from the images that were kept, once they have been collected."""
        if self._hook is not None and sum(map(len, self._x_0)) >= _MIN_IMAGES:
            target = self._transform.objective.target
            self._baseline = linear_baseline(torch.cat(self._x_0), self._process, self._ranges, target)
        self._stop_keeping()

    def _stop_keeping(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._x_0 = None, []


def _find_losses(outputs: object, t: Tensor) -> Tensor:
    losses = outputs.get("losses") if isinstance(outputs, Mapping) else outputs
    if isinstance(losses, Tensor) and losses.is_floating_point() and losses.shape == t.shape:
        return losses.detach()
    description = f"a {type(outputs).__name__}" if outputs is not None else "nothing"
    if isinstance(losses, Tensor):
        description = f"{losses.dtype} of shape {tuple(losses.shape)}"
    elif isinstance(outputs, Mapping):
        description = f"a dict of {', '.join(map(repr, outputs))}"
    raise TypeError(
        f"TimestepLoss: validation_step returned {description} for a batch of {len(t)}. The callback needs the loss of "
        f"each example to tell steps apart: floats of shape ({len(t)},), alone or in a dict under 'losses', such as "
        'F.mse_loss(predicted, noise, reduction="none").flatten(1).mean(1). Return them from validation_step, or '
        "remove the callback, `~callbacks.timestep_loss`."
    )
