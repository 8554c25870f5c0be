"""What the curves show, read back from the pictures' pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_data import (
    DensityTimesteps,
    ForwardProcess,
    GaussianProcess,
    UniformTimesteps,
    densities,
    plots,
    processes,
    schedules,
)
from ddpm_data.diffusion.linear_denoiser import LinearBaseline
from ddpm_data.diffusion.timestep_bins import BinLoss
from ddpm_data.plots import curves as sheets
from ddpm_data.plots._axes import COLOURS, Figure, curve_style, set_log_scale
from tests.conftest import uint8_images

PROCESS = ForwardProcess(schedules.linear(100))


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.jsd])
def test_curves_are_drawn_also_where_the_ratio_is_no_number(schedule: object, tmp_path: Path) -> None:
    plots.schedule_curves(ForwardProcess(schedule()), tmp_path / "a.png")  # type: ignore[operator]
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    assert picture.width == 3 * 600
    blue = (np.abs(np.array(picture).astype(int) - (0, 0x72, 0xB2)).max(-1) < 30).reshape(picture.height, 3, -1)
    assert (blue.sum((0, 2)) > 300).all()  # a curve in each of the three panels


def rows(*losses: list[float]) -> list[BinLoss]:
    """A validation each, of as many ranges of ten steps as there are losses."""
    return [
        BinLoss(epoch, 100 * epoch, 10 * k, 10 * k + 9, 0.0, loss, 1)
        for epoch, validation in enumerate(losses)
        for k, loss in enumerate(validation)
    ]


def near(path: Path, colour: str, tolerance: int = 12) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Where a picture has a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(np.array(Image.open(path).convert("RGB")).astype(int) - wanted).max(-1) < tolerance).astype(bool)


def test_the_last_validation_stands_out_from_the_earlier(tmp_path: Path) -> None:
    plots.timestep_losses(rows([4.0, 3.0, 2.0]), tmp_path / "one.png")
    plots.timestep_losses(rows([4.0, 3.0, 2.0], [1.0, 0.9, 0.8]), tmp_path / "two.png")
    assert near(tmp_path / "one.png", COLOURS[0]).sum() > 1000
    legend = near(tmp_path / "two.png", "#999999")[-60:].sum()
    assert legend > near(tmp_path / "one.png", "#999999")[-60:].sum() + 100  # only then is there a second entry
    blue = np.nonzero(near(tmp_path / "two.png", COLOURS[0])[:-60])[0].mean()
    assert blue > 300  # the lower losses of the last validation: the lower half of 630 rows


def test_losses_are_also_drawn_as_multiples_of_the_linear_denoisers(tmp_path: Path) -> None:
    """Twice its loss everywhere is a level line at 2, above the level line at 1."""
    baseline = LinearBaseline({(0, 9): 0.8, (10, 19): 0.2, (20, 29): 0.05}, images=20)
    plots.timestep_losses(rows([1.6, 0.4, 0.1]), tmp_path / "a.png", baseline)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * 1050, 630)
    model, linear = (near(tmp_path / "a.png", colour)[:-60] for colour in COLOURS[:2])
    for left, right in ((model[:, :1050], model[:, 1050:]), (linear[:, :1050], linear[:, 1050:])):
        assert np.ptp(np.nonzero(left)[0]) > 200
        assert 0 < np.ptp(np.nonzero(right)[0]) < 20
    assert np.nonzero(model[:, 1050:])[0].max() < np.nonzero(linear[:, 1050:])[0].min()


@pytest.mark.parametrize(
    "losses", [[0.5], [0.0, -1.0], [float("nan"), 1.0], [float("inf"), float("inf")], [1e-9, 10.0]]
)
def test_any_losses_are_drawn(losses: list[float], tmp_path: Path) -> None:
    plots.timestep_losses(rows(losses, losses), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1050, 630)


SCHEDULES = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(300),
    "jsd": schedules.jsd(50),
    "zero": schedules.zero_terminal_snr(schedules.linear()),
    "clean at first": torch.tensor([0.0, 0.0, 0.5, 1.0]),
    "one step": schedules.linear(1),
}


@pytest.mark.slow
def test_a_sheet_has_every_schedule_in_every_panel_and_a_strip_of_each(tmp_path: Path) -> None:
    """Warnings are errors: zero terminal SNR, and steps without noise, are drawn without any."""
    processes = {name: ForwardProcess(betas) for name, betas in SCHEDULES.items() if len(betas) > 1}
    sheets.schedule_sheet(processes, tmp_path / "a.png")
    sheets.schedule_sheet(processes, tmp_path / "b.png", UniformTimesteps(True), uint8_images(2, 3, 8, 8), columns=4)
    top = np.array(Image.open(tmp_path / "a.png")).shape[0] - 1485  # the panels are 9.9 inches high
    for number, name in enumerate(processes):
        found = near(tmp_path / "a.png", COLOURS[number], 40)[top:].reshape(3, 495, 3, 650)
        # All densities lie over each other, and so do the weights: the last one is seen.
        panels = [found[row, :, column].sum() for row in range(3) for column in range(3)]
        has_ratios = name != "clean at first"  # of its four steps, none between two with signal and noise
        seen = [place for place in range(9 if has_ratios else 6) if place not in (3, 4)]
        assert all(panels[place] > 20 for place in seen), (name, panels)
    with Image.open(tmp_path / "a.png") as short, Image.open(tmp_path / "b.png") as tall:
        assert tall.height - short.height > len(processes) * 2 * 150 * 12.5 / 4 * 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_sheet_of_any_schedule_alone(name: str, tmp_path: Path) -> None:
    sheets.schedule_sheet({name: ForwardProcess(SCHEDULES[name])}, tmp_path / "a.png", images=uint8_images(1, 1, 8, 8))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 1950


@pytest.mark.parametrize("timesteps", [UniformTimesteps(), UniformTimesteps(True)])
@pytest.mark.parametrize("num_timesteps", [1, 3, 50, 1000])
def test_the_density_is_what_the_sampler_draws(timesteps: UniformTimesteps, num_timesteps: int) -> None:
    found = sheets.density(timesteps, ForwardProcess(schedules.linear(num_timesteps)))
    assert len(found.values) == min(num_timesteps, 40)
    # A part holds at least 2^20 / 50 of the draws: 5% are 7 sigma, in 94 parts 1e-10 false alarms.
    torch.testing.assert_close(found.values, torch.ones(len(found.values)), rtol=0, atol=0.05)


def test_a_density_is_its_own_probabilities() -> None:
    found = sheets.density(DensityTimesteps(densities.logit_normal), PROCESS).values
    expected = densities.logit_normal(PROCESS)
    assert float(found[20]) == pytest.approx(float(expected[50:53].sum()) * 100 / 3)  # the bin of 50 to 52


@pytest.mark.slow
@pytest.mark.parametrize("process", [processes.rectified_flow(100), processes.edm(100)])
def test_processes_that_are_no_chain_are_drawn_too(process: GaussianProcess, tmp_path: Path) -> None:
    sheets.schedule_sheet({"a": process}, tmp_path / "a.png", DensityTimesteps(densities.logit_normal))
    sheets.schedule_curves(process, tmp_path / "b.png")
    assert near(tmp_path / "a.png", COLOURS[0], 40).sum() > 1000
    assert near(tmp_path / "b.png", COLOURS[0], 40).sum() > 1000


def test_a_sampler_that_shuns_some_steps_is_seen_to() -> None:
    late = sheets.density(lambda position, steps, key, stage: steps // 2 + position % (steps // 2), PROCESS)
    torch.testing.assert_close(late.values, torch.cat([torch.zeros(20), torch.full((20,), 2.0)]), rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "greys"), [(1, False), (14, False), (15, True), (30, True)])
def test_more_runs_than_can_be_told_apart_are_grey(runs: int, greys: bool, tmp_path: Path) -> None:
    fraction = torch.linspace(0, 1, 10)
    curves = {f"run {run}": sheets.Curve(fraction, fraction + run + 1) for run in range(runs)}
    sheets.compare_curves([sheets.Panel("a", curves), sheets.Panel("b", curves, is_log=True)], tmp_path / "a.png")
    assert (near(tmp_path / "a.png", "#BBBBBB", 3).sum() > 1000) == greys
    assert all(near(tmp_path / "a.png", colour).sum() > 1000 for colour in COLOURS[: min(runs, len(COLOURS))])


@pytest.mark.parametrize("decades", [0.01, 0.1, 0.3, 0.8, 1.0, 1.5, 2.0, 2.9, 3.1, 9.0])
@pytest.mark.parametrize("low", [1e-4, 0.31, 0.9, 7.0])
def test_a_logarithmic_axis_has_several_labels_between_its_ends(low: float, decades: float) -> None:
    figure = Figure()
    axes = figure.subplots()
    high = low * 10**decades
    axes.plot([0, 1], [low, high])
    set_log_scale(axes, low, high)
    figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    inside = [label for label in axes.get_yticklabels() if bottom <= label.get_position()[1] <= top]
    texts = [label.get_text() for label in inside]
    assert 3 <= len(set(texts)) == len(texts) <= 10


def test_styles_differ() -> None:
    assert len({(how["color"], how["linestyle"]) for how in map(curve_style, range(28))}) == 28
