"""Pictures into the Trainer's loggers; numbers go there by Lightning's own ``self.log``."""

from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image


def log_picture(trainer: L.Trainer, name: str, path: Path) -> None:
    """Show a picture's file in every logger that can show one; of the others (CSV) the file is what there is.

    To be called on the process of rank zero.

    Args:
        trainer: Whose loggers: TensorBoard, W&B, MLflow.
        name: What the picture is called there.
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
