"""Run by test_logging.py on real processes: every callback, every file and row it leaves."""

import sys
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import TensorDataset

from ddpm_data import DDPMDataModule, Triple, schedules
from ddpm_data.callbacks import NoisingStrip, Throughput, TimestepLoss
from tests.conftest import Recorder, trainer, uint8_images


class Losses(Recorder):
    """Returns a loss of each example, which depends on its triple alone."""

    def validation_step(self, batch: Triple, batch_idx: int) -> Tensor:  # type: ignore[override]
        super().validation_step(batch, batch_idx)
        return batch.noise.square().flatten(1).mean(1) + batch.t


def main(folder: Path, devices: int) -> None:
    val = TensorDataset(uint8_images(23, 1, 4, 4))  # on 2 processes 12 and 11, and in batches of 3 unequal ones
    dm = DDPMDataModule(
        TensorDataset(uint8_images(24, 1, 4, 4)), val, schedule=schedules.linear(50), batch_size=3, seed=2
    )
    run = trainer(
        folder,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[Throughput(2), TimestepLoss(4), NoisingStrip(images=5)],
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=2,
        num_sanity_val_steps=2,
        max_epochs=2,
    )
    model = Losses()
    run.fit(model, datamodule=dm)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    torch.save(
        {"metrics": metrics, "val": [len(batch.t) for batch in model.seen["val"]]}, folder / f"rank{run.global_rank}.pt"
    )
    if devices > 1:
        run.strategy.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
