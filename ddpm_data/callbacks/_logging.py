"""Pictures for the Trainer's loggers. Numbers reach them through Lightning's own ``self.log``."""

from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image


def log_picture(trainer: L.Trainer, name: str, path: Path) -> None:
    """Show a picture in every logger that can show one: TensorBoard, W&B and MLflow.

    Other loggers, such as the CSV logger, show nothing, but the file exists. Call this on rank zero only.

    Args:
        trainer: The Trainer that has the loggers.
        name: The picture's name in the loggers.
        path: The PNG file.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path))
