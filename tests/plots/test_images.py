"""What the pictures of images show, read back from their pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_data import ForwardProcess, plots, schedules
from ddpm_data.plots.images import _mosaic
from tests.conftest import uint8_images


def test_the_strip_has_a_row_an_image_and_ten_columns_ending_in_noise(tmp_path: Path) -> None:
    black = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    plots.noising_strip(ForwardProcess(schedules.linear()), black, tmp_path / "a.png")
    values = np.array(Image.open(tmp_path / "a.png").convert("L")).astype(float)
    height, width = values.shape
    assert width / height == pytest.approx(10 / 3.3, rel=0.02)
    # The last row, away from the titles: the first column is black, the last about half grey on average, and mixed.
    first, last = (values[int(0.75 * height) : int(0.95 * height), c : c + 100] for c in (25, width - 125))
    assert first.mean() < 5
    assert 80 < last.mean() < 180
    assert last.std() > 60


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_short_chains_and_colour_are_drawn_too(steps: int, tmp_path: Path) -> None:
    process = ForwardProcess(schedules.linear(steps))
    plots.noising_strip(process, uint8_images(1, 3, 8, 8), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 150 * min(steps, 10)


def test_a_mosaic_keeps_every_image_in_its_place() -> None:
    images = torch.arange(7.0)[:, None, None, None].expand(7, 1, 2, 2) / 10
    mosaic = _mosaic(images)
    assert mosaic.shape == (1, 2 * 3 - 1, 4 * 3 - 1)
    assert [round(float(mosaic[0, 3 * (i // 4), 3 * (i % 4)]) * 10) for i in range(7)] == list(range(7))
    assert (mosaic[0, 2] == 1).all()


def test_samples_and_real_images_stand_side_by_side(tmp_path: Path) -> None:
    white, black = torch.ones(9, 3, 4, 4), torch.zeros(9, 3, 4, 4, dtype=torch.uint8)
    plots.samples_beside(white, black, tmp_path / "a.png")
    values = np.array(Image.open(tmp_path / "a.png").convert("L"))
    row = values[values.shape[0] // 2]
    assert row[200:600].min() > 250
    assert np.median(row[1100:1500]) < 5
