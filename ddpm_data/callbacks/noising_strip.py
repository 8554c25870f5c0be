"""The callback that shows images being noised."""

from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ddpm_data._checks import check_int
from ddpm_data.callbacks._common import check_folder, find_datamodule, output_folder
from ddpm_data.callbacks._logging import log_picture
from ddpm_data.types import Stage


class NoisingStrip(L.Callback):
    """A callback that shows what the forward process does to your images: ``noising.png``, also in the loggers.

    The picture shows the same images every time: the first of the validation split, or of the training split if there
    is no validation split. If a dataset gives its items in its own order, they are the first that the first process
    sees. Latents, and images with other than 1, 3 or 4 channels, cannot be drawn; a message says so.

    Args:
        every_n_epochs: Epochs between two times that the picture is logged. It is also logged when training begins.
            The picture never changes; logging it again helps with loggers that show one step at a time.
        images: Rows of the picture, one per image.
        columns: Steps of the forward process, from the first to the last.
        folder: Folder for the file. ``None`` is the Trainer's ``log_dir``.
        spacing: ``"log_snr"`` spreads the steps evenly over the logarithm of the signal-to-noise ratio, ``"t"`` over t;
            see :func:`ddpm_data.plots.noising_strip`.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: A number is no whole number, or ``folder`` is not a path.
        ValueError: A number is less than 1, or there is no such ``spacing``.
    """

    def __init__(
        self,
        every_n_epochs: int = 100,
        images: int = 8,
        columns: int = 10,
        folder: str | Path | None = None,
        spacing: Literal["log_snr", "t"] = "log_snr",
    ) -> None:
        from ddpm_data import plots
        from ddpm_data.plots._tiles import check_spacing

        key = "callbacks.noising_strip"
        self.every_n_epochs = check_int("NoisingStrip", f"{key}.every_n_epochs", every_n_epochs, 1)
        self.images = check_int("NoisingStrip", f"{key}.images", images, 1)
        self.columns = check_int("NoisingStrip", f"{key}.columns", columns, 1)
        self.folder = check_folder("NoisingStrip", f"{key}.folder", folder)
        self.spacing = check_spacing("NoisingStrip", spacing)
        self._draw = plots.noising_strip
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the DataModule and the output folder.

        Raises:
            ValueError: The Trainer was given no DDPMDataModule.
        """
        self._datamodule = find_datamodule(trainer, "NoisingStrip")
        self._path = output_folder(trainer, self.folder) / "noising.png"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the images, or prepare to collect them if the dataset has its own order."""
        self._row_images: list[Tensor] = []
        self._is_drawn = False
        transform, splits = self._datamodule.transform, self._datamodule.splits
        if transform.latents is not None:
            rank_zero_info("NoisingStrip: latents cannot be shown as images, so there is no noising.png.")
        elif trainer.is_global_zero:
            stage: Stage = "val" if splits.has("val") else "train"
            items = splits.images(stage).first_items(self.images, self._datamodule.loader_options)
            if items is not None:
                self._row_images = [items.images]
            else:
                self._watch(stage)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the picture once, and log it when it is due."""
        if not self._is_drawn or trainer.current_epoch % self.every_n_epochs == 0:
            self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the picture if its images came too late for the start of any epoch."""
        if not self._is_drawn:
            self._show(trainer)
        if self._hook is not None:
            self._hook.remove()

    def _watch(self, stage: Stage) -> None:
        """Keep the first images of a stage that reach the transform, because a source may allow only one iteration."""

        def keep_images(_: torch.nn.Module, inputs: tuple[Tensor, Tensor, Stage]) -> None:
            missing = self.images - sum(map(len, self._row_images))
            if inputs[2] == stage and missing > 0:
                self._row_images.append(inputs[0][:missing].cpu())

        self._hook = self._datamodule.transform.register_forward_pre_hook(keep_images)

    def _show(self, trainer: L.Trainer) -> None:
        if not self._row_images:
            return
        images = torch.cat(self._row_images)
        if images.shape[1] not in (1, 3, 4):
            rank_zero_info(f"NoisingStrip: images of {images.shape[1]} channels cannot be drawn.")
            self._row_images = []
            return
        if not self._is_drawn:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(self._datamodule.transform.process, images, self._path, self.columns, self.spacing)
            self._is_drawn = True
        log_picture(trainer, "noising", self._path)
