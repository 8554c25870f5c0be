"""What holds of any image: of every shape, dtype, layout, container and batch size that Hypothesis thinks of."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages

SEED = settings(derandomize=True, deadline=None, max_examples=60)
sides = st.integers(5, 14)  # more than channels can be, so that no axis is mistaken for them
sizes = st.integers(1, 40)


@st.composite
def images(draw: st.DrawFn, channels: tuple[int, ...] = (1, 3), side: st.SearchStrategy[int] = sides) -> Tensor:
    """Random pixels, uint8, CHW."""
    shape = (draw(st.sampled_from(channels)), draw(side), draw(side))
    return torch.from_numpy(np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape, np.uint8))


def hwc(pixels: Tensor) -> np.ndarray[Any, Any]:
    return pixels.permute(1, 2, 0).numpy().copy()


def read_only(pixels: Tensor) -> np.ndarray[Any, Any]:
    values = hwc(pixels)
    values.flags.writeable = False
    return values


def pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray(hwc(pixels).squeeze(-1) if len(pixels) == 1 else hwc(pixels))


def reopened(pixels: Tensor, kind: str, **options: Any) -> Image.Image:  # noqa: ANN401  # PIL's own
    file = io.BytesIO()
    pil(pixels).save(file, kind, **options, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return Image.open(file)


LAYOUTS: list[Callable[[Tensor], object]] = [
    lambda pixels: pixels,
    lambda pixels: pixels.permute(1, 2, 0),
    lambda pixels: pixels.permute(0, 2, 1).contiguous().transpose(1, 2),
    lambda pixels: pixels.repeat(1, 2, 2)[:, : pixels.shape[1], : pixels.shape[2]],
    lambda pixels: pixels.numpy(),
    hwc,
    read_only,
    lambda pixels: np.asfortranarray(hwc(pixels)),
    lambda pixels: hwc(pixels)[::-1].copy()[::-1],
    lambda pixels: hwc(pixels)[:, ::-1].copy()[:, ::-1],
    lambda pixels: hwc(pixels).repeat(2, 0)[::2],
    lambda pixels: hwc(pixels).astype(np.uint16),
    lambda pixels: hwc(pixels).astype(">i4"),
    lambda pixels: hwc(pixels).astype(np.float16),
    lambda pixels: pixels.double().requires_grad_(),
    pil,
    lambda pixels: pil(pixels).convert("RGBA" if len(pixels) == 3 else "LA"),
    lambda pixels: reopened(pixels, "PNG"),
    lambda pixels: reopened(pixels, "TIFF", compression="tiff_lzw"),
    lambda pixels: reopened(pixels, "PPM"),
]
CONTAINERS: list[Callable[[object], object]] = [
    lambda image: image,
    lambda image: (image, 3),
    lambda image: ["a caption", image],
    lambda image: {"image": image, "label": 3},
    lambda image: {7: "a caption", "x": image, "embedding": np.zeros(5)},
]


@SEED
@given(images(), st.sampled_from(LAYOUTS), st.sampled_from(CONTAINERS))
def test_the_same_pixels_are_the_same_bytes(
    pixels: Tensor, layout: Callable[[Tensor], object], container: Callable[[object], object]
) -> None:
    before = pixels.clone()
    image = ImageProcessor(value_range=(0, 255))(container(layout(pixels)))
    assert image.dtype == torch.uint8
    assert torch.equal(image, pixels)
    assert torch.equal(pixels, before)  # nobody wrote to the caller's


@SEED
@given(st.data(), st.booleans(), st.sampled_from([None, 6, (3, 9)]), st.sampled_from([None, 1, 3]))
def test_batches_are_their_items(data: st.DataObject, is_array: bool, size: Any, channels: int | None) -> None:  # noqa: ANN401
    shape = data.draw(st.tuples(st.sampled_from([1, 3]), sides, sides))
    count = data.draw(st.integers(1, 9))
    stack = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    view = MapStyleImages(
        stack if is_array else list(stack), ImageProcessor(image_size=size, channels=channels), "train"
    )
    items = [view[index] for index in range(count)]
    indices = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12))
    assert torch.equal(view.batch(indices).images, torch.stack([items[index] for index in indices]))


@SEED
@given(
    images(side=sizes),
    st.sampled_from([lambda pixels: pixels, hwc, pil]),
    st.tuples(sizes, sizes),
    st.sampled_from([1, 3]),
)
def test_images_come_in_the_size_and_channels_that_are_asked_for(
    pixels: Tensor, layout: Callable[[Tensor], object], size: tuple[int, int], channels: int
) -> None:
    item = layout(pixels) if min(pixels.shape[1:]) > 4 else pil(pixels)  # whose axes are no guess
    assert ImageProcessor(image_size=size, channels=channels)(item).shape == (channels, *size)


@SEED
@given(sizes, sizes, st.tuples(sizes, sizes), st.tuples(*[st.integers(0, 255)] * 3))
def test_one_colour_stays_that_colour(height: int, width: int, size: tuple[int, int], colour: tuple[int, ...]) -> None:
    image = ImageProcessor(image_size=size)(Image.new("RGB", (width, height), colour))
    assert torch.equal(image, torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, *size))


@SEED
@given(st.integers(-1000, 1000), st.integers(1, 2000), st.sampled_from([np.float32, np.float64, ">f4", "<f8"]))
@example(0, 1, np.float32)
@example(-1, 2, np.float32)
def test_a_declared_range_brings_every_level_back(low: int, span: int, dtype: Any) -> None:  # noqa: ANN401
    levels = np.arange(256).reshape(16, 16)
    values = (low + levels * (span / 255)).astype(dtype)
    assert torch.equal(
        ImageProcessor(value_range=(low, low + span))(values), torch.from_numpy(levels.astype(np.uint8))[None]
    )


@SEED
@given(arrays.arrays(np.uint16, st.tuples(sides, sides)), st.sampled_from(["I;16", "I;16B", "I", "PNG", "TIFF"]))
def test_sixteen_bits_are_rounded_to_eight(values: np.ndarray[Any, Any], kind: str) -> None:
    if kind in ("PNG", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(values).save(file, kind)
        image = Image.open(file)
    else:
        stored = values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[kind])
        image = Image.frombytes(kind, values.shape[::-1], stored.tobytes())
    expected = np.rint(values / 257).astype(np.uint8)
    assert torch.equal(ImageProcessor()(image), torch.from_numpy(expected)[None])


@SEED
@given(images((4,)), images((3,)), st.sampled_from(["PNG", "TIFF", "WEBP", None]))
def test_what_is_clear_hides_its_colour(pixels: Tensor, hidden: Tensor, kind: str | None) -> None:
    pixels[3] = (pixels[3] > 127) * 255
    others = pixels.clone()
    height, width = min(pixels.shape[1], hidden.shape[1]), min(pixels.shape[2], hidden.shape[2])
    others[:3, :height, :width] = hidden[:, :height, :width]
    others[:3] = torch.where(pixels[3] > 0, pixels[:3], others[:3])
    shown = [ImageProcessor()(reopened(some, kind) if kind else pil(some)) for some in (pixels, others)]
    assert torch.equal(*shown)
    assert torch.equal(shown[0], torch.where(pixels[3] > 0, pixels[:3], 255))


@SEED
@given(images((3,)), st.integers(1, 8), st.sampled_from(["PNG", "TIFF", "WEBP", "JPEG"]))
def test_every_orientation_is_pils_own(pixels: Tensor, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(reopened(pixels, kind, exif=exif)))
    image = ImageProcessor()(reopened(pixels, kind, exif=exif))
    assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


anything = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9) | st.just(torch.zeros(3)),
    lambda some: (
        st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=3), some, max_size=3) | st.tuples(some, some)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@SEED
@given(anything)
def test_what_is_no_image_is_refused(item: object) -> None:
    with pytest.raises(TypeError, match=r"train\[0\].*Change `dataset`"):
        MapStyleImages([item], ImageProcessor(), "train")[0]
