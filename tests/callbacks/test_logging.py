"""What callbacks hand to loggers: the numbers and the very pictures; written once, also by two processes."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from ddpm_data.callbacks import NoisingStrip, TimestepLoss
from ddpm_data.diffusion.timestep_bins import read_losses
from tests.callbacks.callbacks_job import Losses, main
from tests.callbacks.helpers import data, rows_of
from tests.conftest import ROOT, trainer
from tests.groups import finished
from tests.warm import python


def events(folder: Path) -> Any:  # noqa: ANN401  # tensorboard's
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    return read


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_once(tmp_path: Path) -> None:
    main(tmp_path / "1", 1)
    (tmp_path / "2").mkdir()
    code, printed = finished([python(), "-m", "tests.callbacks.callbacks_job", str(tmp_path / "2"), "2"], ROOT)
    assert code == 0, printed[-3000:]
    assert "sync_dist" not in printed
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
