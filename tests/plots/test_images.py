"""What the pictures of images show, read back from their pixels."""

from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_data import ForwardProcess, plots, schedules
from ddpm_data.plots._tiles import GREY, GUTTER, Spacing, choose_steps, join_tiles, title_steps
from ddpm_data.plots.images import Captioned
from tests.conftest import uint8_images

Picture = np.ndarray[Any, np.dtype[np.float64]]
SCHEDULES = {
    "linear": schedules.linear(),
    "short": schedules.linear(25),
    "cosine": schedules.cosine(300),
    "no signal at the end": schedules.zero_terminal_snr(schedules.linear()),
    "no noise at first": torch.tensor([0.0, 0.0, 0.5, 1.0]),
    "one step": schedules.linear(1),
}


def read(path: Path) -> Picture:
    """The brightness of a picture's pixels, from 0 to 1."""
    return np.array(Image.open(path).convert("L")).astype(float) / 255


def is_gutter(brightness: Picture) -> Picture:
    return np.abs(brightness - GREY) < 0.01


def spans(is_inside: Picture) -> list[slice]:
    """The runs of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_inside.astype(int), [0]])))
    return [slice(*pair) for pair in edges.reshape(-1, 2)]


def find_tiles(picture: Picture) -> list[list[Picture]]:
    """The images of a grid on grey, row by row."""
    grey = is_gutter(picture)
    share = grey.sum(1) / grey.sum(1).max()
    top, bottom = np.flatnonzero(share > 0.9)[[0, -1]]
    rows = [slice(top + row.start, top + row.stop) for row in spans(share[top : bottom + 1] < 0.9)]
    columns = [spans(~grey[row].all(0) & (picture[row] < 0.999).any(0)) for row in rows]
    return [[picture[row, column] for column in found] for row, found in zip(rows, columns, strict=True)]


@pytest.mark.parametrize("spacing", get_args(Spacing))
def test_the_strip_has_a_row_an_image_and_columns_from_clean_to_noise(spacing: Spacing, tmp_path: Path) -> None:
    black = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    plots.noising_strip(ForwardProcess(schedules.linear()), black, tmp_path / "a.png", spacing=spacing)
    rows = find_tiles(read(tmp_path / "a.png"))
    assert [len(row) for row in rows] == [10, 10, 10]
    for row in rows:
        assert {tile.shape for tile in row} == {(144, 144)}  # 18 pixels of the picture are one of the image
        pixels = [tile.reshape(8, 18, 8, 18) for tile in row]
        assert all(pixel.std((1, 3)).max() < 1e-6 for pixel in pixels)  # and sharp
        assert row[0].mean() < 0.02
        assert 0.3 < row[-1].mean() < 0.7
        assert row[-1].std() > 0.24


def test_white_images_do_not_run_into_each_other_or_into_the_page(tmp_path: Path) -> None:
    white = torch.full((4, 3, 8, 8), 255, dtype=torch.uint8)
    plots.samples_beside(torch.ones(4, 3, 8, 8), white, tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    row = picture[picture.shape[0] // 2 - 40]
    lines = spans(is_gutter(row))
    assert len(lines) == 2 * 3
    assert all(line.stop - line.start == GUTTER for line in lines)
    assert (row[~is_gutter(row)] > 0.99).all()


@pytest.mark.parametrize("columns", [1, 2, 3, 10])
@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_go_from_the_first_to_the_last_each_once(name: str, spacing: Spacing, columns: int) -> None:
    process = ForwardProcess(SCHEDULES[name])
    steps = choose_steps(process, columns, spacing)
    assert len(steps) == min(columns, process.num_timesteps)
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == (process.num_timesteps - 1 if columns > 1 else 0)
    assert len(title_steps(process, steps)) == len(steps)


def test_steps_are_even_in_what_was_asked_for() -> None:
    process = ForwardProcess(schedules.linear())
    assert choose_steps(process, 4, "t") == [0, 333, 666, 999]
    steps = choose_steps(process, 10, "log_snr")
    decibels = 10 * process.snr(torch.tensor(steps)).log10()
    torch.testing.assert_close(decibels[1:-1], torch.linspace(20, -20, 10)[1:-1], rtol=0, atol=0.4)
    assert title_steps(process, [0, 259, 999]) == ["t = 0\n40 dB", "t = 259\n0 dB", "t = 999\n-44 dB"]
    endless = ForwardProcess(SCHEDULES["no noise at first"])
    assert title_steps(endless, [0, 3]) == ["t = 0\nno noise", "t = 3\nno signal"]


def test_tiles_keep_every_image_in_its_place_and_their_sizes_in_proportion() -> None:
    images = [torch.full((1, 2, 2 + 2 * (i % 2)), -1 + i / 10) for i in range(7)]
    tiles = join_tiles(images, columns=4, side=9, text_height=20)
    assert tiles.pixels.shape == (2 * (GUTTER + 4 + 20) + GUTTER, 4 * (GUTTER + 8) + GUTTER, 3)  # each pixel twice
    for number in range(7):
        row, column = divmod(number, 4)
        bottom, middle = int(tiles.bottoms[row]), int(tiles.middles[column])
        width = 2 * images[number].shape[2]
        area = tiles.pixels[bottom - 4 : bottom, middle - width // 2 : middle + width // 2]
        assert np.allclose(area, number / 20)
        assert np.allclose(tiles.pixels[bottom : bottom + 20, middle], GREY)
    assert (~np.isclose(tiles.pixels[..., 0], GREY)).sum() == 4 * (4 * 4 + 8 * 3)


def test_large_images_are_made_smaller_and_transparent_ones_lie_on_white() -> None:
    assert join_tiles([torch.zeros(3, 400, 200)], 1, 100).pixels.shape == (100 + 2 * GUTTER, 50 + 2 * GUTTER, 3)
    glass = torch.tensor([-1.0, -1.0, -1.0, 0.0])[:, None, None].expand(4, 2, 2)  # black, half transparent
    assert np.allclose(join_tiles([glass], 1, 2).pixels[GUTTER, GUTTER], 0.5)


def test_captions_stand_below_their_images_as_much_as_fits(tmp_path: Path) -> None:
    images = list(uint8_images(3, 3, 20, 30))
    plots.image_grids({"train": [Captioned(image, " \n ") for image in images]}, tmp_path / "bare.png")
    captions = ["7\ncat", "8\na name that is far too long for its image.jpg", "9\nx"]
    plots.image_grids({"train": list(map(Captioned, images, captions))}, tmp_path / "a.png")
    bare, picture = read(tmp_path / "bare.png"), read(tmp_path / "a.png")
    assert bare.shape == picture.shape
    changed = bare != picture
    assert is_gutter(bare[changed]).all()  # text lies on grey only
    found = spans(changed.any(0))
    gaps = [after.start - before.stop for before, after in pairwise(found)]
    assert max(gaps) > 20  # the long name does not touch the short one
    assert [tile.shape[1] for tile in find_tiles(bare)[0]] == [120, 120, 120]


def test_a_wrong_spacing_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log_snr or t\. Change `callbacks\.noising_strip\.spacing`"):
        plots.noising_strip(
            ForwardProcess(schedules.linear()),
            uint8_images(1, 1, 8, 8),
            tmp_path / "a.png",
            spacing="snr",  # type: ignore[arg-type]
        )
