"""Sets asked by number, of other libraries and in files, all made here: every image once, through the DataModule."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor
from torchvision.transforms.v2 import functional as F

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.datamodule.splits import CONTRACT
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ArrayFile, ImageFiles
from tests.conftest import ROOT, uint8_images
from tests.test_configs import composed

IMAGES = uint8_images(20, 3, 8, 6)


def module(train: Any, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset is the point
    return DDPMDataModule(train, **(dict(schedule=schedules.linear(100), batch_size=6) | options))


def served(dm: DDPMDataModule) -> list[bytes]:
    dm.setup("fit")
    return sorted(image.numpy().tobytes() for batch in dm.train_dataloader() for image in batch.images)


def rows(images: Tensor) -> list[bytes]:
    return sorted(image.contiguous().numpy().tobytes() for image in images)


def hugging_face(images: Tensor = IMAGES) -> Any:  # noqa: ANN401  # a library that may be missing
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"picture": [F.to_pil_image(image) for image in images], "label": list(range(len(images)))}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
@pytest.mark.parametrize("images", [IMAGES, IMAGES[:, :1]], ids=["colour", "grey"])
def test_hugging_face_sets_in_every_format(kind: str | None, images: Tensor) -> None:
    assert served(module(hugging_face(images).with_format(kind))) == rows(images)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", [None, "torch"])
def test_hugging_face_labels_and_captions_are_conditions(kind: str | None, streamed: bool) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["even", "odd"]),
            "caption": datasets.Value("string"),
        }
    )
    columns = {
        "image": [F.to_pil_image(image) for image in IMAGES],
        "label": [n % 2 for n in range(20)],
        "caption": [f"number {n}" for n in range(20)],
    }
    data = datasets.Dataset.from_dict(columns, features=features).with_format(kind)
    data = data.to_iterable_dataset() if streamed else data
    number = {image.numpy().tobytes(): n for n, image in enumerate(IMAGES)}
    for condition, of in (("label", lambda n: n % 2), ("caption", lambda n: f"number {n}")):
        dm = module(data, condition=condition)
        dm.setup("fit")
        for batch in dm.train_dataloader():
            expected = [of(number[image.numpy().tobytes()]) for image in batch.images]
            assert list(batch.meta.condition) == expected


def test_hugging_face_sets_are_asked_for_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hugging_face()
    asked, fetch = [], type(data).__getitems__
    monkeypatch.setattr(type(data), "__getitems__", lambda data, keys: asked.append(len(keys)) or fetch(data, keys))
    dm = module(data)
    dm.setup("fit")
    asked.clear()
    assert [len(batch.images) for batch in dm.train_dataloader()] == asked == [6, 6, 6, 2]


def test_a_dict_of_hugging_face_sets_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(
        TypeError, match=r"a DatasetDict of 'train', 'test': give one of its datasets, `dataset\.train`"
    ):
        module(datasets.DatasetDict(train=hugging_face(), test=hugging_face()))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hugging_face_config_reads_a_folder(folder: Path, streaming: bool, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    where = [f"dataset.path={folder}", f"+dataset.train.cache_dir={tmp_path / 'cache'}", "dataset.image_size=8"]
    how = [f"dataset.train.streaming={streaming}", f"dataset.val={'null' if streaming else '0.2'}"]
    found = served(instantiate(composed("dataset=huggingface", *where, *how).datamodule))
    whole = served(module(ImageFiles(folder), image_size=8))
    assert len(found) == (5 if streaming else 4)
    assert set(found) <= set(whole)


CHW = IMAGES.numpy()
HWC = np.ascontiguousarray(CHW.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("array", [CHW, HWC, CHW[:, 0], np.asfortranarray(HWC)], ids=["CHW", "HWC", "HW", "Fortran"])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_an_array_in_a_file_is_served_by_whole_batches(array: Any, ending: str, tmp_path: Path) -> None:  # noqa: ANN401
    path = tmp_path / f"images.{ending}"
    if ending == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, array)
    data = ArrayFile(path)
    assert isinstance(data.array, np.memmap) == (ending == "npy")
    images = MapStyleImages(data, ImageProcessor(), "train")
    assert images.inspect().is_stored
    assert served(module(data)) == rows(IMAGES[:, :1] if array.ndim == 3 else IMAGES)
    assert len(pickle.dumps(data)) < 1000  # a worker that is not forked maps the file itself
    assert np.array_equal(pickle.loads(pickle.dumps(data)).array, array)


def test_arrays_by_config_and_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", images=CHW / np.float32(255), labels=np.arange(20))
    at = ["dataset=arrays", f"dataset.path={tmp_path / 'two.npz'}", "dataset.value_range=[0,1]"]
    dm = instantiate(composed(*at, "dataset.key=images", "dataset.val=null").datamodule)
    assert served(dm) == rows(IMAGES)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_files_that_are_no_arrays_of_images_are_refused(tmp_path: Path) -> None:
    evil, objects = tmp_path / "run", np.array([Evil(tmp_path / "run")] * 3, dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", objects)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Evil(evil)))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.npy").touch()
    for name in ("objects.npy", "objects.npz", "pickle.npy", "cut.npz", "empty.npy"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read.*never loaded.*`dataset\.path`"):
            ArrayFile(tmp_path / name)
    assert not evil.exists()
    np.load(tmp_path / "pickle.npy", allow_pickle=True)
    assert evil.exists()  # the payload works
    np.savez(tmp_path / "two.npz", a=CHW, b=HWC)
    np.save(tmp_path / "flat.npy", np.zeros(5))
    for name, key, says in (
        ("two.npz", None, r"key=None.*the arrays a, b\. Say which: `dataset\.key`"),
        ("two.npz", "c", r"key='c'.*the arrays a, b\. Say which"),
        ("flat.npy", "a", r"key='a'.*one array without a name"),
        ("flat.npy", None, r"float64 of shape \(5,\).*`dataset\.path`"),
    ):
        with pytest.raises(ValueError, match=says):
            ArrayFile(tmp_path / name, key)
    with pytest.raises(FileNotFoundError, match=r"`dataset\.path`"):
        ArrayFile(tmp_path / "none.npy")


PARTS = random_split(TensorDataset(IMAGES, torch.arange(20)), [0.5, 0.5], torch.Generator().manual_seed(0))
FLOATS = FakeData(20, (3, 8, 6), transform=ToTensor(), random_offset=3)


@pytest.mark.parametrize(
    ("data", "expected", "processor"),
    [
        (ConcatDataset([TensorDataset(IMAGES[:7]), TensorDataset(IMAGES[7:])]), IMAGES, {}),
        (ConcatDataset([*PARTS]), IMAGES, {}),
        (PARTS[0], IMAGES[PARTS[0].indices], {}),
        (Subset(ConcatDataset([*PARTS]), range(5)), IMAGES[PARTS[0].indices[:5]], {}),
        (FLOATS, torch.stack([image for image, _ in FLOATS]).mul(255).round().byte(), dict(value_range=(0, 1))),
        ([(image / 255, 1) for image in IMAGES], IMAGES, dict(value_range=(0, 1))),
    ],
    ids=["concatenated", "halves", "half", "some of halves", "torchvision, ToTensor", "floats"],
)
def test_parts_and_transformed_sets(data: Any, expected: Tensor, processor: dict[str, Any]) -> None:  # noqa: ANN401
    for workers in (0, 1):
        assert served(module(data, num_workers=workers, **processor)) == rows(expected)


def test_floats_without_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`dataset\.value_range`.*likely \[0, 1\]"):
        module(FLOATS).setup("fit")


def test_the_contract_is_the_readmes_and_quoted_to_who_breaks_it() -> None:
    assert "\n".join(CONTRACT) in (ROOT / "README.md").read_text()
    with pytest.raises(TypeError, match="train is a int, not a dataset") as raised:
        module(7)
    assert all(line in str(raised.value) for line in CONTRACT)
