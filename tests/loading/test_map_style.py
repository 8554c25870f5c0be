"""Map-style datasets: whole batches, subsets, transformed sets, and errors that name the item."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.rng.permutation import RandomSubset
from ddpm_data.rng.philox import key_from
from tests.conftest import uint8_images
from tests.images.test_processor import COLOUR, GREY
from tests.sources.helpers import IMAGES, module, rows, served


class Batched(list[Any]):
    """A dataset that would rather be asked for many items at once."""

    asked: list[list[int]]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.asked = [*getattr(self, "asked", []), indices]
        return [self[index] for index in indices]


def test_whole_batches_are_fetched_where_the_dataset_can() -> None:
    data = Batched(uint8_images(10, 1, 4, 4))
    view = MapStyleImages(data, ImageProcessor(), "train")
    assert torch.equal(view.batch([9, 3]).images, torch.stack([data[9], data[3]]))
    assert data.asked == [[9, 3]]
    assert torch.equal(view[5], data[5])


def test_a_part_looks_at_its_own_items_only() -> None:
    part = RandomSubset(key_from(0), 40, 0, 10)
    indices = part.indices(torch.arange(10)).tolist()
    images: list[Any] = ["no image"] * 40
    for index in indices:
        images[index] = COLOUR
    view = MapStyleImages(images, ImageProcessor(), "train", part)
    assert len(view) == 10
    view.inspect()
    images[indices[3]] = "no image"
    with pytest.raises(TypeError, match=rf"train\[{indices[3]}\]"):
        view.inspect()


def test_an_error_names_the_item_it_came_from() -> None:
    data = [COLOUR, COLOUR, torch.zeros(5, 8, 8, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r"train\[2\]: an image of 5 channels"):
        MapStyleImages(data, ImageProcessor(channels=3), "train").batch([0, 2])


def test_check_names_both_shapes_and_the_key() -> None:
    sizes = [COLOUR] * 30 + [uint8_images(1, 3, 9, 9)[0]] + [COLOUR] * 30
    with pytest.raises(ValueError, match=r"\(3, 8, 6\) and train\[30\] is \(3, 9, 9\).*`dataset\.image_size`"):
        MapStyleImages(sizes, ImageProcessor(), "train").inspect()
    with pytest.raises(ValueError, match=r"\(3, 8, 6\) and val\[1\] is \(1, 8, 6\).*`dataset\.channels`"):
        MapStyleImages([COLOUR, GREY], ImageProcessor(), "val").inspect()
    MapStyleImages(sizes, ImageProcessor(image_size=6), "train").inspect()


def test_images_that_are_enlarged_are_counted() -> None:
    sizes = [COLOUR] * 30 + [uint8_images(1, 3, 9, 9)[0]] + [uint8_images(1, 3, 2, 9)[0]] * 2
    message = r"32 of the 33 train images.*image_size=\(8, 8\), down to \(2, 9\).*`dataset\.image_size`"
    with pytest.warns(UserWarning, match=message):
        MapStyleImages(sizes, ImageProcessor(image_size=8), "train").inspect()


def test_check_names_the_range_of_all_it_saw() -> None:
    data = [torch.tensor([[-0.5, 0.0]]), torch.tensor([[0.0, 1.0]])]
    with pytest.raises(ValueError, match=r"train holds torch.float32.*2 looked at span -0.5 to 1.*likely \[-1, 1\]"):
        MapStyleImages(data, ImageProcessor(), "train").inspect()


def test_check_refuses_nothing() -> None:
    with pytest.raises(ValueError, match=r"test is empty.*`dataset\.test`"):
        MapStyleImages([], ImageProcessor(), "test").inspect()


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
    with pytest.raises(ValueError, match=r"`value_range`.*likely \[0, 1\]"):
        module(FLOATS).setup("fit")
