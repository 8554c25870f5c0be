"""Map-style datasets that change with the epoch are told it, where their items are read."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import Recorder, trainer


class Changing(Dataset[Tensor]):
    """All pixels of an item are ten times the epoch that the dataset was told, and one is the item's number."""

    def __init__(self) -> None:
        self.epoch = 20
        self.calls = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.calls += 1

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((1, 2, 2), 10 * self.epoch, dtype=torch.uint8).index_fill(1, torch.tensor([0]), index)


class ChangingTensors(TensorDataset):
    def set_epoch(self, epoch: int) -> None:
        self.tensors = (torch.full((20, 1, 2, 2), 10 * epoch, dtype=torch.uint8),)


RUN = ("overfit_batches", "val_check_interval", "callbacks", "reload_dataloaders_every_n_epochs")


def fit(tmp_path: Path, train: Any, **options: Any) -> Recorder:  # noqa: ANN401  # any dataset and option
    model, ckpt = Recorder(), options.pop("ckpt", None)
    run = {name: options.pop(name) for name in RUN if name in options}
    options = dict(schedule=schedules.constant(1, 1e-12), batch_size=4, compile=False) | options
    data = DDPMDataModule(train, **options)
    trainer(tmp_path, max_epochs=3, enable_checkpointing="callbacks" in run, **run).fit(
        model, datamodule=data, ckpt_path=ckpt
    )
    return model


def epochs(model: Recorder, stage: str) -> list[int]:
    """The epoch that each batch's images were made for."""
    images = [((batch.x_t[:, 0, 1] + 1) * 127.5).round() for batch in model.seen[stage]]
    assert all(len(image.unique()) == 1 for image in images)
    return [int(image.unique()) // 10 for image in images]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda: Changing(),
        lambda: Subset(Changing(), range(20)),
        lambda: ConcatDataset([Subset(Changing(), range(10)), Changing()]),
        lambda: ChangingTensors(torch.full((20, 1, 2, 2), 200, dtype=torch.uint8)),
    ],
    ids=["itself", "subset", "both", "tensors"],
)
def test_workers_that_stay_are_told_the_epoch(wrap: Any, workers: int, tmp_path: Path) -> None:  # noqa: ANN401  # a function
    """They served the items of before the first epoch for ever."""
    steps, again = (
        ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=1, save_top_k=-1) for name in "ab"
    )
    model = fit(tmp_path, wrap(), num_workers=workers, callbacks=[steps])
    batches = -(-len(wrap()) // 4)
    assert epochs(model, "train") == [0] * batches + [1] * batches + [2] * batches
    resumed = fit(
        tmp_path, wrap(), num_workers=workers, callbacks=[again], ckpt=tmp_path / f"a/step={batches + 2}.ckpt"
    )
    assert epochs(resumed, "train") == [1] * (batches - 2) + [2] * batches


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_told_epoch_0(workers: int, tmp_path: Path) -> None:
    """Also in the middle of an epoch of training, on the same dataset: in training it comes back to its epoch."""
    dataset = Changing()
    model = fit(tmp_path, dataset, val=0.4, num_workers=workers, val_check_interval=1)
    assert epochs(model, "train") == [0] * 3 + [1] * 3 + [2] * 3
    assert set(epochs(model, "val")) == {0}
    if workers == 0:
        assert dataset.calls <= 2 * 9  # not for every batch
    everywhere = fit(tmp_path, dataset, val=dataset, num_workers=workers, overfit_batches=2)
    assert set(epochs(everywhere, "train")) == set(epochs(everywhere, "val")) == {0}


@pytest.mark.parametrize("later", [10, 30])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_length_that_changes_is_refused_where_it_does(later: int, workers: int, tmp_path: Path) -> None:
    """Positions count the length, so the dataset was told wrong epochs, and its new items were never seen."""

    class Growing(Changing):
        def __len__(self) -> int:
            return later if self.epoch == 1 else 20

    with pytest.raises(ValueError, match=rf"train has {later} items now, and had 20 .*__len__"):
        fit(tmp_path, Growing(), num_workers=workers)


def test_what_changes_with_the_epoch_is_not_cached(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set_epoch.*`cache_dir`"):
        fit(tmp_path, Changing(), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "wrap", [lambda data: data, lambda data: Subset(data, range(8)), lambda data: ConcatDataset([data])]
)
def test_behind_a_dataloader_of_the_users_own(wrap: Any) -> None:  # noqa: ANN401  # datasets
    loader = DataLoader(wrap(Changing()), batch_size=4)
    data = DDPMDataModule(loader, schedule=schedules.linear(), compile=False)
    data.setup("fit")
    batches = data.train_dataloader()
    for epoch in range(3):
        batches.set_epoch(epoch)
        assert next(iter(batches)).images[0, 0, 1, 1] == 10 * epoch


@pytest.mark.parametrize("later", [10, 30])
@pytest.mark.parametrize("reload", [0, 1])
def test_a_length_that_changes_between_epochs_is_refused_also_where_loaders_are_made_anew(
    later: int, reload: int, tmp_path: Path
) -> None:
    """A part of the images was served, or one that is not there."""
    images = [torch.full((1, 2, 2), number, dtype=torch.uint8) for number in range(20)]

    class Changes(L.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:  # noqa: ANN401  # Lightning's
            images[:] = (images * 2)[:later]

    options: dict[str, Any] = {"reload_dataloaders_every_n_epochs": reload, "callbacks": [Changes()]}
    with pytest.raises(ValueError, match=rf"train has {later} items now, and had 20 .*__len__"):
        fit(tmp_path, images, **options)
