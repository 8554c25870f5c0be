"""Streams of real libraries, written here: every sample once per epoch over processes and workers."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ddpm_data import DDPMDataModule, schedules
from ddpm_data._distributed import EpochShard
from ddpm_data.sources import TarShards
from ddpm_data.sources._sharding import split_by_rank
from tests.conftest import ROOT, Recorder, trainer, uint8_images
from tests.groups import finished
from tests.sources.helpers import (
    LAYOUTS,
    STREAM_IMAGES,
    Rank,
    hugging_face,
    litdata_chunks,
    mosaic,
    mosaic_shards,
    png,
    read,
    rows,
    served,
    tar,
    together,
)
from tests.test_configs import composed
from tests.warm import python

# webdataset 1.0 leaves it to Python to close its shards.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(("world_size", "workers"), LAYOUTS)
def test_a_hugging_face_stream_is_seen_once_however_few_its_shards(shards: int, world_size: int, workers: int) -> None:
    stream = hugging_face(STREAM_IMAGES).to_iterable_dataset(num_shards=shards)
    for source in (stream, stream.shuffle(seed=1, buffer_size=5)):
        assert together(read(source, world_size, workers)) == rows(STREAM_IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_stream_is_told_its_epoch(workers: int, shards: list[str]) -> None:
    hf = hugging_face(STREAM_IMAGES).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=5)
    for source in (hf, TarShards(shards, shuffle=5)):
        whole = Rank(source, EpochShard(0, 1, 0), workers)  # its workers stay
        first = whole.read()
        whole.epoch[0] = 1
        second = whole.read()
        assert first != second
        assert sorted(first) == sorted(second) == rows(STREAM_IMAGES)
        assert read(source, workers=workers) == [first]
        assert read(source, workers=workers, epoch=1) == [second]  # a run that begins with it, resumed


def test_a_stream_split_already_is_refused() -> None:
    split = pytest.importorskip("datasets.distributed").split_dataset_by_node
    stream = split(hugging_face(STREAM_IMAGES).to_iterable_dataset(), rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"split over processes already.*`dataset`"):
        split_by_rank(stream, EpochShard(0, 2, 0))


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return litdata_chunks(tmp_path_factory.mktemp("chunks"), STREAM_IMAGES)


@pytest.mark.parametrize("workers", [0, 2])
def test_litdata_is_seen_once_and_shuffled_anew(chunks: Path, workers: int) -> None:
    litdata = pytest.importorskip("litdata")
    source = litdata.StreamingDataset(str(chunks), shuffle=True)
    first, second = read(source, workers=workers), read(source, workers=workers, epoch=1)
    assert first != second
    assert together(first) == together(second) == rows(STREAM_IMAGES)
    assert read(source, workers=workers) == first


def test_litdata_that_does_not_know_its_process_is_refused(chunks: Path) -> None:
    litdata = pytest.importorskip("litdata")
    with pytest.raises(ValueError, match=r"process 0 of 1, and this is process 1 of 2.*`_partial_: true`"):
        Rank(litdata.StreamingDataset(str(chunks)), EpochShard(0, 2, 1), 0).read()


def test_litdata_by_config(chunks: Path) -> None:
    config = ["dataset=litdata", f"dataset.root={chunks}", "dataset.image_size=null", "loader.num_workers=2"]
    assert served(instantiate(composed(*config).datamodule)) == rows(STREAM_IMAGES)


class Counting(IterableDataset[Tensor]):
    """Shuffles by how often it was gone through, as MosaicML's does: in memory that its workers share."""

    def __init__(self) -> None:
        self.count = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # torch's

    @property
    def next_epoch(self) -> int:
        return int(self.count)

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self.count.fill_(epoch)

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        order = torch.randperm(len(STREAM_IMAGES), generator=torch.Generator().manual_seed(self.next_epoch))
        if workers == 1:
            self.next_epoch += 1
        return iter(STREAM_IMAGES[order[worker::workers]])


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("library", ["datasets", "webdataset", "litdata", "streaming", "one that counts"])
def test_a_run_resumes_inside_an_epoch(
    library: str, workers: int, shards: list[str], chunks: Path, tmp_path: Path
) -> None:
    """The second epoch's, on shuffled streams: the same triples as the run that was not interrupted."""

    def fit(folder: Path, ckpt: Path | None = None) -> Recorder:
        if library == "streaming":
            source: Any = mosaic(mosaic_shards(tmp_path / f"mds of {folder.name}", STREAM_IMAGES))
        elif library == "one that counts":
            source = Counting()
        elif library == "litdata":
            source = litdata.StreamingDataset(str(chunks), shuffle=True, seed=1)
        elif library == "webdataset":
            source = TarShards(shards, shuffle=5)
        else:
            source = hugging_face(STREAM_IMAGES).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=5)
        save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[save])
        data = DDPMDataModule(source, schedule=schedules.linear(10), batch_size=4, num_workers=workers)
        model = Recorder()
        run.fit(model, datamodule=data, ckpt_path=ckpt)
        return model

    litdata = pytest.importorskip("litdata")
    whole = fit(tmp_path / "whole").seen["train"]
    resumed = fit(tmp_path / "resumed", tmp_path / "whole" / "step=8.ckpt").seen["train"]
    assert len(resumed) == len(whole) - 8
    for one, other in zip(resumed, whole[8:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_loader_of_a_source_that_counts_its_epochs_is_told_the_epoch() -> None:
    def batches(epoch: int) -> list[Tensor]:
        dm = DDPMDataModule(DataLoader(Counting(), batch_size=23), schedule=schedules.linear(10))
        dm.setup("fit")
        loader = dm.train_dataloader()
        loader.set_epoch(epoch)
        return [batch.images for batch in loader]

    order = torch.randperm(23, generator=torch.Generator().manual_seed(3))
    assert torch.equal(batches(3)[0], STREAM_IMAGES[order])


@pytest.mark.parametrize("workers", [0, 2])
def test_mosaic_is_seen_once_and_shuffled_anew(workers: int, tmp_path: Path) -> None:
    mosaic_shards(tmp_path / "mds", STREAM_IMAGES)
    first, second, again = (read(mosaic(tmp_path / "mds"), workers=workers, epoch=epoch) for epoch in (0, 1, 0))
    assert first != second
    assert together(first) == together(second) == rows(STREAM_IMAGES)
    assert first == again


def test_mosaic_that_does_not_know_its_process_is_refused(tmp_path: Path) -> None:
    source = mosaic(mosaic_shards(tmp_path / "mds", STREAM_IMAGES))
    with pytest.raises(ValueError, match=r"process 0 of 1, and this is process 1 of 2.*torchrun"):
        Rank(source, EpochShard(0, 2, 1), 0).read()


@pytest.mark.slow
def test_two_processes_see_every_image_once_and_share_no_noise(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    images = uint8_images(24, 3, 8, 6)
    hugging_face(images).save_to_disk(tmp_path / "hugging_face")
    litdata_chunks(tmp_path / "litdata", images)
    if find_spec("streaming"):
        mosaic_shards(tmp_path / "mosaic", images)
    for shard in range(4):
        tar(tmp_path / f"{shard}.tar", {f"{n}.png": png(images[n]) for n in range(shard, 24, 4)})
    command = [python(), "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--standalone", "-m", "tests.sources.stream_job", str(tmp_path)]
    code, printed = finished(command, ROOT)
    assert code == 0, printed[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ranks[0]:
        orders, noise = [], []
        for epoch in range(2):
            parts = [rank[name][epoch] for rank in ranks]
            assert sorted(rows(parts[0][0]) + rows(parts[1][0])) == rows(images), (name, epoch)
            assert len(parts[0][0]) == len(parts[1][0])
            orders.append(torch.cat([image for image, _ in parts]))
            noise += [drawn for _, drawn in parts]
        assert not torch.equal(*orders)
        assert len(torch.cat(noise).flatten(1).unique(dim=0)) == 48
