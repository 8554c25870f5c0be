"""TimestepLoss in real fits: the means, the table and its history, read back."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from ddpm_data import Triple, noises, plots
from ddpm_data.callbacks import NoisingStrip, TimestepLoss
from ddpm_data.diffusion._kernels import scale_images
from ddpm_data.diffusion.linear_denoiser import linear_baseline
from ddpm_data.diffusion.timestep_bins import BinLoss, TimestepBins, read_losses
from ddpm_data.latents import Latents
from ddpm_data.rng.philox import key_from
from tests.callbacks.callbacks_job import Losses
from tests.callbacks.helpers import IMAGES, Ordered, data, rows_of
from tests.conftest import Recorder, trainer


def by_hand(model: Recorder, num_timesteps: int, buckets: int) -> list[tuple[float, int]]:
    """Mean loss and count in each range, by NumPy, of the first of two validations."""
    triples = model.all("val")
    t, noise = triples.t.numpy(), triples.noise.double().numpy()
    losses = (noise**2).reshape(len(t), -1).mean(1) + t
    edges = np.ceil(np.arange(buckets + 1) * num_timesteps / buckets)
    inside = [(t >= low) & (t < high) for low, high in pairwise(edges)]
    return [(losses[some].mean() if some.any() else np.nan, int(some.sum())) for some in inside]


@pytest.mark.parametrize(("num_timesteps", "buckets"), [(50, 10), (50, 7), (5, 10), (1, 10)])
def test_the_means_are_those_of_numpy_in_the_logger_and_in_the_file(
    num_timesteps: int, buckets: int, tmp_path: Path
) -> None:
    model = Losses()
    run = trainer(
        tmp_path,
        callbacks=[TimestepLoss(buckets)],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=1,
    )
    run.fit(model, datamodule=data(num_timesteps))
    found = read_losses(tmp_path / "timestep_loss.csv")
    expected = by_hand(model, num_timesteps, min(buckets, num_timesteps))
    assert [row.examples for row in found] == [count for _, count in expected]
    assert sum(row.examples for row in found) == 30
    assert [row.loss for row in found] == pytest.approx([mean for mean, _ in expected], rel=1e-6)
    assert {(row.epoch, row.step) for row in found} == {(0, 5)}
    logged = [row for row in rows_of(tmp_path / "metrics.csv") if row["val_loss_t/0000-" + f"{found[0].last_t:04d}"]]
    assert len(logged) == 1
    names = sorted(name for name in logged[0] if name.startswith("val_loss_t/"))
    assert [float(logged[0][name]) for name in names] == pytest.approx([row.loss for row in found], rel=1e-6)


def test_ranges_without_examples_are_counted_in_the_file_and_logged_nowhere(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, callbacks=[TimestepLoss(10)], logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1
    )
    run.fit(Losses(), datamodule=data(val=TensorDataset(IMAGES[:3])))
    found = read_losses(tmp_path / "timestep_loss.csv")
    empty = [row for row in found if not row.examples]
    assert len(empty) >= 7
    assert all(row.loss is None for row in empty)
    logged = {name for row in rows_of(tmp_path / "metrics.csv") for name, value in row.items() if value}
    assert len([name for name in logged if name.startswith("val_loss_t/")]) == len(found) - len(empty)
    assert "nan" not in (tmp_path / "metrics.csv").read_text().lower()


class Returns(Recorder):
    """A validation_step that returns what it is told."""

    def __init__(self, returned: object) -> None:
        super().__init__()
        self.returned = returned

    def validation_step(self, batch: Triple, batch_idx: int) -> Any:  # type: ignore[override]  # noqa: ANN401
        return self.returned(batch) if callable(self.returned) else self.returned


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "nothing"),
        (lambda batch: batch.noise.mean(), r"torch.float32 of shape \(\)"),
        (lambda batch: batch.noise.mean((2, 3)), r"torch.float32 of shape \(7, 1\)"),
        (lambda batch: batch.t, r"torch.int64 of shape \(7,\)"),
        (lambda batch: {"loss": batch.noise.mean()}, "a dict of 'loss'"),
        (lambda batch: {"losses": batch.noise.mean(), "loss": batch.noise.mean()}, r"shape \(\)"),
    ],
)
def test_anything_else_is_refused_in_the_sanity_check_already(returned: object, says: str, tmp_path: Path) -> None:
    model = Returns(returned)
    run = trainer(tmp_path, callbacks=[TimestepLoss()], num_sanity_val_steps=1)
    with pytest.raises(TypeError, match=says) as error:
        run.fit(model, datamodule=data())
    assert 'F.mse_loss(predicted, noise, reduction="none").flatten(1).mean(1)' in str(error.value)
    assert "callbacks.timestep_loss" in str(error.value)
    assert not model.seen["train"]


@pytest.mark.slow
def test_losses_in_a_dict_are_the_same(tmp_path: Path) -> None:
    tables = []
    for name, returned in {"a": lambda batch: batch.t.float(), "b": lambda batch: {"losses": batch.t.float()}}.items():
        run = trainer(tmp_path, callbacks=[TimestepLoss(folder=tmp_path / name)])
        run.fit(Returns(returned), datamodule=data())
        tables.append(read_losses(tmp_path / name / "timestep_loss.csv"))
        assert (tmp_path / name / "timestep_loss.png").exists()
    assert tables[0] == tables[1]


LATENTS = torch.randn(40, 6, 4, 4, generator=torch.Generator().manual_seed(0)).abs()
STORED = Latents(scale=0.5, shift=1.0, stacked=True)  # three channels of means, three of standard deviations
SETS: dict[str, tuple[dict[str, Any], bool, Tensor | None]] = {
    "pixels": ({}, True, IMAGES[:30]),
    "another target": (dict(target="x_0"), True, IMAGES[:30]),
    "another noise": (dict(noise=noises.offset(0.1)), True, None),
    "another loss": ({}, False, None),
    "too few": (dict(val=TensorDataset(IMAGES[:15])), True, None),
    "more than are used": (
        dict(val=TensorDataset(IMAGES[:30].repeat(10, 1, 1, 1))),
        True,
        IMAGES[:30].repeat(10, 1, 1, 1)[:256],
    ),
    "its own order": (dict(val=Ordered()), True, IMAGES[10:]),
    "latents": (
        dict(train=LATENTS, val=LATENTS[:20], latents=STORED),
        True,
        STORED.sample(key_from(1), LATENTS[:20], torch.arange(20), "val"),
    ),
}


class PredictsNothing(Recorder):
    """Takes batches of any target, and returns the loss of predicting zeros."""

    def keep(self, stage: str, batch: Triple) -> Tensor:
        return (self.weight * batch[0].mean() - 1) ** 2

    def validation_step(self, batch: Triple, batch_idx: int) -> Tensor:  # type: ignore[override]
        return batch[2].square().flatten(1).mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_picture_has_the_best_linear_denoiser_of_the_validation_images(name: str, tmp_path: Path) -> None:
    options, linear, x_0 = SETS[name]
    dm = data(**options)
    run = trainer(tmp_path, callbacks=[TimestepLoss(5, linear=linear)], num_sanity_val_steps=2)
    run.fit(PredictsNothing(), datamodule=dm)
    baseline = None
    if x_0 is not None:
        target = dm.transform.objective.target
        baseline = linear_baseline(scale_images(x_0), dm.transform.process, TimestepBins(50, 5), target)
    plots.timestep_losses(read_losses(tmp_path / "timestep_loss.csv"), tmp_path / "expected.png", baseline)
    shown, wanted = (np.asarray(Image.open(tmp_path / file)) for file in ("timestep_loss.png", "expected.png"))
    assert np.array_equal(shown, wanted)
    assert not dm.transform._forward_pre_hooks


def test_the_sanity_check_writes_nothing(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Until(Losses):
        def on_train_start(self) -> None:
            raise Stop

    run = trainer(
        tmp_path,
        callbacks=[TimestepLoss(), NoisingStrip()],
        num_sanity_val_steps=2,
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=1,
    )
    with pytest.raises(Stop):
        run.fit(Until(), datamodule=data())
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".csv")]


def table_of(folder: Path, max_epochs: int, ckpt: Path | None = None, check: int = 1) -> list[BinLoss]:
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
    run = trainer(
        folder,
        callbacks=[TimestepLoss(3), save],
        enable_checkpointing=True,
        max_epochs=max_epochs,
        check_val_every_n_epoch=check,
        num_sanity_val_steps=2,
    )
    run.fit(Losses(), datamodule=data(), ckpt_path=ckpt)
    return read_losses(folder / "timestep_loss.csv")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_goes_on_with_the_table_and_a_new_one_begins_it_anew(tmp_path: Path) -> None:
    whole = table_of(tmp_path / "whole", 4)
    assert [row.step for row in whole[::3]] == [5, 10, 15, 20]
    table_of(tmp_path / "parts", 3)
    assert table_of(tmp_path / "parts", 4, tmp_path / "parts" / "epoch=1.ckpt") == whole  # the third is done again
    assert table_of(tmp_path / "parts", 2) == whole[:6]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_rows_of_a_branch_that_was_left_are_dropped(tmp_path: Path) -> None:
    table_of(tmp_path, 3)
    rest = table_of(tmp_path, 4, tmp_path / "epoch=0.ckpt", check=2)
    assert [row.step for row in rest[::3]] == [5, 10, 20]


@pytest.mark.slow
def test_a_step_is_in_the_table_once_however_often_it_is_validated(tmp_path: Path) -> None:
    model = Losses()
    run = trainer(tmp_path, callbacks=[TimestepLoss(3)], val_check_interval=1, accumulate_grad_batches=2)
    run.fit(model, datamodule=data())
    assert len(model.seen["val"]) == 5 * 4  # after each of five batches
    assert [row.step for row in read_losses(tmp_path / "timestep_loss.csv")[::3]] == [0, 1, 2, 3]


def test_validating_alone_logs_numbers_and_leaves_the_history_of_the_fit(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[TimestepLoss(3)])
    run.fit(Losses(), datamodule=data())
    before = (tmp_path / "timestep_loss.csv").read_text()
    fitted = {name: float(value) for name, value in run.callback_metrics.items()}
    other = trainer(tmp_path, callbacks=[TimestepLoss(3)])
    other.validate(Losses(), datamodule=data(), verbose=False)
    assert {name: float(value) for name, value in other.callback_metrics.items()} == fitted
    assert len(fitted) == 3
    assert (tmp_path / "timestep_loss.csv").read_text() == before


def test_of_several_validation_loaders_the_first_is_counted(tmp_path: Path) -> None:
    class Two(Losses):
        def validation_step(self, batch: Triple, batch_idx: int, dataloader_idx: int = 0) -> Any:  # noqa: ANN401
            return super().validation_step(batch, batch_idx) if dataloader_idx == 0 else None

    datamodule = data(test=TensorDataset(IMAGES[:7]))
    of_one = datamodule.val_dataloader
    datamodule.val_dataloader = lambda: [of_one(), datamodule.test_dataloader()]  # type: ignore[assignment, return-value]
    datamodule.setup("test")
    trainer(tmp_path, callbacks=[TimestepLoss(10)]).fit(Two(), datamodule=datamodule)
    assert sum(row.examples for row in read_losses(tmp_path / "timestep_loss.csv")) == 30
