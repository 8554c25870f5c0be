"""A range says what is black and white, of 8 bits too; files of more bits go by what they declare."""

import json
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.cli.check import main
from ddpm_data.images.levels import scale_from_levels, scale_to_levels, to_uint8
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ArrayFile, ImageFiles
from tests.conftest import ROOT
from tests.images.test_processor import image

MASK = np.random.default_rng(0).integers(0, 2, (24, 20), dtype=np.uint8)


def tiff(values: np.ndarray[Any, Any], bits: int) -> bytes:
    """A grey TIFF file of any number of bits, as PIL writes none."""
    height, width = values.shape
    text = "".join(format(value, f"0{bits}b") for value in values.ravel().tolist())
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    if bits == 16:
        data = values.astype("<u2").tobytes()
    short, long = 3, 4
    tags = [(256, long, width), (257, long, height), (258, short, bits), (259, short, 1), (262, short, 1)]
    tags += [(273, long, 8 + 2 + 12 * 9 + 4), (277, short, 1), (278, long, height), (279, long, len(data))]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == long else "<HH", *[value, 0][: 5 - kind])
        for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(
    "mask",
    [MASK, torch.from_numpy(MASK), MASK.astype(np.int64), MASK > 0, Image.fromarray(MASK), Image.fromarray(MASK > 0)],
    ids=["uint8 array", "uint8 tensor", "int64", "bool", "PIL L", "PIL 1"],
)
@pytest.mark.parametrize("size", [None, 8])
def test_masks_of_zeros_and_ones_are_black_and_white(mask: object, size: int | None) -> None:
    """uint8 masks arrived as 0 and 1 of 255, whatever the range."""
    expected = torch.from_numpy(MASK)[None] * 255
    assert torch.equal(image(mask, value_range=(0, 1), image_size=size), image(expected, image_size=size))
    assert image(mask, value_range=(0, 1)).unique().tolist() == [0, 255]


def test_mask_files_are_black_and_white_whatever_their_format(tmp_path: Path) -> None:
    whole = Image.fromarray(MASK).resize((400, 480), Image.Resampling.NEAREST)
    for name in ("a.png", "b.bmp", "c.tif", "d.webp"):
        whole.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    expected = torch.from_numpy(np.array(whole))[None].repeat(3, 1, 1) * 255
    for size in (None, 16):
        processor = ImageProcessor(value_range=(0, 1), channels=3, image_size=size)
        for opened in ImageFiles(tmp_path):
            assert torch.equal(processor(opened), ImageProcessor(image_size=size)(expected))


def test_uint8_in_an_array_of_a_dataset_is_mapped_in_batches_too() -> None:
    arrays = torch.utils.data.TensorDataset(torch.from_numpy(MASK).expand(9, 1, 24, 20))
    datamodule = DDPMDataModule(
        arrays, schedule=schedules.linear(10), value_range=(0, 1), batch_size=4, compile=False, seed=0
    )
    datamodule.setup("fit")
    for batch in datamodule.train_dataloader():
        assert torch.equal(batch.images, torch.from_numpy(MASK).expand(len(batch.images), 1, 24, 20) * 255)


@pytest.mark.parametrize("way", ["DataLoader", "cache", "ArrayFile", "files in a worker"])
def test_masks_are_black_and_white_by_every_way_of_loading(way: str, tmp_path: Path) -> None:
    masks = np.stack([np.roll(MASK, number, 0) for number in range(6)])
    np.save(tmp_path / "masks.npy", masks)
    (tmp_path / "files").mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / "files" / f"{number}.png")
    train: Any = {
        "DataLoader": DataLoader(torch.from_numpy(masks)[:, None], batch_size=2),  # type: ignore[arg-type]  # map-style
        "cache": list(masks),
        "ArrayFile": ArrayFile(tmp_path / "masks.npy"),
        "files in a worker": ImageFiles(tmp_path / "files"),
    }[way]
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"} if way == "cache" else {}
    datamodule = DDPMDataModule(
        train,
        schedule=schedules.linear(10),
        compile=False,
        value_range=(0, 1),
        num_workers=int(way == "files in a worker"),
        **options,
    )
    datamodule.prepare_data()
    datamodule.setup("fit")
    images = torch.cat([batch.images for batch in datamodule.train_dataloader()])
    expected = torch.from_numpy(masks)[:, None] * 255
    assert sorted(images.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())


@pytest.mark.parametrize("item", [MASK, Image.fromarray(MASK)], ids=["array", "PIL"])
@pytest.mark.parametrize("value_range", [(0, 4095), (-1, 1), (0, 65535)])
def test_a_range_beyond_8_bits_is_not_one_of_8_bit_images(item: object, value_range: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"8 bits.*reaches beyond them.*`dataset\.value_range`"):
        image(item, value_range=value_range)


@pytest.mark.parametrize("item", [MASK * 2, Image.fromarray(MASK * 2)], ids=["array", "PIL"])
def test_8_bit_values_outside_the_range_are_refused(item: object) -> None:
    with pytest.raises(ValueError, match=r"span 0 to 2, outside value_range=\(0, 1\)"):
        image(item, value_range=(0, 1))


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (0, 4095), (-1e6, -1e6 + 3), (1e-9, 2e-9)])
def test_every_level_comes_back(value_range: tuple[float, float]) -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    values = scale_from_levels(levels, value_range)
    assert torch.equal(scale_to_levels(values, value_range), levels)
    assert torch.equal(to_uint8(values, value_range), levels)


def test_large_arrays_are_mapped_as_small_ones_are() -> None:
    """They are mapped in chunks."""
    values = torch.randint(0, 4096, (3, 1500, 1100), generator=torch.Generator().manual_seed(0))
    expected = (values.double() * (255 / 4095)).round().to(torch.uint8)
    assert torch.equal(to_uint8(values, (0, 4095)), expected)
    assert torch.equal(to_uint8(values.to(torch.int16).view(3, 1100, 1500), (0, 4095)), expected.view(3, 1100, 1500))
    with pytest.raises(ValueError, match="span 0 to 4095, outside"):
        to_uint8(values, (0, 4094))


def test_a_tiff_file_of_12_bits_says_so(tmp_path: Path) -> None:
    """It came out nearly black: 4095 was taken for one of 65535."""
    values = np.arange(64 * 64).reshape(64, 64)
    (tmp_path / "a.tif").write_bytes(tiff(values, 12))
    expected = torch.from_numpy(values[None] / (4095 / 255)).round().to(torch.uint8)
    assert torch.equal(image(ImageFiles(tmp_path)[0]), expected)
    assert torch.equal(image(ImageFiles(tmp_path)[0], value_range=(0, 4095)), expected)
    (tmp_path / "b.tif").write_bytes(tiff(values * 16, 16))
    assert torch.equal(image(ImageFiles(tmp_path)[1]), image((values * 16).astype(np.uint16), value_range=(0, 65535)))


@pytest.mark.parametrize(("peak", "white"), [(4095, 4095), (3000, 4095), (255, 255), (16383, 16383), (9000, 16383)])
@pytest.mark.parametrize("workers", [0, 1])
def test_deep_images_that_end_far_below_white_are_told_once(
    peak: int, white: int, workers: int, tmp_path: Path
) -> None:
    for number in range(3):
        values = np.full((20, 20), peak // (number + 1), np.uint16)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    options: dict[str, Any] = {"schedule": schedules.linear(10), "compile": False, "num_workers": workers}
    datamodule = DDPMDataModule(ImageFiles(tmp_path), **options)
    with pytest.warns(
        UserWarning, match=rf"3 16-bit train images.*up to {peak}, .*set `value_range` to \[0, {white}\].*\[0, 65535\]"
    ) as told:
        datamodule.setup("fit")
    assert len(told) == 1
    for top in (white, 65535):  # either answer is heard
        with warnings.catch_warnings(action="error"):
            DDPMDataModule(ImageFiles(tmp_path), value_range=(0, top), **options).setup("fit")


class Stream(IterableDataset[Image.Image]):
    """Images of 12 bits in 16, and some of 8."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Image.Image]:
        for number in range(self.count):
            yield Image.fromarray(np.full((20, 20), 4000 + number, np.uint16) if number % 3 else MASK)


@pytest.mark.parametrize("count", [5, 40])
def test_a_source_that_setup_does_not_look_at_is_told_on_the_way(count: int) -> None:
    """In the first epoch only, and after as many items as others are told by."""
    datamodule = DDPMDataModule(
        Stream(count), schedule=schedules.linear(10), compile=False, image_size=16, batch_size=4
    )
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()

    def read_epochs() -> None:
        for epoch in (0, 1):
            loader.set_epoch(epoch)  # type: ignore[attr-defined]  # ours
            assert sum(len(batch.images) for batch in loader) == count

    with pytest.warns(UserWarning, match=r"16-bit train images.*set `value_range` to \[0, 4095\]") as told:
        read_epochs()
    assert len(told) == 1
    assert f"up to {4000 + min(count - 1, 31)}" in str(told[0].message)
    assert str(told[0].message).startswith(f"the {min(count, 32) - -(-min(count, 32) // 3)} 16-bit")


def test_check_tells_of_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.fromarray(np.full((20, 20), 1000 * number, np.uint16)).save(tmp_path / f"{number}.png")
    config = ["--config-dir", str(ROOT / "conf"), "dataset=image_folder", f"dataset.root={tmp_path}"]
    assert main([*config, "dataset.val=null", "dataset.image_size=16", "--out", str(tmp_path / "out")]) == 0
    assert "train: the 3 16-bit train images looked at have values up to 2000" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "check.json").read_text())["sets"]["train"]
    assert len(summary["warnings"]) == 1


def test_deep_images_that_fill_their_bits_are_not(tmp_path: Path) -> None:
    for number, peak in enumerate((100, 16384, 300)):  # the highest of all decides
        Image.fromarray(np.full((20, 20), peak, np.uint16)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.tif").write_bytes(tiff(np.full((20, 20), 4095), 12))  # says what its white is
    with warnings.catch_warnings(action="error"):
        MapStyleImages(ImageFiles(tmp_path), ImageProcessor(), "train").inspect()
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with warnings.catch_warnings(action="error"):
        MapStyleImages(ImageFiles(tmp_path), ImageProcessor(), "train").inspect()


def test_a_value_that_stands_for_transparency_need_not_be_in_the_range(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [2048, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=65535)
    shown = image(ImageFiles(tmp_path)[0], value_range=(0, 4095), background="black")
    assert shown.tolist() == [[[0, 255], [128, 0]]]
