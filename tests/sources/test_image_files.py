"""Folders of images."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles
from tests.conftest import ROOT
from tests.images.test_processor import COLOUR, image, pil


def test_a_folder_is_read_flat_and_nested_in_natural_order(folder: Path) -> None:
    files = ImageFiles(folder)
    assert files.names == ["1.png", "2.png", "10.png", "cats/a.jpg", "cats/B.PNG"]
    assert [picture.size for picture in files] == [(40, 30), (30, 40), (32, 32), (64, 48), (9, 9)]  # type: ignore[attr-defined]
    assert ImageFiles(str(folder)).names == files.names


@pytest.mark.slow
def test_a_process_that_has_not_yet_opened_an_image_finds_the_same_files(folder: Path) -> None:
    code = f"from ddpm_data.sources import ImageFiles; print(*ImageFiles({str(folder)!r}).names)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert fresh.stdout.split() == ImageFiles(folder).names


def test_a_wrong_ending_is_no_matter(tmp_path: Path) -> None:
    pil(COLOUR).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPG")
    assert torch.equal(image(ImageFiles(tmp_path)[0]), COLOUR)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*`dataset\.root`"):
        ImageFiles(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"no image files.*`dataset\.root`"):
        ImageFiles(tmp_path)


def test_a_truncated_file_is_named(folder: Path) -> None:
    broken = folder / "cats" / "a.jpg"
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(OSError, match=r"train\[3\]: .*a\.jpg cannot be read as an image: .*truncated"):
        MapStyleImages(ImageFiles(folder), ImageProcessor(), "train").batch([3])
    broken.write_bytes(b"no image")
    with pytest.raises(OSError, match=r"a\.jpg cannot be read as an image: it is of no format"):
        ImageFiles(folder)[3]
