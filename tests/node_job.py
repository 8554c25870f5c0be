"""What the two nodes of test_several.py are told by their configuration: a download, and to keep every triple."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ddpm_data import Triple
from ddpm_data.sources import ImageFiles


def downloaded(root: str) -> ImageFiles:
    """Notes, in the node's working folder, which of its processes asks, and whether one had asked before."""
    had = Path("downloaded").exists()
    Path("downloaded").touch()
    with Path("calls.txt").open("a") as file:
        file.write(f"{os.environ['LOCAL_RANK']} {had}\n")
    return ImageFiles(root)


class Keep(L.Callback):
    """Leaves every training triple in the node's working folder."""

    def __init__(self) -> None:
        self.seen: list[Triple] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401  # Lightning's
        batch: Triple,
        batch_idx: int,
    ) -> None:
        self.seen.append(batch)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save([torch.cat(parts) for parts in zip(*self.seen, strict=True)], f"rank{trainer.global_rank}.pt")
