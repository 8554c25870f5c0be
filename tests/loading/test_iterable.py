"""Sources with an order of their own: unique positions, triples that follow from them, and clear refusals."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from ddpm_data import DDPMDataModule, ForwardDiffusion, ForwardProcess, UniformTimesteps, schedules
from ddpm_data.diffusion.timesteps import draw_word
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.iterable import POSITIONS_PER_EPOCH, IterableBatches, IterableImages
from ddpm_data.rng.philox import key_from
from tests.conftest import Recorder, trainer, uint8_images

BETAS = schedules.linear(100)
IMAGES = uint8_images(20, 3, 8, 8)


class Source(IterableDataset[Tensor]):
    """Splits itself over workers, as sharded sources do."""

    def __init__(self, images: Any = IMAGES, split: bool = True) -> None:  # noqa: ANN401  # any items
        self.images = images
        self.split = split

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return (
            itertools.islice(self.images, info.id, None, info.num_workers) if info and self.split else iter(self.images)
        )


class Plain:
    """No torch class at all, as a streamed set of the datasets library."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"image": image.permute(1, 2, 0).numpy(), "label": 1} for image in IMAGES])


def module(train: Any = None, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset is the point
    return DDPMDataModule(Source() if train is None else train, **(dict(schedule=BETAS, batch_size=6) | options))


@pytest.mark.parametrize("train", [Source(), Plain(), Source])
def test_triples_follow_from_the_order_of_arrival(train: object, tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, max_epochs=2).fit(model, datamodule=module(train, seed=5, flip=0.5))
    assert [len(batch.t) for batch in model.seen["train"]] == [6, 6, 6, 2] * 2
    transform = ForwardDiffusion(ForwardProcess(BETAS), seed=5, flip=0.5)
    places = torch.cat([torch.arange(20), POSITIONS_PER_EPOCH + torch.arange(20)])
    for seen, expected in zip(model.all("train"), transform(IMAGES.repeat(2, 1, 1, 1), places), strict=True):
        assert torch.equal(seen, expected)


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (2, 1), (2, 2), (1, 4)])
def test_no_two_examples_share_a_position(workers: int, world_size: int) -> None:
    positions = []
    for rank in range(world_size):
        source = Source(uint8_images(17 + rank, 1, 2, 2))
        items = IterableBatches(IterableImages(source, ImageProcessor(), "train"), "train", 4, False, world_size, rank)
        loader = DataLoader(items, batch_size=None, num_workers=workers)
        positions += [n for batch in loader for n in batch.images.position.tolist()]
        assert len(positions) == len(set(positions)) == sum(17 + r for r in range(rank + 1))
    assert max(positions) < POSITIONS_PER_EPOCH


def test_workers_split_the_source_and_drop_last_drops_each_ones_rest(tmp_path: Path) -> None:
    kept, dropped = Recorder(), Recorder()
    trainer(tmp_path).fit(kept, datamodule=module(num_workers=2))
    trainer(tmp_path).fit(dropped, datamodule=module(num_workers=2, drop_last=True))
    assert [len(batch.t) for batch in kept.seen["train"]] == [6, 6, 4, 4]
    assert [len(batch.t) for batch in dropped.seen["train"]] == [6, 6]
    assert torch.equal(kept.seen["train"][1].noise, dropped.seen["train"][1].noise)


def test_epochs_draw_new_noise_and_new_low_discrepancy_t(tmp_path: Path) -> None:
    model = Recorder()
    timesteps = UniformTimesteps(low_discrepancy=True)
    trainer(tmp_path, max_epochs=2).fit(model, datamodule=module(timesteps=timesteps))
    first, second = model.seen["train"][:4], model.seen["train"][4:]
    start = POSITIONS_PER_EPOCH + torch.arange(6)
    assert torch.equal(second[0].t, (draw_word(start, key_from(0), "train", True, strided=True) * 100) >> 32)
    assert not torch.equal(torch.cat([b.t for b in first]), torch.cat([b.t for b in second]))
    assert not torch.equal(first[0].noise, second[0].noise)


def test_evaluation_is_the_same_every_time(tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=module(val=Source()))
    epochs = [torch.cat([batch.x_t for batch in model.seen["val"][i : i + 4]]) for i in (0, 4, 8)]
    assert len(epochs[0]) == 20
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


@pytest.mark.parametrize("count", [4, 30])
def test_a_source_that_does_not_split_itself_is_found_out(count: int, tmp_path: Path) -> None:
    dm = module(Source(uint8_images(count, 3, 8, 8), split=False), num_workers=2)
    with pytest.raises(ValueError, match=r"workers 0 and 1 begin with the same images.*`num_workers`"):
        trainer(tmp_path).fit(Recorder(), datamodule=dm)
    trainer(tmp_path).fit(Recorder(), datamodule=module(Source(split=False), num_workers=1))


def test_blank_images_may_be_alike(tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=module(Source(torch.zeros_like(IMAGES)), num_workers=2))
    assert len(model.all("train").t) == 20


def test_another_geometry_is_refused_on_resume(tmp_path: Path) -> None:
    first = trainer(tmp_path, limit_train_batches=2)
    first.fit(Recorder(), datamodule=module())
    first.save_checkpoint(tmp_path / "x.ckpt")
    for change, says in ((dict(batch_size=3), "batch_size=6.*batch_size=3"), (dict(num_workers=2), "num_workers=0")):
        with pytest.raises(ValueError, match=says):
            trainer(tmp_path).fit(Recorder(), datamodule=module(**change), ckpt_path=tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="length=None, and this run has length=20"):
        trainer(tmp_path).fit(Recorder(), datamodule=module(TensorDataset(IMAGES)), ckpt_path=tmp_path / "x.ckpt")


REFUSED = [
    (dict(train=Source(), val=0.2), ValueError, r"order of its own.*`val`"),
    (dict(train=iter(IMAGES)), TypeError, r"iterated over only once.*`train`"),
    (dict(train=Source([IMAGES[0], "no image"])), TypeError, r"train, item 1: an item is a str"),
    (dict(train=Source([IMAGES[0], IMAGES[1, :1]])), ValueError, r"train\[0\] is \(3, 8, 8\) and train\[1\] is \(1, 8"),
    (dict(train=Source(IMAGES.float())), ValueError, r"train, item 0: .*`value_range`"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), REFUSED)
def test_what_cannot_be_served_is_refused(
    arguments: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        trainer(tmp_path).fit(Recorder(), datamodule=module(**arguments))


class Spent:
    """Returns a generator that it keeps: the second epoch finds it at its end."""

    def __init__(self, count: int) -> None:
        self.items = iter(list(uint8_images(8, 1, 4, 4)[:count]))

    def __iter__(self) -> Iterator[Tensor]:
        return self.items


@pytest.mark.parametrize(("count", "epoch"), [(8, 1), (0, 0)])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_without_images_ends_the_run(count: int, epoch: int, workers: int, tmp_path: Path) -> None:
    """fit() returned as if all were well."""
    options = dict(persistent_workers=True) if workers else {}
    datamodule = DDPMDataModule(
        Spent(count), schedule=schedules.linear(10), batch_size=4, num_workers=workers, **options
    )
    with pytest.raises(ValueError, match=rf"train gave no images in epoch {epoch}.*from the beginning.*`train`"):
        trainer(tmp_path, max_epochs=3).fit(Recorder(), datamodule=datamodule)
