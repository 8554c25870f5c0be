"""Lightning callbacks: losses by timestep, noising in pictures; :mod:`ddpm_data.throughput` has the third."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ddpm_data import checks
from ddpm_data.datamodule import DDPMDataModule
from ddpm_data.images import Images
from ddpm_data.loggers import log_picture
from ddpm_data.losses import Buckets, Row, read_losses, write_losses
from ddpm_data.throughput import Throughput as Throughput
from ddpm_data.types import ConditionedTriple, Stage, Triple


class TimestepLoss(L.Callback):
    """Which steps the model does badly: the validation loss in ranges of t, over all processes.

    The model's ``validation_step`` returns the loss of each example, as a tensor of shape ``(batch,)`` or in a dict
    under ``losses``. Each range's mean is logged (``val_loss_t/0000-0099``); a range without examples is not. A fit
    also writes ``timestep_loss.csv``, which a resumed run goes on with and a new one begins anew
    (:class:`~ddpm_data.losses.Row` has its columns), and ``timestep_loss.png``.

    Args:
        buckets: Ranges that the steps are cut into.
        folder: For the files; ``None`` is the Trainer's ``log_dir``.

    Raises:
        ImportError: There is no matplotlib.
    """

    def __init__(self, buckets: int = 10, folder: str | Path | None = None) -> None:
        from ddpm_data import plots

        self.buckets = checks.whole("TimestepLoss", "callbacks.timestep_loss.buckets", buckets, 1)
        self.folder = _checked_folder("TimestepLoss", "callbacks.timestep_loss.folder", folder)
        self._draw = plots.timestep_losses
        self._rows: list[Row] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the steps and the folder.

        Raises:
            ValueError: The data are no DDPMDataModule's.
        """
        self._process = _datamodule_of(trainer, "TimestepLoss").transform.process
        self._ranges = Buckets(self._process.num_timesteps, self.buckets)
        self._path = _folder_of(trainer, self.folder) / "timestep_loss.csv"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up the table of the run that is resumed, as far as it had come then."""
        self._rows = []
        if trainer.is_global_zero and trainer.global_step and self._path.exists():
            self._rows = [row for row in read_losses(self._path) if row.step <= trainer.global_step]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the sums."""
        self._sums = self._ranges.nothing(pl_module.device)

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
        self._sums = self._sums + self._ranges.sums(batch.t, _losses_in(outputs, batch.t))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means, and in a fit write the files."""
        if trainer.sanity_checking:
            return
        sums = trainer.strategy.reduce(self._sums, reduce_op="sum")
        rows = self._ranges.rows(sums, self._process, trainer.current_epoch, trainer.global_step)
        means = {f"val_loss_t/{name}": row.loss for name, row in zip(self._ranges.names, rows, strict=True)}
        # They are the same on all processes; without sync_dist Lightning would warn that they might not be.
        pl_module.log_dict({name: mean for name, mean in means.items() if mean is not None}, sync_dist=True)
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self._rows = [row for row in self._rows if row.step != trainer.global_step] + rows
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_losses(self._rows, self._path)
            self._draw(self._rows, self._path.with_suffix(".png"))
            log_picture(trainer, "timestep_loss", self._path.with_suffix(".png"))


class NoisingStrip(L.Callback):
    """Shows the forward process on some images, the same each time: ``noising.png``, and in the loggers.

    They are the first of the validation set, or of the training set where there is none; of a set that gives its items
    in an order of its own, the first that the first process sees. Of latents, and of images of other than 1, 3 or 4
    channels, there is no picture, which a line says.

    Args:
        every_n_epochs: How often it is logged, beside when training begins. The forward process never changes: this is
            for loggers that show what there is at a step.
        images: Rows.
        columns: Steps, spread evenly.
        folder: For the file; ``None`` is the Trainer's ``log_dir``.

    Raises:
        ImportError: There is no matplotlib.
    """

    def __init__(
        self, every_n_epochs: int = 100, images: int = 8, columns: int = 10, folder: str | Path | None = None
    ) -> None:
        from ddpm_data import plots

        key = "callbacks.noising_strip"
        self.every_n_epochs = checks.whole("NoisingStrip", f"{key}.every_n_epochs", every_n_epochs, 1)
        self.images = checks.whole("NoisingStrip", f"{key}.images", images, 1)
        self.columns = checks.whole("NoisingStrip", f"{key}.columns", columns, 1)
        self.folder = _checked_folder("NoisingStrip", f"{key}.folder", folder)
        self._draw = plots.noising_strip
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the data and the folder.

        Raises:
            ValueError: The data are no DDPMDataModule's.
        """
        self._datamodule = _datamodule_of(trainer, "NoisingStrip")
        self._path = _folder_of(trainer, self.folder) / "noising.png"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Fetch the images, or wait for them where they come in an order of their own."""
        self._seen: list[Tensor] = []
        self._is_drawn = False
        transform, splits = self._datamodule.transform, self._datamodule.splits
        if transform.latents is not None:
            rank_zero_info("NoisingStrip: latents cannot be looked at, so there is no picture of them.")
        elif trainer.is_global_zero:
            stage: Stage = "val" if splits.has("val") else "train"
            images = splits.images(stage)
            if isinstance(images, Images):
                first = torch.arange(min(self.images, len(images)))
                self._seen = [
                    images.batch((first if images.part is None else images.part.indices(first)).numpy()).images
                ]
            else:
                self._watch(stage)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, once, and log when it is due."""
        if not self._is_drawn or trainer.current_epoch % self.every_n_epochs == 0:
            self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what came too late for any epoch to begin with it."""
        if not self._is_drawn:
            self._show(trainer)
        if self._hook is not None:
            self._hook.remove()

    def _watch(self, wanted: Stage) -> None:
        """Keep the first images of a stage that reach the transform: to iterate twice over a source may not do."""

        def keep(_: torch.nn.Module, inputs: tuple[Tensor, Tensor, Stage]) -> None:
            missing = self.images - sum(map(len, self._seen))
            if inputs[2] == wanted and missing > 0:
                self._seen.append(inputs[0][:missing].cpu())

        self._hook = self._datamodule.transform.register_forward_pre_hook(keep)

    def _show(self, trainer: L.Trainer) -> None:
        if not self._seen:
            return
        images = torch.cat(self._seen)
        if images.shape[1] not in (1, 3, 4):
            rank_zero_info(f"NoisingStrip: images of {images.shape[1]} channels cannot be drawn.")
            self._seen = []
            return
        if not self._is_drawn:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(self._datamodule.transform.process, images, self._path, self.columns)
            self._is_drawn = True
        log_picture(trainer, "noising", self._path)


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


def _datamodule_of(trainer: L.Trainer, callback: str) -> DDPMDataModule:
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, DDPMDataModule):
        raise ValueError(
            f"{callback} shows what a DDPMDataModule's process does, and the Trainer was given "
            f"{'no datamodule' if datamodule is None else type(datamodule).__name__}. Pass one to the Trainer, "
            "`fit(model, datamodule=...)`, or leave out the callback, in the configs under `callbacks`."
        )
    return datamodule


def _checked_folder(callback: str, key: str, folder: str | Path | None) -> Path | None:
    if not isinstance(folder, str | Path | None):
        raise TypeError(f"{callback}(folder={folder!r}): a folder is needed. Change `{key}`.")
    return None if folder is None else Path(folder)


def _folder_of(trainer: L.Trainer, folder: Path | None) -> Path:
    """Asked on every process: ``log_dir`` is the first one's."""
    return folder if folder is not None else Path(trainer.log_dir or trainer.default_root_dir)
