"""The report on schedules: its table, its sweeps and its picture."""

from pathlib import Path

import pytest
from PIL import Image

from ddpm_data import ForwardProcess, schedules
from ddpm_data.cli.report import expand_sweep, table_row
from ddpm_data.cli.report import main as report


def test_values_separated_by_commas_are_schedules_of_their_own() -> None:
    assert expand_sweep(["schedule=cosine", "seed=1"]) == {"": ["schedule=cosine", "seed=1"]}
    assert expand_sweep(["ddpm_data/schedule=linear,cosine", "a.schedule.num_timesteps=10,20", "x=[1,2]"]) == {
        f"{name} num_timesteps={steps}": [f"ddpm_data/schedule={name}", f"a.schedule.num_timesteps={steps}", "x=[1,2]"]
        for name in ("linear", "cosine")
        for steps in (10, 20)
    }


def test_the_numbers_are_those_of_the_papers() -> None:
    """FACTS: linear ends at 4.0358e-5; log10 of that over its complement is -4.394."""
    line = table_row("linear", ForwardProcess(schedules.linear()))
    assert line == ["linear", "1,000", "0.0001", "0.02", "4.04e-05 of the variance", "-43.9 dB", "from t = 259 (26%)"]
    assert table_row("", ForwardProcess(schedules.jsd(5)))[-2:] == ["-inf dB", "from t = 2 (40%)"]
    assert table_row("", ForwardProcess(schedules.constant(3, 0.1)))[-1] == "never"


@pytest.mark.slow
def test_the_report_overlays_schedules_and_shows_the_users_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no conf/ here: ours
    images = ["dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=8", "dataset.val=0.2"]
    assert report(["schedule=linear,jsd", "schedule.num_timesteps=50", *images]) == 0
    with Image.open("outputs/report/report.png") as picture:
        with_images = picture.height
    printed = capsys.readouterr().out
    assert "| linear" in printed
    assert "| jsd " in printed
    assert (
        report(["schedule=linear,jsd", "schedule.num_timesteps=50", "dataset=image_folder", "--output-dir", "none"])
        == 0
    )
    assert "dataset.root" in capsys.readouterr().err
    with Image.open("none/report.png") as picture:
        assert picture.height < with_images
