"""Our callbacks, all together, in everything that happens to a run."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data import DDPMDataModule, Triple, schedules
from ddpm_data.callbacks import LatestCheckpoint, MetricsFile, NoisingStrip, Progress, Throughput, TimestepLoss
from ddpm_data.sources import digits

pytest.importorskip("sklearn", reason="ships the digits")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's, of folders and of manual optimisation


class Model(L.LightningModule):
    def __init__(self, is_manual: bool = False) -> None:
        super().__init__()
        self.net = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.automatic_optimization = not is_manual

    def training_step(self, batch: Triple, batch_idx: int) -> Tensor | None:
        loss = F.mse_loss(self.net(batch.x_t), batch.noise)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Triple, batch_idx: int) -> dict[str, Tensor]:
        losses = F.mse_loss(self.net(batch.x_t), batch.noise, reduction="none").flatten(1).mean(1)
        self.log("val_loss", losses.mean(), batch_size=len(losses))
        return {"losses": losses}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def data(batch_size: int = 128) -> DDPMDataModule:
    return DDPMDataModule(digits(), val=0.1, schedule=schedules.linear(100), channels=1, batch_size=batch_size)


def train(folder: Path, max_epochs: int = 1, **options: Any) -> L.Trainer:  # noqa: ANN401  # Trainer's own options
    checkpoint = LatestCheckpoint(folder / "checkpoints", every_n_train_steps=5)
    callbacks: list[L.Callback] = [Throughput(2), NoisingStrip(folder=folder), TimestepLoss(folder=folder), Progress()]
    defaults: dict[str, Any] = {
        "logger": MetricsFile(folder),
        "callbacks": [*callbacks, checkpoint],
        "log_every_n_steps": 1,
    }
    defaults |= {"accelerator": "cpu", "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, default_root_dir=folder, **(defaults | options))


def check_outputs(folder: Path) -> None:
    assert (folder / "noising.png").stat().st_size > 0
    assert (folder / "timestep_loss.png").stat().st_size > 0
    with next((folder / "lightning_logs").glob("*/metrics.csv")).open() as file:
        speeds = [float(row["images_per_s"]) for row in csv.DictReader(file) if row.get("images_per_s")]
    assert speeds
    assert min(speeds) > 1  # a clock that began at 0 would give thousandths


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [128, 256])
def test_resumed_inside_an_epoch(batch_size: int, tmp_path: Path) -> None:
    train(tmp_path / "cut", max_steps=8).fit(Model(), datamodule=data())
    resumed = train(tmp_path / "resumed", max_epochs=2)
    resumed.fit(Model(), datamodule=data(batch_size), ckpt_path=tmp_path / "cut" / "checkpoints" / "latest.ckpt")
    assert resumed.current_epoch == 2
    check_outputs(tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain", {}),
        ("accumulation", {"accumulate_grad_batches": 3}),
        ("two validations an epoch", {"val_check_interval": 0.5}),
        ("no validation", {"limit_val_batches": 0, "callbacks": [Throughput(2)]}),
        ("steps", {"max_epochs": -1, "max_steps": 20}),
    ],
)
def test_a_run(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    train(tmp_path, **options).fit(Model(), datamodule=data())
    if "callbacks" not in options:
        check_outputs(tmp_path)


def test_manual_optimisation(tmp_path: Path) -> None:
    train(tmp_path).fit(Model(is_manual=True), datamodule=data())
    check_outputs(tmp_path)


@pytest.mark.slow
def test_validate_before_fit_and_two_fits(tmp_path: Path) -> None:
    model, dm, trainer = Model(), data(), train(tmp_path)
    trainer.validate(model, datamodule=dm, verbose=False)
    trainer.fit(model, datamodule=dm)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, datamodule=dm)
    check_outputs(tmp_path)


@pytest.mark.parametrize("mode", ["fast_dev_run", "barebones"])
def test_runs_without_loggers_and_checkpoints_draw_their_pictures(mode: str, tmp_path: Path) -> None:
    callbacks = [Throughput(2), NoisingStrip(folder=tmp_path), TimestepLoss(folder=tmp_path)]
    options = {mode: True, "logger": None, "callbacks": callbacks if mode == "fast_dev_run" else None}
    if mode == "barebones":
        options |= {"enable_progress_bar": None, "enable_model_summary": None, "log_every_n_steps": None}
    trainer = train(tmp_path, **options)
    if mode == "barebones":
        trainer.callbacks += callbacks
    trainer.fit(Model(), datamodule=data())
    assert {path.name for path in tmp_path.iterdir()} == {"noising.png", "timestep_loss.csv", "timestep_loss.png"}
