"""Map-style datasets of Hugging Face: every image once, its labels and captions, whole batches."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ddpm_data.sources import ImageFiles
from tests.sources.helpers import IMAGES, hugging_face, module, rows, served
from tests.test_configs import composed


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
    with pytest.raises(TypeError, match=r"a DatasetDict of 'train', 'test': give one of its datasets, `train`"):
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
