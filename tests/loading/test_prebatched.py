"""DataLoaders of the user's own: their batches as they are, with places of ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from ddpm_data import DDPMDataModule, Triple, schedules
from ddpm_data._distributed import World
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.latents import Latents
from ddpm_data.loading.loader import make_loader
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.prebatched import PrebatchedBatches, PrebatchedImages
from tests.conftest import Recorder, trainer, uint8_images

IMAGES, LABELS = uint8_images(22, 3, 8, 8), torch.arange(22)


def loader(*tensors: Any, **options: Any) -> DataLoader[Any]:  # noqa: ANN401  # a TensorDataset's, a DataLoader's
    return DataLoader(TensorDataset(*tensors), **(dict(batch_size=5) | options))


def as_dict(items: list[tuple[torch.Tensor, ...]]) -> dict[str, Any]:
    return {"image": torch.stack([item[0] for item in items]), "text": [f"number {int(item[1])}" for item in items]}


def module(train: Any, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset and option
    return DDPMDataModule(train, **(dict(schedule=schedules.constant(2, 1e-7)) | options))


@pytest.mark.parametrize(
    ("train", "options"),
    [
        (loader(IMAGES), {}),
        (loader(IMAGES, LABELS), {}),
        (loader(IMAGES, LABELS, num_workers=2), {}),
        (loader(IMAGES, LABELS, collate_fn=as_dict), {}),
        (loader(IMAGES.permute(0, 2, 3, 1)), {}),
        (loader(IMAGES / 255), dict(value_range=(0, 1))),
        (loader(IMAGES.float()), dict(latents=Latents(1 / 127.5, 127.5))),
        (lambda: loader(IMAGES), dict(num_workers=2)),
    ],
    ids=["images", "labelled", "workers", "dict", "channels last", "floats", "latents", "factory"],
)
def test_batches_come_as_they_are(train: Any, options: dict[str, Any], tmp_path: Path) -> None:  # noqa: ANN401
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=module(train, val=train, **options))
    for stage in ("train", "val"):
        assert torch.equal(((model.all(stage).x_t + 1) * 127.5).round().to(torch.uint8), IMAGES)
        assert [len(batch.t) for batch in model.seen[stage]] == [5, 5, 5, 5, 2]
    noise = model.all("train").noise
    assert len(set(noise.flatten(1)[:, 0].tolist())) == 22


def test_conditions_and_resizing(tmp_path: Path) -> None:
    data = module(loader(IMAGES, LABELS, collate_fn=as_dict), condition="text", image_size=4)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.x_t.shape == (5, 3, 4, 4)
    assert batch[3] == [f"number {n}" for n in range(5)]


def test_noise_follows_the_place_and_shuffling_the_epoch(tmp_path: Path) -> None:
    sampler: DistributedSampler[Any] = DistributedSampler(TensorDataset(IMAGES), num_replicas=1, rank=0, shuffle=True)
    runs = []
    for batch_size in (5, 4):
        model = Recorder()
        train = loader(IMAGES, batch_size=batch_size, sampler=sampler)
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=module(train))
        runs.append(model.all("train"))
    assert torch.equal(runs[0].noise, runs[1].noise)
    assert torch.equal(runs[0].x_t, runs[1].x_t)
    first, second = runs[0].x_t.chunk(2)
    assert not torch.equal(first.round(decimals=2), second.round(decimals=2))
    assert torch.equal(
        first.flatten(1)[:, 0].sort().values.round(decimals=2), second.flatten(1)[:, 0].sort().values.round(decimals=2)
    )


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_run_resumes_inside_an_epoch(tmp_path: Path) -> None:
    def fit(model: Recorder, folder: Path, ckpt: Path | None = None) -> None:
        sampler: DistributedSampler[Any] = DistributedSampler(TensorDataset(IMAGES), num_replicas=1, rank=0)
        save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[save])
        run.fit(model, datamodule=module(loader(IMAGES, sampler=sampler)), ckpt_path=ckpt)

    whole, resumed = Recorder(), Recorder()
    fit(whole, tmp_path / "whole")
    fit(resumed, tmp_path / "resumed", tmp_path / "whole" / "step=7.ckpt")
    rest = Triple(*(torch.cat(parts) for parts in zip(*whole.seen["train"][7:], strict=True)))
    assert torch.equal(resumed.all("train").x_t, rest.x_t)
    assert torch.equal(resumed.all("train").noise, rest.noise)


def test_ranks_share_no_place_and_each_has_its_own_batches() -> None:
    positions = []
    for rank in range(2):
        sampler: DistributedSampler[Any] = DistributedSampler(TensorDataset(IMAGES), num_replicas=2, rank=rank)
        ready = PrebatchedImages(loader(IMAGES, sampler=sampler), ImageProcessor(), "train", None)
        ready.check_world(2)
        positions += [n for part in PrebatchedBatches(ready, "train", 2, rank) for n in part.images.position.tolist()]
    assert sorted(positions) == list(range(22))


def test_one_loader_for_all_ranks_is_refused() -> None:
    ready = PrebatchedImages(loader(IMAGES, shuffle=True), ImageProcessor(), "train", None)
    options, world = LoaderOptions(5), World(2, 0)
    with pytest.raises(ValueError, match=r"RandomSampler, and there are 2 processes.*`dataset\.train`.*Distributed"):
        make_loader(ready, "train", ready.eval_order(options, world), options, world, 0)


class Buckets(Sampler[list[int]]):
    """Batches of one's own, such as one shape each; it knows of one process only."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2], [3, 4]])

    def __len__(self) -> int:
        return 2


class SharedBuckets(Buckets):
    """It knows its rank."""

    num_replicas, rank = 2, 1


def test_a_foreign_batch_sampler_must_know_its_rank() -> None:
    """Both ranks were given the same batches."""
    options, world = LoaderOptions(5), World(2, 1)
    for batch_sampler, refused in ((Buckets(), True), (SharedBuckets(), False)):
        data = DataLoader(TensorDataset(IMAGES), batch_sampler=batch_sampler)
        ready = PrebatchedImages(data, ImageProcessor(), "train", None)
        make_loader(ready, "train", ready.eval_order(options, World(1, 0)), options, World(1, 0), 0)
        if refused:
            with pytest.raises(ValueError, match=r"a Buckets, and there are 2 processes.*`num_replicas` and `rank`"):
                make_loader(ready, "train", ready.eval_order(options, world), options, world, 0)
        else:
            make_loader(ready, "train", ready.eval_order(options, world), options, world, 0)


class Epochs(SharedBuckets):
    """It shuffles by the epoch that it is told."""

    def set_epoch(self, epoch: int) -> None:
        told.append(epoch)


told: list[int] = []


def test_a_batch_sampler_is_told_the_epoch(tmp_path: Path) -> None:
    told.clear()
    train = DataLoader(TensorDataset(IMAGES), batch_sampler=Epochs())
    trainer(tmp_path, max_epochs=3).fit(Recorder(), datamodule=module(train))
    assert told == [0, 1, 2]


@pytest.mark.parametrize(
    "condition",
    [
        list(range(5)),
        np.arange(5),
        [torch.arange(1 + index) for index in range(5)],
        [["a", "b"][: 1 + index % 2] for index in range(5)],
        [None, "a", "b", None, "c"],
        [{"boxes": torch.zeros(index, 4)} for index in range(5)],
        torch.zeros(()),
    ],
    ids=["a list", "an array", "ragged", "several captions", "none", "dicts", "one for all"],
)
def test_conditions_of_any_form_are_passed_on(condition: Any) -> None:  # noqa: ANN401  # what a collate_fn may return
    train = DataLoader(TensorDataset(IMAGES[:5]), 5, collate_fn=lambda _: {"x": IMAGES[:5], "y": condition})
    dm = module(train, image_key="x", condition="y")
    dm.setup("fit")
    batch = dm.on_after_batch_transfer(next(iter(dm.train_dataloader())), 0)
    assert repr(batch[3]) == repr(torch.as_tensor(condition) if isinstance(condition, np.ndarray) else condition)


@pytest.mark.parametrize(
    ("train", "options", "error", "says"),
    [
        (loader(IMAGES, batch_size=None), {}, TypeError, r"train, batch 0: the item holds no image, but 0: Tensor"),
        (loader(LABELS), {}, TypeError, r"train, batch 0: the item holds no image"),
        (loader(IMAGES, IMAGES), {}, ValueError, r"train, batch 0: .*several images.*`image_key`"),
        (loader(IMAGES / 255), {}, ValueError, r"train, batch 0: .*`value_range`"),
        (loader(IMAGES), dict(condition=1), ValueError, r"train, batch 0: .*condition at 1"),
        (loader(IMAGES), dict(val=0.5), ValueError, r"val=0\.5: a DataLoader gives its items in an order of its own"),
        (loader(IMAGES), dict(cache_dir="cache"), ValueError, r"train is a DataLoader.*`cache_dir`"),
    ],
)
def test_what_does_not_fit_is_refused(
    train: DataLoader[Any], options: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        trainer(tmp_path).fit(Recorder(), datamodule=module(train, **options))
