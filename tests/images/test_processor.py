"""Items of every container and kind become the uint8 CHW images their processor says."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ddpm_data.images.items import find_image, to_chw
from ddpm_data.images.processor import ImageProcessor
from tests.conftest import uint8_images

COLOUR = uint8_images(1, 3, 8, 6)[0]
GREY = uint8_images(1, 1, 8, 6)[0]


def image(item: object, **processor: Any) -> Tensor:  # noqa: ANN401  # whatever the processor takes
    result = ImageProcessor(**processor)(item)
    assert result.dtype == torch.uint8
    assert result.dim() == 3
    return result


def pil(values: Tensor) -> Image.Image:
    return F.to_pil_image(values)


@pytest.mark.parametrize(
    "item",
    [
        COLOUR,
        COLOUR.permute(1, 2, 0),
        COLOUR.numpy(),
        COLOUR.permute(1, 2, 0).numpy(),
        np.ascontiguousarray(COLOUR.permute(1, 2, 0).numpy()[::-1])[::-1],  # a negative stride
        pil(COLOUR),
        (COLOUR, 7),
        [7, COLOUR],
        {"image": pil(COLOUR), "label": 3, "caption": "a cat"},
        {"pixels": COLOUR.numpy(), "id": np.int64(4), "embedding": np.zeros(5)},
        (pil(COLOUR), torch.tensor(1)),
    ],
    ids=lambda item: type(item).__name__,
)
def test_every_container_gives_the_same_pixels(item: object) -> None:
    assert torch.equal(image(item), COLOUR)


@pytest.mark.parametrize("item", [GREY, GREY[0], GREY.numpy(), GREY[0].numpy(), pil(GREY), GREY.permute(1, 2, 0)])
def test_grey_has_one_channel(item: object) -> None:
    assert torch.equal(image(item), GREY)


def test_read_only_arrays_are_taken_without_a_warning() -> None:
    values = COLOUR.permute(1, 2, 0).numpy().copy()
    values.flags.writeable = False
    assert torch.equal(image(values), COLOUR)


def test_ambiguous_axes_follow_the_library_the_values_come_from() -> None:
    square = uint8_images(1, 3, 5, 3)[0]
    assert to_chw(square).shape == (3, 5, 3)
    assert to_chw(square.numpy()).shape == (3, 3, 5)
    assert to_chw(torch.zeros(16, 32, 32)).shape == (16, 32, 32)  # many channels: the shorter axis
    assert to_chw(np.zeros((32, 32, 16))).shape == (16, 32, 32)
    assert to_chw(np.zeros((16, 32, 32))).shape == (16, 32, 32)


def test_the_key_says_which_image() -> None:
    item = {"image": COLOUR, "mask": GREY, "label": 1}
    assert torch.equal(image(item, image_key="mask"), GREY)
    assert torch.equal(image((COLOUR, GREY), image_key=1), GREY)
    with pytest.raises(ValueError, match=r"several images \('image': Tensor.*Say which: `dataset\.image_key`"):
        image(item)
    for wrong in ("masks", "label"):
        with pytest.raises(ValueError, match=rf"no image at '{wrong}'.*'label': int 1.*`dataset\.image_key`"):
            image(item, image_key=wrong)


@pytest.mark.parametrize("item", ["a.png", 3, None, b"bytes", torch.zeros(3), np.zeros((1, 3, 8, 8)), object()])
def test_an_item_without_an_image_is_named(item: object) -> None:
    kind = type(item).__name__
    with pytest.raises(TypeError, match=rf"an item is a {kind}.*Change `dataset`"):
        find_image(item, None)
    with pytest.raises(TypeError, match=rf"no image, but 0: {kind}.*Change `dataset`"):
        find_image((item, 3), None)


@pytest.mark.parametrize(
    ("values", "value_range"),
    [
        (COLOUR.float() / 255, (0, 1)),
        (COLOUR.double() / 127.5 - 1, (-1, 1)),
        (COLOUR.half() / 255, (0, 1)),
        (COLOUR.float(), (0, 255)),
        (COLOUR.numpy().astype(np.uint16) * 257, (0, 65535)),
        (COLOUR.numpy().astype(np.int32), [0, 255]),
        (COLOUR, (0, 255)),
        (COLOUR.numpy().astype(">u2"), (0, 255)),
        ((COLOUR.float() / 255).requires_grad_(), (0, 1)),
    ],
)
def test_a_declared_range_brings_8_bit_sources_back_exactly(values: object, value_range: tuple[float, float]) -> None:
    assert torch.equal(image(values, value_range=value_range), COLOUR)


def test_a_range_is_never_guessed() -> None:
    with pytest.raises(ValueError, match=r"torch.float32.*spans 0.25 to 0.5.*value_range.*likely \[0, 1\]"):
        image(torch.tensor([[0.25, 0.5]]))


@pytest.mark.parametrize("wrong", [1.1, -0.1, torch.nan, torch.inf])
def test_values_outside_the_range_are_refused(wrong: float) -> None:
    values = torch.tensor([[0.5, wrong]])
    with pytest.raises(ValueError, match=r"outside value_range=\(0, 1\)"):
        image(values, value_range=(0, 1))


def test_rounding_just_outside_the_range_is_not() -> None:
    assert image(torch.tensor([[-1e-6, 1 + 1e-6]]), value_range=(0, 1)).flatten().tolist() == [0, 255]


def test_booleans_are_black_and_white() -> None:
    assert image(torch.tensor([[True, False]])).flatten().tolist() == [255, 0]
    assert image(Image.new("1", (2, 2), 1)).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("RGBA", (4, 4), (200, 0, 0, 255)), [200, 0, 0]),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), [255, 255, 255]),  # the hidden red does not leak
        (Image.new("LA", (4, 4), (10, 0)), [255]),
        (Image.new("LA", (4, 4), (10, 255)), [10]),
        (Image.new("RGB", (4, 4), (1, 2, 3)).convert("P"), None),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), [255, 0, 0]),
    ],
    ids=["RGBA opaque", "RGBA clear", "LA clear", "LA opaque", "P", "CMYK"],
)
def test_pil_modes_become_grey_or_colour(picture: Image.Image, colour: list[int] | None) -> None:
    expected = colour or list(picture.convert("RGB").getpixel((0, 0)))  # type: ignore[arg-type]
    assert image(picture)[:, 0, 0].tolist() == expected


def test_deep_pil_images_are_taken_by_value_instead_of_being_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 65535], [257 * 100, 257 * 3]], dtype=np.uint16))
    assert deep.mode == "I;16"
    assert image(deep).flatten().tolist() == [0, 255, 100, 3]
    assert image(deep.convert("I")).flatten().tolist() == [0, 255, 100, 3]
    with pytest.raises(ValueError, match=r"0 to 65535, outside value_range=\(0, 4095\)"):
        image(deep, value_range=(0, 4095))
    with pytest.raises(ValueError, match=r"outside value_range=\(0, 65535\)"):
        image(Image.new("I", (2, 2), 65536))
    with pytest.raises(ValueError, match=r"float32 and spans.*`dataset\.value_range`"):
        image(Image.new("F", (2, 2), 0.5))


def test_channels_are_a_policy() -> None:
    assert torch.equal(image(GREY, channels=3), GREY.expand(3, -1, -1))
    assert torch.equal(image(pil(GREY), channels=3), GREY.expand(3, -1, -1))
    luma = np.array(pil(COLOUR).convert("L")).astype(int)
    assert np.abs(image(COLOUR, channels=1)[0].numpy().astype(int) - luma).max() <= 1
    with pytest.raises(ValueError, match=r"4 channels.*`dataset\.channels`"):
        image(torch.zeros(4, 8, 8, dtype=torch.uint8), channels=3)


@pytest.mark.parametrize(("size", "shape"), [(16, (16, 16)), ((16, 20), (16, 20)), ([7, 5], (7, 5)), (40, (40, 40))])
@pytest.mark.parametrize("source", [(30, 50), (50, 30), (16, 16), (5, 200)])
def test_sizes_cover_and_crop(size: int, shape: tuple[int, int], source: tuple[int, int]) -> None:
    assert image(uint8_images(1, 3, *source)[0], image_size=size).shape == (3, *shape)


@pytest.mark.parametrize("size", [8, 13])
def test_resizing_is_torchvisions_resize_and_centre_crop(size: int) -> None:
    """The sizes of a shorter side and the crop's place, over every shape of 5 to 25 pixels a side."""
    for height in range(5, 26):
        for width in range(5, 26):
            item = uint8_images(1, 3, height, width)[0]
            expected = F.center_crop(F.resize(item, [size], antialias=True), [size, size])
            assert torch.equal(image(item, image_size=size), expected), (height, width)


def test_resizing_is_pils_antialiased_resizing_of_the_centre() -> None:
    values = np.add.outer(np.arange(90), np.arange(60)).astype(np.uint8)[..., None].repeat(3, 2)
    picture = Image.fromarray(values)
    reference = np.array(picture.resize((20, 30), Image.Resampling.BILINEAR))[5:25]
    for item in (picture, values, torch.from_numpy(values).permute(2, 0, 1)):
        ours = image(item, image_size=20).permute(1, 2, 0).numpy()
        assert np.abs(ours.astype(int) - reference.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("processor", "error", "key"),
    [
        (dict(channels=2), ValueError, "channels"),
        (dict(channels=True), ValueError, "channels"),
        (dict(image_size=0), ValueError, "image_size"),
        (dict(image_size=1.5), TypeError, "image_size"),
        (dict(image_size="64"), TypeError, "image_size"),
        (dict(image_size=(1, 2, 3)), ValueError, "image_size"),
        (dict(value_range=(1, 0)), ValueError, "value_range"),
        (dict(value_range=1), TypeError, "value_range"),
        (dict(value_range=(0, "1")), TypeError, "value_range"),
        (dict(value_range=(0, torch.inf)), ValueError, "value_range"),
    ],
)
def test_impossible_policies_are_refused(processor: dict[str, Any], error: type[Exception], key: str) -> None:
    with pytest.raises(error, match=rf"`dataset\.{key}`"):
        ImageProcessor(**processor)
