"""Tar shards, written here: every sample once per epoch over processes and workers, and nothing in them is run."""

import io
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch.utils.data import ChainDataset, DataLoader, IterableDataset
from torchvision.transforms.v2 import functional as F

from ddpm_data._distributed import EpochShard
from ddpm_data.cli.checking.walk import scan_iterable
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.prebatched import PrebatchedBatches, PrebatchedImages
from ddpm_data.sources import ImageFiles, TarShards
from tests import zoo
from tests.conftest import Recorder, trainer
from tests.sources.helpers import (
    LAYOUTS,
    STREAM_IMAGES,
    Evil,
    Rank,
    module,
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


class Labelled(IterableDataset[dict[str, Any]]):
    """Goes through shards, as a dataset of a user's own may, and shares them out to processes in one of three ways."""

    def __init__(self, shards: list[str], way: str = "files", rank: int = 0, world_size: int = 1) -> None:
        self.shards, self.way, self.rank, self.world_size = shards, way, rank, world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        own = self.shards[self.rank :: self.world_size]
        parts = {"files": [own], "a file at a time": [[shard] for shard in own], "items": [self.shards]}[self.way]
        for part in parts:
            for number, item in enumerate(TarShards(part, shuffle=5)):
                if self.way != "items" or number % self.world_size == self.rank:
                    yield {"image": item["png"], "label": item["cls"]}


@pytest.mark.parametrize("wrap", [Labelled, lambda shards: ChainDataset([TarShards(shards, 5)])], ids=["own", "Chain"])
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_within_another_dataset_have_the_epochs_order_too(wrap: Any, workers: int, shards: list[str]) -> None:  # noqa: ANN401  # a function
    epochs = [read(wrap(shards), 1, workers, epoch) for epoch in (0, 1)]
    assert epochs == [read(TarShards(shards, 5), 1, workers, epoch) for epoch in (0, 1)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("loads", [False, True], ids=["", "in a DataLoader"])
@pytest.mark.parametrize("way", ["files", "a file at a time", "items"])
def test_what_shares_shards_out_by_itself_is_not_split_again(way: str, loads: bool, shards: list[str]) -> None:
    seen = []
    for rank in range(2):
        source = Labelled(shards, way, rank, 2)
        if loads:
            ready = PrebatchedImages(DataLoader(source, 4, collate_fn=stack), ImageProcessor(), "train")
            batches = iter(PrebatchedBatches(ready, "train", 2, rank))
            seen.append([image.numpy().tobytes() for batch in batches for image in batch.images.images])
        else:
            seen.append(Rank(source, EpochShard(0, 2, rank), 0).read())
    assert all(seen)
    assert together(seen) == rows(STREAM_IMAGES)


def stack(items: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([F.pil_to_tensor(item["image"]) for item in items])


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
    with pytest.raises(FileNotFoundError, match=r"1\.tar. Change `shards`"):
        TarShards([tar(tmp_path / "0.tar", {}), str(tmp_path / "1.tar")])
    for several in (tmp_path, tmp_path / "*.tar"):
        with pytest.raises(FileNotFoundError, match=r"Several files are a list, or are written .*`shards`"):
            TarShards(several)
    with pytest.raises(ValueError, match=r"nothing to read.*`shards`"):
        TarShards([])
    with pytest.raises(TypeError, match=r"`shuffle`"):
        TarShards(tmp_path / "0.tar", shuffle=True)


DAMAGED = {
    "jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "jpeg": b"",
    "png": zoo.png(8, 2, zoo.painted().reshape(32, -1), size=(50_000, 50_000)),  # a decompression bomb
    "webp": zoo.content(zoo.noise(), ".webp", lossless=True)[:-200],  # found when it is decoded
    "cls": b"seven",
    "json": b"{",
    "txt": "a café".encode("latin-1"),
    "npy": b"no array",
}


def damaged_shard(folder: Path, suffix: str) -> str:
    """A shard of nine samples, the fourth of which has a damaged file."""
    files = {}
    for number in range(9):
        files[f"{number}.bmp"] = zoo.content(zoo.picture(zoo.COLOURS), ".bmp")
        if number == 3 and suffix in ("jpg", "jpeg", "png", "webp"):
            del files[f"{number}.bmp"]
        if number == 3:
            files[f"{number}.{suffix}"] = DAMAGED[suffix]
    return tar(folder / "s.tar", files)


@pytest.mark.parametrize("suffix", DAMAGED)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_bad_item(suffix: str, workers: int, tmp_path: Path) -> None:
    """It ended the run in spite of ``on_bad_item="replace"``, and errors named neither shard nor sample."""
    named = rf"s\.tar, 3\.{suffix} cannot be read"
    shards = TarShards(damaged_shard(tmp_path, suffix), shuffle=0)
    options: dict[str, Any] = {"num_workers": workers, "image_size": 16, "compile": False, "batch_size": 3}
    replacing = module(shards, on_bad_item="replace", max_bad_fraction=0.5, **options)
    replacing.setup("fit")
    with pytest.warns(UserWarning, match=rf"replaced by a neighbour: train.*item 3: .*{named}") as told:
        images = torch.cat([batch.images for batch in replacing.train_dataloader()])
    assert len([warning for warning in told if "replaced" in str(warning.message)]) == 1
    assert len(images) == 9
    assert len(images.flatten(1).unique(dim=0)) == 1
    strict = module(shards, **(options | {"num_workers": 0}))
    strict.setup("fit")
    with pytest.raises((ValueError, OSError), match=rf"train.*item 3: .*{named}"):
        list(strict.train_dataloader())
    if suffix != "webp":  # which is not decoded here
        with pytest.raises(ValueError, match=rf"{named}.*`dataset\.shards`"):
            list(shards)
    scan = scan_iterable(IterableImages(shards, ImageProcessor(image_size=16), "train"), 100)
    assert [bad.item for bad in scan.stats.bad_items] == [3]
    assert re.search(named, scan.stats.bad_items[0].reason)
    assert len(scan.stats) == 9


def test_every_image_that_files_may_be_is_one_in_a_shard_too(tmp_path: Path) -> None:
    """AVIF, JPEG 2000, TGA, DDS and ICO stayed bytes."""
    entries = [entry for entry in zoo.FILES if not entry.processor]
    files = {f"{number}.{Path(entry.name).suffix[1:]}": entry.make() for number, entry in enumerate(entries)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]  # files are bytes
    path = tar(tmp_path / "s.tar", files)  # type: ignore[arg-type]  # as above
    processor = ImageProcessor(image_size=16, channels=3)
    samples = {sample["__key__"]: processor(sample) for sample in TarShards(path, shuffle=0)}
    images = ImageFiles(tmp_path)
    assert len(samples) == len(images) == len(entries) > 30
    for name, opened in zip(images.names, images, strict=True):
        assert torch.equal(samples[Path(name).stem], processor(opened))
    assert {"avif", "jp2", "tga", "dds", "ico"} <= {Path(entry.name).suffix[1:] for entry in entries}
