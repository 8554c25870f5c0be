"""Conditions beside images: through every way of loading, and their keyed dropout."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from ddpm_data import ConditionedTriple, DDPMDataModule, Triple, schedules
from ddpm_data.diffusion.guidance import ConditionDropout
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import TensorFile, digits
from tests.conftest import trainer, uint8_images

PIXELS = uint8_images(40, 3, 8, 8)


class Recorder(L.LightningModule):
    """Keeps what reaches a step, with its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Any]] = {"train": [], "val": []}

    def training_step(self, batch: ConditionedTriple, batch_idx: int) -> Tensor:
        x_t, _, _, condition = batch
        self.seen["train"].append((x_t.clone(), condition))
        return self.weight.sum()

    def validation_step(self, batch: ConditionedTriple, batch_idx: int) -> None:
        self.seen["val"].append((batch.x_t.clone(), batch.condition))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path: Path, train: Any, **options: Any) -> dict[str, list[Any]]:  # noqa: ANN401  # any dataset and option
    options = dict(schedule=schedules.constant(2, 1e-7), batch_size=7, image_key=0, condition=1, val=train) | options
    model = Recorder()
    trainer(tmp_path).fit(model, datamodule=DDPMDataModule(train, **options))
    return model.seen


class Items(list[Any]):
    """A dataset without an array behind it."""


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:  # noqa: ANN401  # an iterator
        info = torch.utils.data.get_worker_info()
        return iter(self.items[info.id :: info.num_workers] if info else self.items)


def numbered(kind: str) -> list[Any]:
    """Items whose condition names the image, by the image's first pixel."""
    makers: dict[str, Any] = {
        "int": lambda n: n,
        "float": lambda n: n / 2,
        "tensor": lambda n: torch.full((3,), n),
        "array": lambda n: np.full((2, 2), n, dtype=np.float32),
        "text": lambda n: f"number {n}",
        "bytes": lambda n: np.bytes_(b"number %d \0" % n),
        "dict": lambda n: {"label": n, "caption": f"number {n}"},
        "pair": lambda n: (n, f"number {n}"),
    }
    items = []
    for n in range(40):
        image = PIXELS[n].clone()
        image[:, 0, 0] = n * 6
        items.append((image, makers[kind](n)))
    return items


def names(condition: Any) -> list[int]:  # noqa: ANN401  # a batch of any kind
    """Which images a batch of conditions names."""
    if isinstance(condition, dict):
        first, second = names(condition["label"]), names(condition["caption"])
        assert first == second
        return first
    if isinstance(condition, Tensor):
        rows = condition.flatten(1)[:, 0] if condition.dim() > 1 else condition
        return [round(float(n)) for n in (rows * 2 if rows.dtype == torch.float64 else rows)]
    if isinstance(condition[0], bytes):
        assert {type(text) for text in condition} == {bytes}
        assert all(text.endswith(b"\0") for text in condition)
    if isinstance(condition[0], str | bytes):
        return [int(text.split()[1]) for text in condition]
    first, second = map(names, condition)
    assert first == second
    return first


def shown(x_t: Tensor) -> list[int]:
    return [round(float(level)) for level in (x_t[:, 0, 0, 0] + 1) * 127.5 / 6]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int", "float", "tensor", "array", "text", "bytes", "dict", "pair"])
@pytest.mark.parametrize("way", ["items", "workers", "cached", "stream", "part"])
def test_a_condition_stays_with_its_image(kind: str, way: str, tmp_path: Path) -> None:
    items = numbered(kind)
    train: Any = Stream(items) if way == "stream" else Items(items)
    options: dict[str, Any] = {
        "workers": dict(num_workers=2),
        "cached": dict(cache_dir=tmp_path / "cache"),
        "stream": dict(num_workers=2),
        "part": dict(val=0.3, cache_dir=tmp_path / "cache"),
    }.get(way, {})
    for _ in range(2 if way == "cached" else 1):  # made, then found
        seen = fit(tmp_path, train, **options)
        batches = seen["train"] + seen["val"]
        assert all(names(condition) == shown(x_t) for x_t, condition in batches)
        everything = [n for x_t, _ in batches for n in shown(x_t)]
        assert sorted(everything) == sorted([*range(40)] * (1 if way == "part" else 2))


def side_by_side(kind: str, folder: Path) -> tuple[Any, dict[str, Any], list[Any]]:
    """Items that hold a label and an embedding which name the image; the options to find both, and the two keys."""
    images = torch.stack([image for image, _ in numbered("int")])
    embeddings = torch.arange(40.0)[:, None].expand(40, 3).contiguous()
    by_name = dict(image_key="image", condition=["pooled", "label"])
    if kind == "tuples":
        items = list(zip(images, embeddings.numpy(), [f"number {n}" for n in range(40)], strict=True))
        return Items(items), dict(condition=[1, 2]), [1, 2]
    if kind == "tensors":
        return TensorDataset(images, embeddings, torch.arange(40)), dict(condition=[1, 2]), [1, 2]
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"image": images, "pooled": embeddings, "label": torch.arange(40)}, folder / "all.safetensors")
        return TensorFile(folder / "all.safetensors"), by_name, ["pooled", "label"]
    columns = {"image": images.numpy(), "pooled": embeddings.tolist(), "label": list(range(40))}
    if kind == "dicts":
        return (
            Items([{key: column[n] for key, column in columns.items()} for n in range(40)]),
            by_name,
            ["pooled", "label"],
        )
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return datasets.Dataset.from_dict(columns | {"image": pictures}), by_name, ["pooled", "label"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["items", "workers", "cached", "stream", "part"])
@pytest.mark.parametrize("kind", ["tuples", "tensors", "dicts", "safetensors", "Hugging Face"])
def test_several_conditions_at_once_make_a_dict(kind: str, way: str, tmp_path: Path) -> None:
    train, options, keys = side_by_side(kind, tmp_path)
    options |= {
        "workers": dict(num_workers=2),
        "cached": dict(cache_dir=tmp_path / "cache", image_size=4),
        "part": dict(val=0.3),
    }.get(way, {})
    train = Stream([train[n] for n in range(40)]) if way == "stream" else train
    null = {keys[0]: -2.0, keys[1]: "number -1" if kind == "tuples" else -1}
    for _ in range(2 if way == "cached" else 1):  # made, then found
        seen = fit(tmp_path, train, condition_dropout=0.4, null_condition=null, **options)
        gone = []
        for x_t, condition in seen["train"] + seen["val"]:
            assert list(condition) == keys
            assert condition[keys[0]].shape == (len(x_t), 3)
            first, second = names(condition[keys[0]]), names(condition[keys[1]])
            gone += [n == -1 for n in second]
            assert [n for n in first if n != -2] == [n for n in second if n != -1]
            if way != "cached":  # at half the size, the first pixel is not the number
                shown_numbers = zip(shown(x_t), second, strict=True)
                assert all(number == name for number, name in shown_numbers if name != -1)
        assert 0 < sum(gone) < 40


@pytest.mark.parametrize(
    ("dataset", "condition"),
    [
        (TensorDataset(PIXELS, torch.arange(40)), 1),
        (TensorDataset(torch.arange(40), PIXELS, torch.arange(80).view(40, 2)), 2),
        (Subset(TensorDataset(PIXELS, torch.arange(40)), [7, 3, 30]), 1),
    ],
    ids=["labels", "embeddings", "subset"],
)
def test_arrays_give_conditions_by_the_batch(dataset: Any, condition: int) -> None:  # noqa: ANN401  # any dataset
    images = MapStyleImages(dataset, ImageProcessor(), "train", conditions=Conditions(condition))
    images.inspect()
    assert images._arrays is not None
    batch = images.batch([2, 0, 2])
    one_by_one = [dataset[index] for index in (2, 0, 2)]
    assert torch.equal(batch.condition, torch.stack([item[condition] for item in one_by_one]))
    assert batch.condition.dtype == torch.int64


def test_arrays_give_several_conditions_by_the_batch() -> None:
    dataset = TensorDataset(PIXELS, torch.arange(40), torch.arange(80.0).view(40, 2))
    images = MapStyleImages(dataset, ImageProcessor(), "train", conditions=Conditions([2, 1]))
    images.inspect()
    assert images._arrays is not None
    condition = images.batch([5, 3]).condition
    assert list(condition) == [2, 1]
    assert torch.equal(condition[2], torch.tensor([[10.0, 11], [6, 7]]))
    assert torch.equal(condition[1], torch.tensor([5, 3]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 3], torch.tensor([[1, 2, 3]] * 2)),
        ([[0.5], [1.5]], torch.tensor([[[0.5], [1.5]]] * 2)),
        ([np.float32(2), np.float32(3)], torch.tensor([[2.0, 3.0]] * 2)),
        ([1, "two"], [torch.tensor([1, 1]), ("two", "two")]),
        ((1, 2), [torch.tensor([1, 1]), torch.tensor([2, 2])]),
    ],
    ids=["numbers", "nested", "NumPy's", "not only numbers", "a tuple"],
)
def test_a_list_of_numbers_is_an_array(value: Any, expected: Any) -> None:  # noqa: ANN401  # any kind
    images = MapStyleImages(Items([(PIXELS[0], value)] * 2), ImageProcessor(), "train", conditions=Conditions(1))
    condition = images.batch([0, 1]).condition
    assert type(condition) is type(expected)
    assert str(condition) == str(expected)


def test_without_condition_the_batch_is_the_triple(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Model(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # whatever comes
            seen.append(batch)
            return self.weight.sum()

    module = DDPMDataModule(Items(numbered("dict")), schedule=schedules.linear(10))
    trainer(tmp_path).fit(Model(), datamodule=module)
    assert {type(batch) for batch in seen} == {Triple}


@pytest.mark.slow
def test_labels_of_datasets_people_use(tmp_path: Path) -> None:
    for name, colour in (("cat", 0), ("dog", 255)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (colour,) * 3).save(tmp_path / "images" / name / f"{number}.png")
    folder = ImageFolder(tmp_path / "images")
    for options in ({}, dict(cache_dir=tmp_path / "cache"), dict(num_workers=2)):
        for x_t, label in fit(tmp_path, folder, **options)["train"]:
            assert torch.equal(x_t[:, 0, 0, 0] > 0, label == folder.class_to_idx["dog"])
    both = ConcatDataset([folder, FakeData(4, (3, 8, 8), transform=None)])
    assert sum(len(label) for _, label in fit(tmp_path, both)["train"]) == 12
    images, labels = digits().tensors
    seen = fit(tmp_path, digits, val=None, batch_size=600)["train"]
    known = {bytes(image.flatten().tolist()): int(label) for image, label in zip(images, labels, strict=True)}
    for x_t, label in seen:
        pixels = ((x_t + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        assert [known[bytes(one.flatten().tolist())] for one in pixels] == label.tolist()


@pytest.mark.parametrize(
    ("item", "condition", "error", "says"),
    [
        ((PIXELS[0], 3), 2, ValueError, r"train\[0\]: there is no condition at 2; .*1: int 3.*`condition`"),
        ({"image": PIXELS[0]}, "label", ValueError, r"no condition at 'label'.*`condition`"),
        ((PIXELS[0], None), 1, ValueError, r"the condition at 1 is None; .*`condition`"),
        (PIXELS[0], 0, ValueError, r"an item is a Tensor.*nothing at 0"),
        ((PIXELS[0], object()), 1, TypeError, r"the conditions of train do not make a batch.*`condition`"),
        ((PIXELS[0], 3), 1.5, TypeError, r"condition=1\.5.*`condition`"),
    ],
)
def test_what_is_no_condition_is_refused(item: Any, condition: Any, error: type[Exception], says: str) -> None:  # noqa: ANN401
    with pytest.raises(error, match=says):
        DDPMDataModule(Items([item] * 4), schedule=schedules.linear(10), condition=condition).setup("fit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "null", "is_null"),
    [
        ("int", 99, lambda c: c == 99),
        ("float", -1, lambda c: c == -1),
        ("tensor", 99, lambda c: (c == 99).all(1)),
        ("tensor", [7, 8, 9], lambda c: (c == torch.tensor([7, 8, 9])).all(1)),
        ("array", torch.zeros(2, 2) - 1, lambda c: (c == -1).flatten(1).all(1)),
        ("text", "", lambda c: torch.tensor([text == "" for text in c])),
        ("bytes", b"", lambda c: torch.tensor([text == b"" for text in c])),
        (
            "dict",
            {"label": 99, "caption": ""},
            lambda c: (c["label"] == 99) & torch.tensor([t == "" for t in c["caption"]]),
        ),
        ("pair", [99, ""], lambda c: (c[0] == 99) & torch.tensor([t == "" for t in c[1]])),
    ],
)
def test_every_kind_is_dropped_in_training_only(kind: str, null: Any, is_null: Any, tmp_path: Path) -> None:  # noqa: ANN401
    """The same examples whatever the kind, the batch size and the workers; validation keeps all."""
    lost = {}
    for batch_size, workers in ((7, 0), (16, 2)):
        options = dict(condition_dropout=0.5, null_condition=null, batch_size=batch_size, num_workers=workers)
        seen = fit(tmp_path, Items(numbered(kind)), **options)
        flags = [(n, bool(gone)) for x_t, c in seen["train"] for n, gone in zip(shown(x_t), is_null(c), strict=True)]
        assert not any(bool(is_null(c).any()) for _, c in seen["val"])
        lost[batch_size] = sorted(n for n, gone in flags if gone)
    assert lost[7] == lost[16]
    order = DDPMDataModule(Items(numbered("int")), schedule=schedules.linear(10), batch_size=40, condition=1)
    order.setup("fit")
    examples = next(iter(order.train_dataloader()))
    chosen = ConditionDropout(0.5, 0).drop_mask(examples.position)
    assert lost[7] == sorted(examples.meta.condition[chosen].tolist())
    assert 0 < len(lost[7]) < 40


@pytest.mark.parametrize(
    ("kind", "null", "error", "says"),
    [
        ("int", None, ValueError, r"Set `null_condition`"),
        ("int", 0.5, TypeError, r"null_condition=0\.5 .*torch\.int64"),
        ("int", "", TypeError, r"null_condition='' .*torch\.int64"),
        ("text", 0, TypeError, r"null_condition=0 .*a string"),
        ("text", b"", TypeError, r"null_condition=b'' .*a string"),
        ("bytes", "", TypeError, r"null_condition='' .*are bytes"),
        ("tensor", [1, 2], TypeError, r"null_condition=\[1, 2\] .*shape \(3,\)"),
        ("dict", {"label": 1}, TypeError, r"a dict of 'label', 'caption'.*`null_condition`"),
        ("pair", 3, TypeError, r"a list of 2"),
    ],
)
def test_a_null_unlike_the_conditions_is_refused_in_setup(
    kind: str,
    null: Any,  # noqa: ANN401  # what a config may hold
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        DDPMDataModule(
            Items(numbered(kind)),
            schedule=schedules.linear(10),
            condition=1,
            condition_dropout=0.1,
            null_condition=null,
        ).setup("fit")


def test_dropout_wants_a_condition() -> None:
    module = DDPMDataModule(
        Items(numbered("int")), schedule=schedules.linear(10), condition_dropout=0.1, null_condition=3
    )
    with pytest.raises(ValueError, match=r"no condition to drop.*`condition`"):
        module.setup("fit")
