"""Helpers that the callbacks share: the DataModule they read and the folder they write to."""

from pathlib import Path

import lightning as L

from ddpm_data._checks import check_path
from ddpm_data.datamodule.module import DDPMDataModule


def find_datamodule(trainer: L.Trainer, callback: str) -> DDPMDataModule:
    """Return the Trainer's DDPMDataModule.

    Args:
        trainer: The Trainer, once it has been given its data.
        callback: The callback's name, for the error.

    Raises:
        ValueError: The Trainer was given no DDPMDataModule.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, DDPMDataModule):
        raise ValueError(
            f"{callback} shows the forward process of a DDPMDataModule, and the Trainer was given "
            f"{'no datamodule' if datamodule is None else type(datamodule).__name__}. Pass one to the Trainer, "
            "`fit(model, datamodule=...)`, or remove the callback, in the configs under `callbacks`."
        )
    return datamodule


def check_folder(callback: str, key: str, folder: str | Path | None) -> Path | None:
    """Check a callback's ``folder`` argument, and convert it to a path.

    Raises:
        TypeError: It is neither a path nor ``None``.
        ValueError: It is empty.
    """
    return None if folder is None else check_path(callback, key, folder)


def output_folder(trainer: L.Trainer, folder: Path | None) -> Path:
    """Return the folder given, or else the Trainer's ``log_dir``.

    Every process must call this: the Trainer broadcasts the ``log_dir`` of the first one.
    """
    return folder if folder is not None else Path(trainer.log_dir or trainer.default_root_dir)
