"""Files are decoded upright, and at a reduced size where that looks the same."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

from ddpm_data.images.decode import ResizeSpec
from ddpm_data.sources import ImageFiles
from tests.images.test_processor import image


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert image(ImageFiles(tmp_path)[0]).shape == (3, 8, 4)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG files of many sizes, upright, turned and mirrored by their EXIF tag, grey and CMYK too."""
    folder = tmp_path_factory.mktemp("photographs")
    pictures = [Image.fromarray(values) for values in load_sample_images().images]  # 640 x 427
    paths = []
    for number, (width, height) in enumerate([(640, 427), (333, 401), (257, 300), (129, 427), (427, 131), (301, 303)]):
        picture = pictures[number % 2].crop((50, 0, 50 + width, height))
        for orientation in range(1, 9):
            paths.append(folder / f"{number} {orientation}.jpg")
            exif = picture.getexif()
            exif[0x0112] = orientation
            picture.save(paths[-1], quality=90, exif=exif)
        for mode in ("L", "CMYK"):
            paths.append(folder / f"{number} {mode}.jpg")
            picture.convert(mode).save(paths[-1], quality=90)
    return paths


@pytest.mark.parametrize("size", [16, 61, (32, 100), (90, 40), 200])
def test_jpegs_decoded_at_a_reduced_size_look_like_those_that_are_not(photographs: list[Path], size: Any) -> None:  # noqa: ANN401
    """The reference is PIL's antialiased resizing of the whole image, then the centre: less than 2 levels off."""
    height, width = (size, size) if isinstance(size, int) else size
    reduced = 0
    for path in photographs:
        ours = image(Image.open(path), image_size=size)
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
        whole = upright.convert("L" if upright.mode == "L" else "RGB")
        covering = ResizeSpec((height, width)).target(whole.height, whole.width)
        expected = F.center_crop(
            F.pil_to_tensor(whole.resize((covering[1], covering[0]), Image.Resampling.BILINEAR)), [height, width]
        )
        assert ours.shape == expected.shape
        difference = (ours.int() - expected.int()).abs().float().mean()
        reduced += bool(difference > 0.1)
        assert difference < 2, (path.name, difference)
    if size == 16:
        assert reduced > len(photographs) / 2  # else nothing was decoded at a reduced size


def test_a_reduced_size_is_for_files_that_are_not_yet_decoded(photographs: list[Path], tmp_path: Path) -> None:
    picture = Image.open(photographs[0])
    picture.load()
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(image(picture, image_size=32), image(whole, image_size=32))
    assert image(ImageFiles(photographs[0].parent)[0]).shape == (3, 427, 640)  # no size is asked for
    (tmp_path / "class").mkdir()
    shutil.copy(photographs[0], tmp_path / "class")
    opened, _ = ImageFolder(str(tmp_path), loader=Image.open)[0]
    image(opened, image_size=32)
    assert opened.size == (160, 107)  # a quarter of 640 x 427: torchvision's folders can give files not yet decoded too
