"""Shared pieces: real images in every container, and a model that keeps what it is given."""

import gc
import logging
import multiprocessing
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities import registry
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ddpm_data import Triple
from tests import warm

# Every Trainer reads the metadata of all installed packages, in 40 ms, to see whether one of them brings callbacks.
registry.entry_points = cache(registry.entry_points)  # type: ignore[assignment]
# Two cores, several processes in some tests: threads of each would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "2")
ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    warm.start()
    multiprocessing.set_executable(warm.python())  # of spawned workers


def pytest_collection_finish() -> None:
    """Keep what lives to the end out of every collection: to look at half a million objects takes 0.26 s each time."""
    gc.collect()
    gc.freeze()


class Recorder(L.LightningModule):
    """Keeps every triple that reaches a step, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Triple]] = {"train": [], "val": [], "test": [], "predict": []}

    def keep(self, stage: str, batch: Triple) -> Tensor:
        x_t, t, noise = batch
        assert isinstance(batch, Triple)
        self.seen[stage].append(Triple(x_t.detach().clone(), t.clone(), noise.clone()))
        return (self.weight * x_t.float().mean() - 1) ** 2

    def training_step(self, batch: Triple, batch_idx: int) -> Tensor:
        return self.keep("train", batch)

    def validation_step(self, batch: Triple, batch_idx: int) -> None:
        self.keep("val", batch)

    def test_step(self, batch: Triple, batch_idx: int) -> None:
        self.keep("test", batch)

    def predict_step(self, batch: Triple, batch_idx: int) -> Tensor:
        self.keep("predict", batch)
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def all(self, stage: str) -> Triple:
        """The stage's triples as one."""
        return Triple(*(torch.cat(tensors) for tensors in zip(*self.seen[stage], strict=True)))


def trainer(tmp_path: Path, **options: Any) -> L.Trainer:  # noqa: ANN401  # Trainer's own options
    """A quiet Trainer on one CPU process."""
    quiet = dict(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        default_root_dir=tmp_path,
    )
    return L.Trainer(**(quiet | options))


def uint8_images(count: int, *shape: int) -> Tensor:
    """Random pixels, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def lightning_speaks_again() -> Iterator[None]:
    """Restore the level of Lightning's logger, which the main job raises."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_workers_left() -> Iterator[None]:
    """End the workers of loaders that an error has left in a reference cycle.

    When the garbage collector finds such a loader, its queues are closed before its workers are told to end, and torch
    waits for five seconds for each of them.
    """
    yield
    if multiprocessing.active_children():
        for item in gc.get_objects():
            if type(item) is _MultiProcessingDataLoaderIter:
                item._shutdown_workers()


@pytest.fixture
def dataset() -> TensorDataset:
    """Twenty labelled colour images in memory."""
    return TensorDataset(uint8_images(20, 3, 8, 8), torch.arange(20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A nested folder of real PNG and JPEG files of several sizes, and things that are no images."""
    root = tmp_path / "images"
    for number, (name, size) in enumerate(
        [
            ("1.png", (40, 30)),
            ("2.png", (30, 40)),
            ("10.png", (32, 32)),
            ("cats/a.jpg", (64, 48)),
            ("cats/B.PNG", (9, 9)),
        ]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number * 50, 100, 200 - number * 40)).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(root / ".hidden" / "x.png")
    return root
