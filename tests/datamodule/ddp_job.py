"""Run by test_ddp.py as a user's script would be: trains on real processes and leaves each rank's triples in a file."""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric

from ddpm_data import DDPMDataModule, Triple, schedules
from tests.conftest import Recorder, trainer, uint8_images


class Model(Recorder):
    """Also logs a validation loss; self.log's own mean is wrong where ranks hold unequal numbers of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.val_loss = MeanMetric()

    def validation_step(self, batch: Triple, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.val_loss.update(batch.noise.square().mean(), len(batch.t))
        self.log("val_loss", self.val_loss)


class Kill(L.Callback):
    """Ends this process as the kernel would, between two batches."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401  # Lightning's
        if trainer.global_step == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def main(
    folder: Path, devices: int, batch_size: int, workers: int, nodes: int, ckpt: Path | None, kill_after: int
) -> None:
    calls = []

    def factory() -> TensorDataset:
        # A download would happen here: on the first process of the node, before any other process asks.
        calls.append((folder / "downloaded").exists())
        (folder / "downloaded").touch()
        return TensorDataset(uint8_images(37, 3, 8, 8))

    dm = DDPMDataModule(
        factory, val=0.3, schedule=schedules.linear(100), batch_size=batch_size, num_workers=workers, seed=3, flip=0.5
    )
    model = Model()
    every_step = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(
        folder,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[every_step, Kill(kill_after)],
    )
    run.fit(model, datamodule=dm, ckpt_path=ckpt)
    if devices * nodes > 1:
        run.strategy.barrier()
    seen = {stage: [tuple(batch) for batch in batches] for stage, batches in model.seen.items()}
    val_loss = float(run.callback_metrics["val_loss"])
    torch.save({"seen": seen, "calls": calls, "val_loss": val_loss}, folder / f"rank{run.global_rank}.pt")
    if devices * nodes > 1:
        torch.distributed.destroy_process_group()  # a gloo thread that outlives the interpreter may abort the process


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--ckpt", type=Path, default=None)
    parser.add_argument("--kill_after", type=int, default=-1)
    main(**vars(parser.parse_args()))
