"""Callbacks in real fits: what they write to loggers and files, read back; on one process and on two."""

import csv
import logging
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from ddpm_data import DDPMDataModule, Triple, plots, schedules
from ddpm_data.callbacks import NoisingStrip, TimestepLoss
from ddpm_data.diffusion.timestep_bins import BinLoss, read_losses
from ddpm_data.latents import Latents
from tests.callbacks.callbacks_job import Losses, main
from tests.conftest import ROOT, Recorder, trainer, uint8_images

IMAGES = uint8_images(40, 1, 4, 4)


def data(num_timesteps: int = 50, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # the DataModule's
    given = dict(train=TensorDataset(IMAGES), val=TensorDataset(IMAGES[:30]), batch_size=8, seed=1) | options
    return DDPMDataModule(schedule=schedules.linear(num_timesteps), **given)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def events(folder: Path) -> Any:  # noqa: ANN401  # tensorboard's
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    return read


def by_hand(model: Recorder, num_timesteps: int, buckets: int) -> list[tuple[float, int]]:
    """Mean loss and count in each range, by NumPy, of the first of two validations."""
    triples = model.all("val")
    t, noise = triples.t.numpy(), triples.noise.double().numpy()
    losses = (noise**2).reshape(len(t), -1).mean(1) + t
    edges = np.ceil(np.arange(buckets + 1) * num_timesteps / buckets)
    inside = [(t >= low) & (t < high) for low, high in pairwise(edges)]
    return [(losses[some].mean() if some.any() else np.nan, int(some.sum())) for some in inside]


# TimestepLoss


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


def test_losses_in_a_dict_are_the_same(tmp_path: Path) -> None:
    tables = []
    for name, returned in {"a": lambda batch: batch.t.float(), "b": lambda batch: {"losses": batch.t.float()}}.items():
        run = trainer(tmp_path, callbacks=[TimestepLoss(folder=tmp_path / name)])
        run.fit(Returns(returned), datamodule=data())
        tables.append(read_losses(tmp_path / name / "timestep_loss.csv"))
        assert (tmp_path / name / "timestep_loss.png").exists()
    assert tables[0] == tables[1]


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


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_goes_on_with_the_table_and_a_new_one_begins_it_anew(tmp_path: Path) -> None:
    whole = table_of(tmp_path / "whole", 4)
    assert [row.step for row in whole[::3]] == [5, 10, 15, 20]
    table_of(tmp_path / "parts", 3)
    assert table_of(tmp_path / "parts", 4, tmp_path / "parts" / "epoch=1.ckpt") == whole  # the third is done again
    assert table_of(tmp_path / "parts", 2) == whole[:6]


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_rows_of_a_branch_that_was_left_are_dropped(tmp_path: Path) -> None:
    table_of(tmp_path, 3)
    rest = table_of(tmp_path, 4, tmp_path / "epoch=0.ckpt", check=2)
    assert [row.step for row in rest[::3]] == [5, 10, 20]


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


# Both, in loggers and on several processes


def test_tensorboard_has_the_numbers_and_the_very_pictures(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        callbacks=[TimestepLoss(3), NoisingStrip(every_n_epochs=2, images=3, columns=4)],
        logger=TensorBoardLogger(tmp_path, name="", version=""),
        log_every_n_steps=1,
        max_epochs=4,
    )
    run.fit(Losses(), datamodule=data())
    read = events(tmp_path)
    table = read_losses(tmp_path / "timestep_loss.csv")
    for number, name in enumerate(["0000-0016", "0017-0033", "0034-0049"]):
        logged = [event.value for event in read.Scalars(f"val_loss_t/{name}")]
        assert logged == pytest.approx([row.loss for row in table[number::3]], rel=1e-6)
    assert [event.step for event in read.Images("noising")] == [0, 10]
    assert [event.step for event in read.Images("timestep_loss")] == [5, 10, 15, 20]
    for name, file in (("noising", "noising.png"), ("timestep_loss", "timestep_loss.png")):
        (tmp_path / "shown.png").write_bytes(read.Images(name)[-1].encoded_image_string)
        with Image.open(tmp_path / "shown.png") as shown, Image.open(tmp_path / file) as kept:
            assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(kept.convert("RGB")))


def test_two_processes_write_what_one_writes_and_once(tmp_path: Path) -> None:
    main(tmp_path / "1", 1)
    (tmp_path / "2").mkdir()
    command = [
        "timeout",
        "-k",
        "10",
        "200",
        sys.executable,
        "-m",
        "tests.callbacks.callbacks_job",
        str(tmp_path / "2"),
        "2",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "sync_dist" not in result.stderr
    ranks = [torch.load(tmp_path / "2" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert sum(ranks[0]["val"]) != sum(ranks[1]["val"])  # so that a mean of means would be wrong
    tables = [read_losses(tmp_path / name / "timestep_loss.csv") for name in "12"]
    assert len(tables[0]) == len(tables[1]) == 2 * 4
    for one, two in zip(*tables, strict=True):
        assert (one.epoch, one.first_t, one.last_t, one.examples) == (two.epoch, two.first_t, two.last_t, two.examples)
        assert one.loss == pytest.approx(two.loss, rel=1e-7)
    logged = [row for row in rows_of(tmp_path / "2" / "metrics.csv") if row["val_loss_t/0000-0012"]]
    assert [float(row["val_loss_t/0000-0012"]) for row in logged] == pytest.approx([tables[0][0].loss] * 2, rel=1e-6)
    for name in (f"val_loss_t/{name}" for name in ("0000-0012", "0013-0024", "0025-0037", "0038-0049")):
        assert ranks[0]["metrics"][name] == ranks[1]["metrics"][name]
    pictures = [np.asarray(Image.open(tmp_path / name / "noising.png")) for name in "12"]
    assert np.array_equal(*pictures)
    names = {path.name for path in (tmp_path / "2").iterdir()}
    assert names == {
        "rank0.pt", "rank1.pt", "metrics.csv",  "timestep_loss.csv", "timestep_loss.png", "noising.png"
    }  # fmt: skip


def test_without_a_ddpm_datamodule_they_say_what_they_need(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(TensorDataset(IMAGES))
    for callback in (TimestepLoss(), NoisingStrip()):
        with pytest.raises(ValueError, match=f"{type(callback).__name__} .* DDPMDataModule"):
            trainer(tmp_path, callbacks=[callback]).fit(Recorder(), loader)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TimestepLoss(0), "callbacks.timestep_loss.buckets"),
        (lambda: TimestepLoss(folder=3), "callbacks.timestep_loss.folder"),  # type: ignore[arg-type]
        (lambda: NoisingStrip(0), "callbacks.noising_strip.every_n_epochs"),
        (lambda: NoisingStrip(images=0), "callbacks.noising_strip.images"),
        (lambda: NoisingStrip(columns=1.5), "callbacks.noising_strip.columns"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_name_their_key(make: Any, says: str) -> None:  # noqa: ANN401
    with pytest.raises((TypeError, ValueError), match=says):
        make()


# NoisingStrip


class Ordered(IterableDataset[Tensor]):
    """The images in an order of its own."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(IMAGES[10:])


SETS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "val": (dict(val=TensorDataset(IMAGES[10:])), IMAGES[10:14]),
    "few": (dict(val=TensorDataset(IMAGES[10:13])), IMAGES[10:13]),
    "no val": (dict(val=None), IMAGES[:4]),
    "iterable": (dict(val=Ordered(), batch_size=3), IMAGES[10:14]),
    "a loader": (dict(val=torch.utils.data.DataLoader(TensorDataset(IMAGES[20:]), 3)), IMAGES[20:24]),
    "iterable, no val": (dict(train=Ordered(), val=None, batch_size=3), IMAGES[10:14]),
}


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("name", SETS)
def test_the_strip_shows_the_first_images_of_any_set(name: str, sanity: int, tmp_path: Path) -> None:
    options, expected = SETS[name]
    dm = data(**options)
    trainer(tmp_path, callbacks=[NoisingStrip(images=4)], num_sanity_val_steps=sanity).fit(Losses(), datamodule=dm)
    plots.noising_strip(dm.transform.process, expected, tmp_path / "expected.png")
    shown, wanted = (np.asarray(Image.open(tmp_path / file)) for file in ("noising.png", "expected.png"))
    assert np.array_equal(shown, wanted)
    assert not dm.transform._forward_pre_hooks


def test_a_part_of_the_training_set_is_shown_in_its_own_order(tmp_path: Path) -> None:
    dm = data(val=0.25)
    model = Losses()
    trainer(tmp_path, callbacks=[NoisingStrip(images=4)]).fit(model, datamodule=dm)
    images = next(iter(dm.val_dataloader())).images[:4]
    plots.noising_strip(dm.transform.process, images, tmp_path / "expected.png")
    shown, wanted = (np.asarray(Image.open(tmp_path / file)) for file in ("noising.png", "expected.png"))
    assert np.array_equal(shown, wanted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(train=torch.randn(9, 4, 4, 4), val=torch.randn(9, 4, 4, 4), latents=Latents()), "latents cannot"),
        (dict(train=uint8_images(9, 2, 4, 4), val=uint8_images(9, 2, 4, 4)), "images of 2 channels cannot"),
    ],
)
def test_what_cannot_be_looked_at_is_said_and_trained_on(
    options: dict[str, Any],
    says: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    with caplog.at_level(logging.INFO):
        run = trainer(tmp_path, callbacks=[NoisingStrip()])
        run.fit(Losses(), datamodule=data(**options))
    assert run.global_step == 2
    assert [record.message for record in caplog.records if says in record.message]
    assert not list(tmp_path.rglob("*.png"))


# W&B and MLflow, where they are installed


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_numbers_and_the_pictures(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    logger = MLFlowLogger(tracking_uri=uri, artifact_location=str(tmp_path / "artifacts"))
    callbacks: list[L.Callback] = [TimestepLoss(3, tmp_path), NoisingStrip(folder=tmp_path)]
    trainer(tmp_path, callbacks=callbacks, logger=logger).fit(Losses(), datamodule=data())
    client = mlflow.MlflowClient(uri)
    assert {file.path for file in client.list_artifacts(logger.run_id)} == {"noising.png", "timestep_loss.png"}
    history = client.get_metric_history(logger.run_id, "val_loss_t/0000-0016")
    assert [metric.value for metric in history] == pytest.approx([read_losses(tmp_path / "timestep_loss.csv")[0].loss])


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_the_numbers_and_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    callbacks: list[L.Callback] = [TimestepLoss(3, tmp_path), NoisingStrip(folder=tmp_path)]
    trainer(tmp_path, callbacks=callbacks, logger=logger).fit(Losses(), datamodule=data())
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    assert summary["val_loss_t/0000-0016"] == pytest.approx(read_losses(tmp_path / "timestep_loss.csv")[0].loss)
    for name in ("noising", "timestep_loss"):
        kept = [path.read_bytes() for path in tmp_path.glob(f"wandb/offline-run-*/files/media/images/{name}_*.png")]
        assert kept == [(tmp_path / f"{name}.png").read_bytes()]
