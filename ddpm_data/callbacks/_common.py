"""What the callbacks share: the DataModule they need, the folder they write to."""

from pathlib import Path

import lightning as L

from ddpm_data.callbacks.throughput import Throughput as Throughput
from ddpm_data.datamodule.module import DDPMDataModule


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
