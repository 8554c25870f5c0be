"""Run by test_ddp.py as a user's script would be: trains on real processes and leaves each rank's triples in a file."""

import sys
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import Recorder, trainer, uint8_images


def main(folder: Path, devices: int, batch_size: int, workers: int) -> None:
    calls = []

    def factory() -> TensorDataset:
        # A download would happen here: on the first process of the node, before any other process asks.
        calls.append((folder / "downloaded").exists())
        (folder / "downloaded").touch()
        return TensorDataset(uint8_images(37, 3, 8, 8))

    dm = DDPMDataModule(
        factory, val=0.3, schedule=schedules.linear(100), batch_size=batch_size, num_workers=workers, seed=3, flip=0.5
    )
    model = Recorder()
    run = trainer(folder, devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2)
    run.fit(model, datamodule=dm)
    if devices > 1:
        run.strategy.barrier()
    seen = {stage: [tuple(batch) for batch in batches] for stage, batches in model.seen.items()}
    torch.save({"seen": seen, "calls": calls}, folder / f"rank{run.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:]))
