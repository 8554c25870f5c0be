"""Every dtype that torch has passes every way of loading unchanged, or is refused in setup()."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from ddpm_data import DDPMDataModule, schedules
from ddpm_data._bytes import all_equal
from ddpm_data.cli.verify import _example_bytes
from ddpm_data.latents import Latents
from ddpm_data.types import ImageBatch

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*support is experimental:UserWarning", "ignore:torch.quantize_per_tensor:UserWarning"
)

COUNT = 12
FLOATS = [
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]
OTHERS = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.complex32, torch.complex64, torch.complex128),
]
NUMBERS = torch.arange(COUNT * 8).view(COUNT, 2, 2, 2) % 13


class Items(list[Any]):
    """A dataset without an array behind it."""


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        return iter(self.items[info.id :: info.num_workers] if info else self.items)


def batches(train: Any, **options: Any) -> list[ImageBatch]:  # noqa: ANN401  # any dataset and option
    dm = DDPMDataModule(train, schedule=schedules.linear(10), batch_size=4, compile=False, **options)
    dm.prepare_data()
    dm.setup("fit")
    return list(dm.train_dataloader())


def served(way: str, items: list[Any], folder: Path, **options: Any) -> list[ImageBatch]:  # noqa: ANN401  # ours
    train: Any = Stream(items) if way == "stream" else Items(items)
    ways: dict[str, Any] = {"cached": dict(num_workers=1, cache_dir=folder), "stream": dict(num_workers=2)}
    return batches(train, **ways.get(way, {}), **options)


@pytest.mark.parametrize("way", ["items", "cached", "stream"])
def test_conditions_keep_every_bit(way: str, tmp_path: Path) -> None:
    """bfloat16 and float8 ended the cache with "unsupported ScalarType"."""
    pixels = torch.arange(COUNT, dtype=torch.uint8).view(COUNT, 1, 1, 1).expand(-1, 3, 4, 4)
    conditions = [{str(dtype): row.to(dtype) for dtype in FLOATS + OTHERS} for row in NUMBERS]
    for _ in range(2 if way == "cached" else 1):  # made, then found
        seen = 0
        for batch in served(way, list(zip(pixels, conditions, strict=True)), tmp_path, image_key=0, condition=1):
            rows = [conditions[int(image[0, 0, 0])] for image in batch.images]
            for name, column in batch.meta.condition.items():
                assert all_equal(column, torch.stack([row[name] for row in rows])), name
            assert len(set(_example_bytes(batch.meta.condition))) == len(rows)
            seen += len(rows)
        assert seen == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("way", ["items", "cached", "stream", "array"])
def test_latents_of_every_float(way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of one byte, they reach the model as bfloat16, of the same values."""
    latents = NUMBERS.to(dtype)
    if way == "array":
        images = batches(TensorDataset(latents), latents=Latents())
    else:
        images = served(way, list(latents), tmp_path, latents=Latents())
    values = [image.double().flatten().tolist() for batch in images for image in batch.images]
    assert sorted(values) == sorted(row.double().flatten().tolist() for row in latents)
    assert {batch.images.dtype for batch in images} <= {torch.bfloat16, torch.float16, torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS[:-1] + OTHERS[1:-3], ids=str)
def test_images_of_every_real_dtype_are_cached_as_they_are_served(dtype: torch.dtype, tmp_path: Path) -> None:
    images = list(NUMBERS[:, :1].to(dtype))
    plain, cached = (served(way, images, tmp_path, value_range=(0, 12)) for way in ("items", "cached"))
    assert all(torch.equal(one.images, other.images) for one, other in zip(plain, cached, strict=True))


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.rand(COUNT, 3, 4, 4), 0.1, 0, torch.qint8)


def test_numbers_that_are_no_pixels_are_refused() -> None:
    for images in (NUMBERS.to(torch.complex64), quantized()):
        with pytest.raises(ValueError, match=r"train\[0\]: .*pixels that are real numbers"):
            batches(Items(images), value_range=(0, 12))
        with pytest.raises(ValueError, match=r"train, batch 0: .*pixels that are real numbers"):
            batches(DataLoader(TensorDataset(images), 4), value_range=(0, 12))
    with pytest.raises(TypeError, match=r"scale of the first.*`condition`"):
        batches(Items(zip(NUMBERS.byte(), quantized(), strict=True)), image_key=0, condition=1)
