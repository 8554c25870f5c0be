"""Tar shards, written here: every sample once per epoch over processes and workers, and nothing in them is run."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torchvision.transforms.v2 import functional as F

from ddpm_data._distributed import EpochShard
from ddpm_data.sources import TarShards
from tests.conftest import Recorder, trainer
from tests.sources.helpers import (
    LAYOUTS,
    STREAM_IMAGES,
    Evil,
    Rank,
    png,
    read,
    rows,
    tar,
    together,
)
from tests.test_configs import composed

# webdataset 1.0 leaves it to Python to close its shards.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in.*tar:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("shuffle", [0, 5])
@pytest.mark.parametrize(("world_size", "workers"), LAYOUTS)
def test_tar_shards_are_seen_once(shards: list[str], shuffle: int, world_size: int, workers: int) -> None:
    assert together(read(TarShards(shards, shuffle), world_size, workers)) == rows(STREAM_IMAGES)


@pytest.mark.parametrize(("rank", "workers"), [(0, 0), (1, 0), (1, 1)])
def test_too_few_shards_are_an_error_in_every_process(shards: list[str], rank: int, workers: int) -> None:
    says = r"1 shard\(s\) cannot be shared out to 2 process.*`loader\.num_workers`"
    with pytest.raises(ValueError, match=says):
        Rank(TarShards(shards[:1]), EpochShard(0, 2, rank), workers).read()


@pytest.mark.slow
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
    np.save(npy, STREAM_IMAGES[1].numpy())
    files = {
        "a.mask.png": png(STREAM_IMAGES[0]),
        "a.cls": b"7",
        "a.txt": b"a cat",
        "a.json": b"[1]",
        "a.npy": npy.getvalue(),
    }
    (sample,) = TarShards(tar(tmp_path / "a.tar", files | {"a.bin": b"x", "a.eps": b"%!PS"}))
    assert (sample["cls"], sample["txt"], sample["json"], sample["bin"]) == (7, "a cat", [1], b"x")
    assert sample["eps"] == b"%!PS"  # for which PIL would start another program
    assert torch.equal(F.pil_to_tensor(sample["mask.png"]), STREAM_IMAGES[0])
    assert torch.equal(torch.from_numpy(sample["npy"]), STREAM_IMAGES[1])


def test_nothing_in_a_shard_is_run(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    evil = tmp_path / "run"
    payload, objects, weights = pickle.dumps(Evil(evil)), io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([Evil(evil)], dtype=object), allow_pickle=True)
    torch.save(Evil(evil), weights)
    for ending, content in (("pyd", payload), ("pickle", payload), ("pkl", payload), ("pth", weights.getvalue())):
        path = tar(tmp_path / f"{ending}.tar", {f"a.{ending}": content, "a.png": png(STREAM_IMAGES[0])})
        (sample,) = TarShards(path)
        assert sample[ending] == content
        assert together(read(TarShards(path))) == rows(STREAM_IMAGES[:1])
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
