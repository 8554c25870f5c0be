"""The report on schedules: its table, its sweeps and its picture."""

from pathlib import Path

import pytest
from PIL import Image

from ddpm_data import ForwardProcess, UniformTimesteps, processes, schedules
from ddpm_data.cli.report import expand_sweep, objective_row, read_scheduler, table_row
from ddpm_data.cli.report import main as report
from ddpm_data.diffusion.objective import Objective


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


def test_an_objectives_line_is_by_hand() -> None:
    """Uniform s on a straight path: SNR is ((1 - s) / s)^2, so half is above 0 dB, and 10% beyond 19 dB either way."""
    process = processes.rectified_flow(10_000)
    line = objective_row("flux", process, UniformTimesteps(), Objective(process, "flow"))
    # The flow's error is that of x_0 over s^2, and p(log SNR) = s (1 - s) / 2: together (1 - s) / s, 10 at 20 dB.
    assert line == ["flux", "flow", "0 dB", "-19 and 19 dB", "10", "0.1"]
    short = ForwardProcess(schedules.constant(3, 0.1))  # never reaches 0 dB
    assert objective_row("a", short, UniformTimesteps(), Objective(short))[-2:] == ["-", "-"]


@pytest.mark.slow
def test_presets_and_a_scheduler_of_diffusers_share_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    ends = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    diffusers.DDIMScheduler(**ends).save_pretrained("sd2/scheduler")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained("mine")
    files = ["--diffusers", "sd2/scheduler/scheduler_config.json", "--diffusers", "mine/scheduler_config.json"]
    latents = ["dataset=latents", "dataset.path=none.safetensors"]
    assert report(["preset=sd2_v,sd3_diffusers", *files, *latents]) == 0
    lines = [line.split("|")[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = {line[0].strip(): [cell.strip() for cell in line[1:-1]] for line in lines[8:]}
    assert cells["sd2 (DDIMScheduler)"] == cells["sd2_v"]
    assert cells["mine (FlowMatchEulerDiscreteScheduler)"][:2] == ["flow", "-10 dB"]  # s / (1 - s) of 3 at half
    with Image.open("outputs/report/report.png") as picture:
        assert picture.width == 1950


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no scheduler_config.json that can be read"),
        ("{", "no scheduler_config.json that can be read"),
        ("[]", "`_class_name` is None"),
        ('{"_class_name": "Nope"}', "`_class_name` is 'Nope', which is no scheduler"),
        (
            '{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}',
            "whose training table is not known here",
        ),
    ],
)
def test_what_is_no_scheduler_is_refused_by_its_file(content: str | None, says: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    file = tmp_path / "scheduler_config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit, match=says) as error:
        read_scheduler(file)
    assert str(file) in str(error.value)


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
