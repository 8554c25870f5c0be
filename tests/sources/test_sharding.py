"""Streams of real libraries, made here: every sample once an epoch over processes and workers, and nothing is run."""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ddpm_data import DDPMDataModule, schedules
from ddpm_data._distributed import EpochShard, World
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.iterable import IterableImages, IterableOrder
from ddpm_data.loading.loader import make_loader
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.sources import TarShards
from ddpm_data.sources._sharding import split_by_rank
from tests.conftest import ROOT, Recorder, trainer, uint8_images
from tests.sources.test_sources import Evil, hugging_face, rows, served
from tests.test_configs import composed

# webdataset 1.0 leaves it to Python to close its shards.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning"),
]
IMAGES = uint8_images(23, 3, 8, 6)


class Rank:
    """One process's loader of a source; ``epoch`` holds the one it is in."""

    def __init__(self, source: Any, share: EpochShard, workers: int) -> None:  # noqa: ANN401  # any source is the point
        self.epoch = epoch = [share.epoch]
        images, world = IterableImages(source, ImageProcessor(), "train"), World(share.world_size, share.rank)
        order = IterableOrder(lambda: epoch[0])
        self.loader = make_loader(images, "train", order, LoaderOptions(4, workers), world, 0)

    def read(self) -> list[bytes]:
        return [image.numpy().tobytes() for batch in self.loader for image in batch.images]


def read(source: Any, world_size: int = 1, workers: int = 0, epoch: int = 0) -> list[list[bytes]]:  # noqa: ANN401
    """What each process reads in an epoch."""
    return [Rank(source, EpochShard(epoch, world_size, rank), workers).read() for rank in range(world_size)]


def together(ranks: list[list[bytes]]) -> list[bytes]:
    return sorted(image for rank in ranks for image in rank)


LAYOUTS = [(1, 0), (1, 2), (2, 0), (2, 2), (3, 1)]  # processes, workers


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(("world_size", "workers"), LAYOUTS)
def test_a_hugging_face_stream_is_seen_once_however_few_its_shards(shards: int, world_size: int, workers: int) -> None:
    stream = hugging_face(IMAGES).to_iterable_dataset(num_shards=shards)
    for source in (stream, stream.shuffle(seed=1, buffer_size=5)):
        assert together(read(source, world_size, workers)) == rows(IMAGES)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_stream_is_told_its_epoch(workers: int, shards: list[str]) -> None:
    hf = hugging_face(IMAGES).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=5)
    for source in (hf, TarShards(shards, shuffle=5)):
        whole = Rank(source, EpochShard(0, 1, 0), workers)  # its workers stay
        first = whole.read()
        whole.epoch[0] = 1
        second = whole.read()
        assert first != second
        assert sorted(first) == sorted(second) == rows(IMAGES)
        assert read(source, workers=workers) == [first]
        assert read(source, workers=workers, epoch=1) == [second]  # a run that begins with it, resumed


def test_a_stream_split_already_is_refused() -> None:
    split = pytest.importorskip("datasets.distributed").split_dataset_by_node
    stream = split(hugging_face(IMAGES).to_iterable_dataset(), rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"split over processes already.*`dataset`"):
        split_by_rank(stream, EpochShard(0, 2, 0))


def tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return str(path)


def png(image: Tensor) -> bytes:
    content = io.BytesIO()
    F.to_pil_image(image).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    pytest.importorskip("webdataset")
    samples = [(f"{n:03}", image) for n, image in enumerate(IMAGES)]
    parts = [samples[n::6] for n in range(6)]
    return [
        tar(
            tmp_path / f"{n}.tar",
            {k: v for key, image in part for k, v in ((f"{key}.png", png(image)), (f"{key}.cls", b"3"))},
        )
        for n, part in enumerate(parts)
    ]


@pytest.mark.parametrize("shuffle", [0, 5])
@pytest.mark.parametrize(("world_size", "workers"), LAYOUTS)
def test_tar_shards_are_seen_once(shards: list[str], shuffle: int, world_size: int, workers: int) -> None:
    assert together(read(TarShards(shards, shuffle), world_size, workers)) == rows(IMAGES)


@pytest.mark.parametrize(("rank", "workers"), [(0, 0), (1, 0), (1, 1)])
def test_too_few_shards_are_an_error_in_every_process(shards: list[str], rank: int, workers: int) -> None:
    says = r"1 shard\(s\) cannot be shared out to 2 process.*`loader\.num_workers`"
    with pytest.raises(ValueError, match=says):
        Rank(TarShards(shards[:1]), EpochShard(0, 2, rank), workers).read()


def test_tar_shards_by_config_with_braces(shards: list[str], tmp_path: Path) -> None:
    config = ["dataset=webdataset", f"dataset.shards='{tmp_path}/{{0..5}}.tar'", "dataset.image_size=null"]
    model = Recorder()
    run = trainer(tmp_path, max_epochs=2)
    run.fit(model, datamodule=instantiate(composed(*config, "loader.batch_size=6", "loader.num_workers=2").datamodule))
    assert len(model.all("train").t) == 46
    assert len(model.all("train").noise.flatten(1).unique(dim=0)) == 46


def test_a_sample_is_what_its_files_say(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    npy = io.BytesIO()
    np.save(npy, IMAGES[1].numpy())
    files = {"a.mask.png": png(IMAGES[0]), "a.cls": b"7", "a.txt": b"a cat", "a.json": b"[1]", "a.npy": npy.getvalue()}
    (sample,) = TarShards(tar(tmp_path / "a.tar", files | {"a.bin": b"x", "a.eps": b"%!PS"}))
    assert (sample["cls"], sample["txt"], sample["json"], sample["bin"]) == (7, "a cat", [1], b"x")
    assert sample["eps"] == b"%!PS"  # for which PIL would start another program
    assert torch.equal(F.pil_to_tensor(sample["mask.png"]), IMAGES[0])
    assert torch.equal(torch.from_numpy(sample["npy"]), IMAGES[1])


def test_nothing_in_a_shard_is_run(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    evil = tmp_path / "run"
    payload, objects, weights = pickle.dumps(Evil(evil)), io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([Evil(evil)], dtype=object), allow_pickle=True)
    torch.save(Evil(evil), weights)
    for ending, content in (("pyd", payload), ("pickle", payload), ("pkl", payload), ("pth", weights.getvalue())):
        path = tar(tmp_path / f"{ending}.tar", {f"a.{ending}": content, "a.png": png(IMAGES[0])})
        (sample,) = TarShards(path)
        assert sample[ending] == content
        assert together(read(TarShards(path))) == rows(IMAGES[:1])
        assert not evil.exists()
        list(webdataset.WebDataset(path, shardshuffle=False).decode("pil"))
        assert evil.exists()  # the payload works: it is we who do not run it
        evil.unlink()
    for ending, content in (("npy", objects.getvalue()), ("npy", payload), ("png", payload), ("jpg", b"no image")):
        with pytest.raises(ValueError, match=rf"bad\.tar, a\.{ending} cannot be read"):
            list(TarShards(tar(tmp_path / "bad.tar", {f"a.{ending}": content})))
    assert not evil.exists()


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(FileNotFoundError, match=r"1\.tar. Change `dataset\.shards`"):
        TarShards([tar(tmp_path / "0.tar", {}), str(tmp_path / "1.tar")])
    with pytest.raises(ValueError, match=r"nothing to read.*`dataset\.shards`"):
        TarShards([])
    with pytest.raises(TypeError, match=r"`dataset\.train\.shuffle`"):
        TarShards(tmp_path / "0.tar", shuffle=True)


def optimized(folder: Path, images: Tensor) -> Path:
    pytest.importorskip("litdata")
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=4)
    for n, image in enumerate(images):
        writer[n] = {"image": image.permute(1, 2, 0).numpy(), "label": n}
    writer.done()
    writer.merge(1)
    return folder


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimized(tmp_path_factory.mktemp("chunks"), IMAGES)


@pytest.mark.parametrize("workers", [0, 2])
def test_litdata_is_seen_once_and_shuffled_anew(chunks: Path, workers: int) -> None:
    litdata = pytest.importorskip("litdata")
    source = litdata.StreamingDataset(str(chunks), shuffle=True)
    first, second = read(source, workers=workers), read(source, workers=workers, epoch=1)
    assert first != second
    assert together(first) == together(second) == rows(IMAGES)
    assert read(source, workers=workers) == first


def test_litdata_that_does_not_know_its_process_is_refused(chunks: Path) -> None:
    litdata = pytest.importorskip("litdata")
    with pytest.raises(ValueError, match=r"process 0 of 1, and this is process 1 of 2.*`_partial_: true`"):
        Rank(litdata.StreamingDataset(str(chunks)), EpochShard(0, 2, 1), 0).read()


def test_litdata_by_config(chunks: Path) -> None:
    config = ["dataset=litdata", f"dataset.root={chunks}", "dataset.image_size=null", "loader.num_workers=2"]
    assert served(instantiate(composed(*config).datamodule)) == rows(IMAGES)


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("library", ["datasets", "webdataset", "litdata"])
def test_a_run_resumes_inside_an_epoch(
    library: str, workers: int, shards: list[str], chunks: Path, tmp_path: Path
) -> None:
    """The second epoch's, on shuffled streams: the same triples as the run that was not interrupted."""

    def fit(folder: Path, ckpt: Path | None = None) -> Recorder:
        if library == "litdata":
            source: Any = litdata.StreamingDataset(str(chunks), shuffle=True, seed=1)
        elif library == "webdataset":
            source = TarShards(shards, shuffle=5)
        else:
            source = hugging_face(IMAGES).to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=5)
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


def test_two_processes_see_every_image_once_and_share_no_noise(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    images = uint8_images(24, 3, 8, 6)
    hugging_face(images).save_to_disk(tmp_path / "hugging_face")
    optimized(tmp_path / "litdata", images)
    for shard in range(4):
        tar(tmp_path / f"{shard}.tar", {f"{n}.png": png(images[n]) for n in range(shard, 24, 4)})
    command = ["timeout", "-k", "10", "120", sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--standalone", "-m", "tests.sources.stream_job", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
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
