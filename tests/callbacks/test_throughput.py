"""Where a batch's time goes, in real fits whose slow part is known."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ddpm_data import DDPMDataModule, Triple, schedules
from ddpm_data.callbacks import Throughput
from ddpm_data.callbacks._stopwatch import PARTS, Stopwatch, has_passed, shares
from ddpm_data.types import ImageBatch
from tests.conftest import Recorder, trainer, uint8_images

NAP = 0.02  # seconds: much longer than anything else in these fits
IMAGES = uint8_images(24, 1, 4, 4)
BATCHES = 6  # an epoch


class Slow(TensorDataset):
    """Naps once a batch of four."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        time.sleep(NAP / 4)
        return super().__getitem__(index)


class SlowStream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        for image in IMAGES:
            time.sleep(NAP / 4)
            yield image


def nap(images: Tensor) -> Tensor:
    time.sleep(NAP)
    return images


class SlowTransfer(DDPMDataModule):
    def on_before_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        time.sleep(NAP)
        return super().on_before_batch_transfer(batch, dataloader_idx)


class SlowModel(Recorder):
    def training_step(self, batch: Triple, batch_idx: int) -> Tensor:
        time.sleep(NAP)
        return super().training_step(batch, batch_idx)


class SlowCallback(L.Callback):
    """As a checkpoint that is written after a batch."""

    def on_train_batch_end(self, *_: object) -> None:
        time.sleep(NAP)


class Readings(L.Callback):
    """Keeps every share and rate that is logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        now = {name: float(trainer.callback_metrics[name]) for name in NAMES if name in trainer.callback_metrics}
        if now and (not self.seen or now != self.seen[-1]):
            self.seen.append(now)


NAMES = ["images_per_s", *(f"{part}_share" for part in PARTS)]


def readings(
    tmp_path: Path,
    dm: DDPMDataModule | None = None,
    model: L.LightningModule | None = None,
    every: int = BATCHES,
    callbacks: tuple[L.Callback, ...] = (),
    **options: Any,  # noqa: ANN401  # the Trainer's
) -> list[dict[str, float]]:
    kept = Readings()
    run = trainer(tmp_path, callbacks=[Throughput(every), kept, *callbacks], **options)
    run.fit(model or Recorder(), datamodule=dm or data())
    return kept.seen


def data(kind: type[DDPMDataModule] = DDPMDataModule, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # the DataModule's
    given = dict(train=Slow(IMAGES), batch_size=4) | options
    return kind(schedule=schedules.linear(10), **given)


FAST = TensorDataset(IMAGES)


def case(name: str) -> tuple[DDPMDataModule, L.LightningModule, str]:
    return {
        "loader": lambda: (data(), Recorder(), "loader_share"),
        "stream": lambda: (data(train=SlowStream()), Recorder(), "loader_share"),
        "a loader of one's own": lambda: (data(train=DataLoader(Slow(IMAGES), 4)), Recorder(), "loader_share"),
        "transfer": lambda: (data(SlowTransfer, train=FAST), Recorder(), "transfer_share"),
        "transform": lambda: (data(train=FAST, augment=nap), Recorder(), "transform_share"),
        "model": lambda: (data(train=FAST), SlowModel(), ""),
    }[name]()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loader", "stream", "a loader of one's own", "transfer", "transform", "model"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_slow_part_has_the_time(name: str, accumulate: int, tmp_path: Path) -> None:
    dm, model, slow = case(name)
    options = dict(accumulate_grad_batches=accumulate, max_epochs=3)
    # The first epoch compiles and warms up.
    _, *found = readings(tmp_path, dm, model, **options)
    assert len(found) == 2
    for reading in found:
        parts = {part: reading[part] for part in NAMES[1:]}
        assert all(0 <= share <= 1 for share in parts.values())
        assert sum(parts.values()) <= 1
        for part, share in parts.items():
            assert (share > 0.5) == (part == slow), parts
        assert reading["images_per_s"] < 4 / NAP


def test_other_callbacks_time_is_not_the_loaders(tmp_path: Path) -> None:
    _, found = readings(tmp_path, data(train=FAST), callbacks=(SlowCallback(),), max_epochs=2)
    assert all(found[part] < 0.5 for part in NAMES[1:])
    assert found["images_per_s"] < 24 / (5 * NAP)  # the nap after the last batch is between two epochs


@pytest.mark.slow
def test_validation_between_batches_is_left_out(tmp_path: Path) -> None:
    dm = data(train=FAST, val=Slow(IMAGES))
    _, *found = readings(tmp_path, dm, val_check_interval=2, max_epochs=4)
    # Three validations of 6 naps an epoch: were they counted, six batches of 4 would take 18 naps.
    assert all(reading["images_per_s"] > 24 / (9 * NAP) for reading in found)
    assert all(reading["loader_share"] < 0.6 for reading in found)


def test_readings_span_short_epochs_and_limits(tmp_path: Path) -> None:
    found = readings(tmp_path, data(train=FAST), every=4, limit_train_batches=3, max_epochs=4)
    assert len(found) == 3
    assert all(set(reading) == set(NAMES) for reading in found)


def test_readings_reach_the_logger_whatever_its_interval(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        callbacks=[Throughput(4)],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=5,
        max_epochs=2,
    )
    run.fit(Recorder(), datamodule=data(train=FAST))
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["images_per_s"]]
    assert rows
    assert all(0 <= float(row[name]) for row in rows for name in NAMES)


def test_the_triples_are_those_without_it_and_nothing_stays_behind(tmp_path: Path) -> None:
    watched, alone = Recorder(), Recorder()
    dm = data(train=FAST)
    readings(tmp_path, dm, watched)
    assert not dm.transform._forward_pre_hooks
    trainer(tmp_path).fit(alone, datamodule=data(train=FAST))
    for a, b in zip(watched.all("train"), alone.all("train"), strict=True):
        assert torch.equal(a, b)


class Plain(Recorder):
    """Gets its triples from a loader that is none of ours."""

    def train_dataloader(self) -> DataLoader[Any]:
        t = torch.zeros(24, dtype=torch.int64)
        return DataLoader(
            TensorDataset(IMAGES.float(), t, IMAGES.float()),
            4,
            collate_fn=lambda items: Triple(*map(torch.stack, zip(*items, strict=True))),
        )


def test_without_a_ddpm_datamodule_there_is_the_rate_alone(tmp_path: Path) -> None:
    kept = Readings()
    trainer(tmp_path, callbacks=[Throughput(3), kept]).fit(Plain())
    assert kept.seen
    assert all(set(reading) == {"images_per_s"} for reading in kept.seen)


def test_batches_that_are_no_triples_are_counted_too(tmp_path: Path) -> None:
    class Other(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.weight * batch[0].float().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    kept = Readings()
    loader = DataLoader(TensorDataset(IMAGES), batch_size=4)
    trainer(tmp_path, callbacks=[Throughput(3), kept]).fit(Other(), loader)
    assert kept.seen
    assert all(reading["images_per_s"] > 0 for reading in kept.seen)


def test_missing_marks_are_no_time() -> None:
    watch = Stopwatch(on_cuda=False)
    watch.restart()
    watch.mark("moved")
    time.sleep(0.001)
    watch.mark("made")
    watch.lap()
    laps = watch.take()
    assert has_passed(laps)
    found = shares(laps)
    assert found["loader"] == found["transfer"] == 0
    assert 0 < found["transform"] <= 1
    assert not watch.take()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["loader", "transfer", "model"])
def test_on_a_cuda_device_the_slow_part_has_its_time(name: str, tmp_path: Path) -> None:
    """Naps of the host show as the device's idle time; nothing waits: every reading but the last few is read."""
    dm, model, slow = case(name)
    found = readings(tmp_path, dm, model, accelerator="cuda", max_epochs=6)[2:]
    shown = [reading for reading in found if len(reading) == len(NAMES)]
    assert shown
    for reading in shown:
        assert sum(reading[part] for part in NAMES[1:]) <= 1.001
        assert all((reading[part] > 0.5) == (part == slow) for part in NAMES[1:])
