"""A cache never serves conditions that its dataset no longer has."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.cache._fingerprint import fingerprint
from ddpm_data.cache._state import digest_state
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles
from tests.conftest import ROOT, uint8_images

COUNT = 100
CHANGED = 7  # an item that the fingerprint does not read
IMAGES = uint8_images(COUNT, 3, 8, 8)


@dataclass
class Record:
    caption: str


class Captioned:
    """Images with captions that are kept in one way or another."""

    def __init__(
        self,
        captions: Any,  # noqa: ANN401  # kept in any way
        read: Callable[[Any, int], Any] = lambda captions, index: captions[index],
    ) -> None:
        self.captions = captions
        self.read = read
        self.calls = 0

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        self.calls += 1
        return IMAGES[index], self.read(self.captions, index)


class Beside:
    """Image files with a caption beside each."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        paths = sorted(root.glob("*.png"))
        self.files: Any = {
            "paths": lambda: paths,
            "names": lambda: [path.name for path in paths],
            "rows": lambda: [(str(path), 1) for path in paths],
            "dicts": lambda: [{"file": path.name} for path in paths],
            "array": lambda: np.array([path.name for path in paths]),
            "ImageFiles": lambda: ImageFiles(root),
        }[kind]()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        if isinstance(self.files, ImageFiles):
            path = self.root / self.files.names[index]
        else:
            entry = self.files[index]
            path = self.root / (
                entry["file"] if isinstance(entry, dict) else entry[0] if isinstance(entry, tuple) else entry
            )
        return Image.open(path), path.with_suffix(".txt").read_text()


class Named:
    """Captions in one file, read when they are first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._captions: list[str] | None = None

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        self._captions = self._captions or json.loads(Path(self.path).read_text())
        return IMAGES[index], self._captions[index]


def conditions(dataset: Any, cache: Path | None, **options: Any) -> Any:  # noqa: ANN401  # any dataset
    """All conditions, as they are served."""
    defaults: dict[str, Any] = dict(image_size=4, image_key=0, condition=1, compile=False)
    module = DDPMDataModule(dataset, schedule=schedules.linear(10), cache_dir=cache, **(defaults | options))
    module.prepare_data()
    module.setup("fit")
    return module.splits.images("train").batch(torch.arange(len(dataset))).condition  # type: ignore[union-attr]  # map-style


def count(cache: Path) -> int:
    return len(list(cache.glob("*.json")))


def captions(change: bool) -> list[str]:
    return [f"number {n}{', rewritten' * (change and n == CHANGED)}" for n in range(COUNT)]


KINDS: dict[str, Callable[[list[str]], Captioned]] = {
    "list": Captioned,
    "dict": lambda texts: Captioned(dict(enumerate(texts))),
    "by name": lambda texts: Captioned({f"{n}.png": text for n, text in enumerate(texts)}, lambda c, n: c[f"{n}.png"]),
    "array": lambda texts: Captioned(np.array(texts), lambda c, n: str(c[n])),
    "labels": lambda texts: Captioned(torch.tensor([len(text) for text in texts])),
    "embeddings": lambda texts: Captioned(torch.tensor([[len(text)] * 3 for text in texts]).bfloat16().float()),
    "records": lambda texts: Captioned([Record(text) for text in texts], lambda c, n: c[n].caption),
    "nested": lambda texts: Captioned(
        {"texts": [{"caption": text, "n": np.int64(1)} for text in texts]}, lambda c, n: c["texts"][n]
    ),
    "with tensors": lambda texts: Captioned([(torch.ones(2), text) for text in texts], lambda c, n: c[n][1]),
    "bytes": lambda texts: Captioned([text.encode() for text in texts], lambda c, n: c[n].decode()),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["itself", "subset", "both"])
def test_one_caption_rewritten_is_another_fingerprint(kind: str, way: str) -> None:
    wrap: Any = {
        "itself": lambda data: data,
        "subset": lambda data: Subset(data, range(50)),
        "both": lambda data: ConcatDataset([data, data]),
    }[way]

    def digest(change: bool) -> str:
        data = wrap(KINDS[kind](captions(change)))
        return fingerprint(MapStyleImages(data, ImageProcessor(0), "train", conditions=Conditions(1)), 1)

    assert digest(False) == digest(False) != digest(True)


@pytest.mark.slow
def test_what_is_served_is_what_the_dataset_has(tmp_path: Path) -> None:
    for change, files in ((False, 1), (False, 1), (True, 2), (False, 2), (True, 2)):
        assert conditions(Captioned(captions(change)), tmp_path) == captions(change)
        assert count(tmp_path) == files


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paths", "names", "rows", "dicts", "array", "ImageFiles"])
def test_captions_in_files_beside_the_images(kind: str, tmp_path: Path) -> None:
    folder, cache = tmp_path / "images", tmp_path / "images" / "cache"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(IMAGES[number].permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"number {number}")
    assert conditions(Beside(folder, kind), cache)[CHANGED] == "number 7"
    (folder / "notes.md").write_text("of no item")
    conditions(Beside(folder, kind), cache)
    assert count(cache) == 1
    (folder / "07.txt").write_text("number 8")
    assert conditions(Beside(folder, kind), cache)[CHANGED] == "number 8"
    assert count(cache) == 2
    folder.rename(tmp_path / "moved")
    conditions(Beside(tmp_path / "moved", kind), tmp_path / "moved" / "cache")
    assert count(tmp_path / "moved" / "cache") == 2


def test_captions_in_a_file_that_the_dataset_names(tmp_path: Path) -> None:
    for change in (False, True):
        (tmp_path / "captions.json").write_text(json.dumps(captions(change)))
        os.utime(tmp_path / "captions.json", ns=(0, int(change)))
        assert conditions(Named(tmp_path / "captions.json"), tmp_path / "cache") == captions(change)
        data = Named(tmp_path / "captions.json")
        assert data[3][1] == "number 3"  # and has the captions in memory now
    assert count(tmp_path / "cache") == 2


@pytest.mark.slow
def test_tables_of_pandas(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for change in (False, True, False):
        table = pandas.DataFrame({"caption": captions(change), "n": range(COUNT)})
        data = Captioned(table, lambda table, n: table["caption"][n])
        assert conditions(data, tmp_path) == captions(change)
    assert count(tmp_path) == 2


@pytest.mark.slow
def test_columns_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for change in (False, True, False):
        columns = {"image": [image.tolist() for image in IMAGES], "caption": captions(change)}
        data = datasets.Dataset.from_dict(columns).with_format("numpy")
        served = conditions(data, tmp_path, image_key="image", condition="caption", value_range=(0, 255))
        assert list(served) == captions(change)
    assert count(tmp_path) == 2


@pytest.mark.slow
@pytest.mark.parametrize("condition", [1, [1, 0]])
def test_labels_of_one_class_that_target_transform_changes(condition: Any, tmp_path: Path) -> None:  # noqa: ANN401  # keys
    for number in range(90):
        (tmp_path / "images" / f"{number // 3:02}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number].permute(1, 2, 0).numpy()).save(
            tmp_path / "images" / f"{number // 3:02}" / f"{number}.png"
        )
    options = {} if condition == 1 else dict(condition=condition, condition_images={0: "bilinear"})
    for remap in ({}, {2: 99}, {2: 99, 17: 3}, {}):
        data = ImageFolder(
            str(tmp_path / "images"), target_transform=lambda label, remap=remap: remap.get(label, label)
        )
        served = conditions(data, tmp_path / "cache", **options)
        labels = served if condition == 1 else served[1]
        assert labels.tolist() == [remap.get(number // 3, number // 3) for number in range(90)]
    assert count(tmp_path / "cache") == 3


class Chance:
    """One of several captions, by chance."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": IMAGES[index], "label": index, "caption": random.choice(["a cat", "a sleeping cat"])}


@pytest.mark.parametrize("length", [2, 30])
@pytest.mark.parametrize("condition", ["caption", ["label", "caption"]])
def test_a_caption_by_chance_is_refused(length: int, condition: Any, tmp_path: Path) -> None:  # noqa: ANN401  # keys
    """In 16 readings or more: once in 65,536 runs none differs."""
    random.seed(1)
    with pytest.raises(ValueError, match=r"train\[\d+\] has another condition each time .*`cache_dir`"):
        conditions(Chance(length), tmp_path, image_key="image", condition=condition)
    assert not list(tmp_path.iterdir())
    assert len(conditions(Chance(length), tmp_path, image_key="image", condition="label")) == length


@pytest.mark.slow
def test_a_digest_is_the_same_in_another_process_and_for_another_counter() -> None:
    code = (
        "from tests.cache.test_conditions import *; print(*[digest_state(k(captions(False))) for k in KINDS.values()])"
    )
    digests = [digest_state(kind(captions(False))) for kind in KINDS.values()]
    assert len(set(digests)) == len(KINDS)
    environment = os.environ | {"PYTHONHASHSEED": "1"}  # this process has another, by chance
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert result.stdout.split() == digests
    data = KINDS["list"](captions(False))
    data[0]
    assert digest_state(data) == digests[0]


def test_data_that_contains_itself_has_an_end() -> None:
    rows: list[Any] = [1, torch.ones(2)]
    rows.append(rows)
    data = Captioned(rows)
    data.itself = data  # type: ignore[attr-defined]  # as some datasets do
    assert digest_state(data) == digest_state(data)


def test_strings_among_bytes_are_refused(tmp_path: Path) -> None:
    """They would be read back as one kind. A batch of both is nobody's mistake elsewhere."""
    captions = [b"first", *["second"] * (COUNT - 1)]
    options: dict[str, Any] = {"schedule": schedules.linear(10), "condition": 1}
    DDPMDataModule(Captioned(captions), **options).setup("fit")
    with pytest.raises(TypeError, match=r"strings for some items and bytes for others.*`cache_dir`"):
        DDPMDataModule(Captioned(captions), cache_dir=tmp_path, **options).setup("fit")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("ending", ["", "\0", " \0\0"])
@pytest.mark.parametrize("kind", [str, bytes])
def test_strings_come_back_as_they_were(kind: type, ending: str, tmp_path: Path) -> None:
    """NumPy drops zeros from their ends."""
    captions = [f"number {index}{ending * (index % 2)}" for index in range(COUNT)]
    items: Any = captions if kind is str else [caption.encode() for caption in captions]
    options: dict[str, Any] = {"schedule": schedules.linear(10), "condition": 1, "batch_size": COUNT}
    datamodule = DDPMDataModule(Captioned(items), cache_dir=tmp_path, **options)
    datamodule.setup("fit")
    [batch] = datamodule.train_dataloader()
    assert sorted(batch.meta.condition) == sorted(items)


def test_conditions_without_values_are_refused(tmp_path: Path) -> None:
    datamodule = DDPMDataModule(Captioned([[]] * COUNT), cache_dir=tmp_path, schedule=schedules.linear(10), condition=1)
    with pytest.raises(TypeError, match=r"empty lists.*`condition`.*`cache_dir`"):
        datamodule.setup("fit")
