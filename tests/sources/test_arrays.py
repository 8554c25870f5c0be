"""Whole batches from the array behind a dataset are the items' own images, or the items are asked."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets

from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources._arrays import BackingArray, find_backing_array
from tests.conftest import uint8_images

COLOUR = uint8_images(20, 3, 8, 6)
GREY = uint8_images(20, 8, 6)


def cifar(**options: Any) -> datasets.CIFAR10:  # noqa: ANN401  # torchvision's own
    """CIFAR10 without its files, which torchvision would download."""
    data = datasets.CIFAR10.__new__(datasets.CIFAR10)
    data.data, data.targets = COLOUR.permute(0, 2, 3, 1).contiguous().numpy(), [0] * 20
    data.transform = data.target_transform = None
    data.__dict__ |= options
    return data


def mnist() -> datasets.MNIST:
    data = datasets.MNIST.__new__(datasets.MNIST)
    data.data, data.targets, data.transform, data.target_transform = GREY, torch.zeros(20), None, None
    return data


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


IN_ARRAYS = {
    "tensor": (COLOUR, {}),
    "grey tensor": (GREY, {}),
    "array": (COLOUR.permute(0, 2, 3, 1).numpy(), {}),
    "read-only array": (read_only(COLOUR.numpy()), {}),
    "labelled": (TensorDataset(COLOUR, torch.arange(20)), {}),
    "one of two": (TensorDataset(COLOUR, GREY), {"image_key": 1}),
    "channels last": (TensorDataset(COLOUR.permute(0, 2, 3, 1)), {}),
    "floats": (TensorDataset(COLOUR / 255), {"value_range": (0, 1)}),
    "halves": (TensorDataset((COLOUR / 255).half()), {"value_range": (0, 1)}),
    "booleans": (COLOUR > 100, {}),
    "wide integers": (COLOUR.short() * 100, {"value_range": (0, 25500)}),
    "grey made colour, resized": (TensorDataset(GREY), {"channels": 3, "image_size": 5}),
    "colour made grey, enlarged": (COLOUR, {"channels": 1, "image_size": (16, 20)}),
    "cifar10": (cifar(), {}),
    "mnist": (mnist(), {"channels": 3}),
    "subset": (Subset(TensorDataset(COLOUR), [5, 3, 3, 19]), {}),
    "subset of a subset": (Subset(Subset(cifar(), list(range(10, 20))), np.array([9, 0, 4])), {}),
}


@pytest.mark.filterwarnings("ignore:.* images looked at are smaller:UserWarning")
@pytest.mark.parametrize(("dataset", "processor"), IN_ARRAYS.values(), ids=IN_ARRAYS.keys())
def test_batches_from_the_array_are_the_items_images(dataset: Any, processor: dict[str, Any]) -> None:  # noqa: ANN401
    images = MapStyleImages(dataset, ImageProcessor(**processor), "train")
    images.inspect()
    assert images._arrays is not None
    indices = np.array([2, 0, 2, len(dataset) - 1])
    batch = images.batch(indices).images
    expected = [ImageProcessor(**processor)(dataset[int(index)]) for index in indices]
    assert torch.equal(batch, torch.stack(expected))
    assert batch.is_contiguous()
    copy = pickle.loads(pickle.dumps(images))
    assert copy._arrays is not None
    assert torch.equal(copy.batch(indices).images, batch)


class Brighter(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:  # type: ignore[override]  # as TensorDataset's
        return (self.tensors[0][index] | 128,)


class Liar(TensorDataset):
    stack = BackingArray(COLOUR)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:  # type: ignore[override]  # as TensorDataset's
        return (self.tensors[0][index] | 128,)


@pytest.mark.parametrize(
    "dataset",
    [
        Brighter(COLOUR),
        Liar(COLOUR),
        cifar(transform=lambda picture: picture.rotate(180)),
        [*COLOUR],
        COLOUR.numpy().astype(np.uint32)[:, ::-1],
    ],
    ids=["own getitem", "array of something else", "transform", "list", "negative strides"],
)
def test_items_that_are_not_in_an_array_are_asked_for(dataset: Any) -> None:  # noqa: ANN401  # any dataset
    images = MapStyleImages(dataset, ImageProcessor(value_range=(0, 255)), "train")
    images.inspect()
    assert images._arrays is None
    expected = [ImageProcessor(value_range=(0, 255))(dataset[index]) for index in (4, 1)]
    assert torch.equal(images.batch([4, 1]).images, torch.stack(expected))


def test_a_value_out_of_range_is_named_by_its_item() -> None:
    values = COLOUR / 255
    values[7, 0, 0, 0] = 1.5
    images = MapStyleImages(TensorDataset(values), ImageProcessor(value_range=(0, 1)), "train")
    with pytest.raises(ValueError, match=r"train\[7\]: values span .* to 1\.5, outside value_range"):
        images.batch([3, 7])


def test_folders_have_no_array(folder: Path) -> None:
    assert find_backing_array(datasets.ImageFolder(str(folder), allow_empty=True), None) is None


@pytest.mark.parametrize(
    "indices",
    [
        range(-5, 0),
        [-1, 3, -20],
        np.array([-3, 4], dtype=np.int8),
        np.array([3, 4], dtype=np.uint64),
        [np.int64(-1), np.uint8(4)],
        torch.tensor([-2, 5]),
        [torch.tensor(-2)],
    ],
    ids=str,
)
@pytest.mark.parametrize("part", [COLOUR, TensorDataset(COLOUR, torch.arange(20)), cifar(targets=[*range(20)])])
def test_a_subset_counts_as_python_does(part: Any, indices: Any) -> None:  # noqa: ANN401  # any kinds
    """Negative indices ended in an IndexError that named no item."""
    subset = Subset(part, indices)
    twice = Subset(subset, [-1, 0])
    condition = None if part is COLOUR else 1
    for dataset in (subset, twice):
        images = MapStyleImages(dataset, ImageProcessor(), "train", conditions=Conditions(condition))
        images.inspect()
        assert images._arrays is not None
        batch = images.batch(range(len(dataset)))
        items = [dataset[place] for place in range(len(dataset))]
        pixels = [ImageProcessor()(item) for item in items]
        assert torch.equal(batch.images, torch.stack(pixels))
        if condition:
            assert batch.condition.tolist() == [int(item[1]) for item in items]


@pytest.mark.parametrize("indices", [[3, 20], [0, -21], [1.0, 2.0]], ids=str)
def test_an_index_that_is_none_is_named_by_its_place(indices: Any) -> None:  # noqa: ANN401  # any kind
    with pytest.raises(RuntimeError, match=r"train\[[01]\]: IndexError"):
        MapStyleImages(Subset(TensorDataset(COLOUR), indices), ImageProcessor(), "train").inspect()
