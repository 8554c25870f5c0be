"""Images on their way into noise, while training."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ddpm_data._checks import check_int
from ddpm_data.callbacks._common import _checked_folder, _datamodule_of, _folder_of
from ddpm_data.callbacks._logging import log_picture
from ddpm_data.callbacks.throughput import Throughput as Throughput
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.types import Stage


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
        self.every_n_epochs = check_int("NoisingStrip", f"{key}.every_n_epochs", every_n_epochs, 1)
        self.images = check_int("NoisingStrip", f"{key}.images", images, 1)
        self.columns = check_int("NoisingStrip", f"{key}.columns", columns, 1)
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
            if isinstance(images, MapStyleImages):
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
