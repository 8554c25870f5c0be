"""The comparison of a sweep, and the report on schedules: what their tables and pictures say, on known runs."""

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_data import ForwardProcess, schedules
from ddpm_data.cli._command import add_option, add_output_option, start_command
from ddpm_data.cli.compare import main as compare
from ddpm_data.cli.report import expand_sweep, table_row
from ddpm_data.cli.report import main as report
from ddpm_data.diffusion.timestep_bins import BinLoss, write_losses
from tests.conftest import ROOT

LOSSES = {"0": [0.5, 0.3], "1": [0.9, float("nan")], "3": [0.4, 0.6]}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five jobs: two that finished, one that diverged, one that failed, one that was killed."""
    endings = ["finished", "finished", "failed", "finished", "started"]
    for number, ended in enumerate(endings):
        folder = tmp_path / str(number)
        folder.mkdir()
        overrides = [
            f"schedule={'linear' if number % 2 else 'cosine'}",
            "+trainer.limit=3",
            f"schedule.num_timesteps={10 + number}",
        ]
        record = {"overrides": overrides, "status": ended} | (
            {"error": "ValueError: a | b\nand more"} if ended == "failed" else {}
        )
        (folder / "job.json").write_text(json.dumps(record))
        (folder / "config.yaml").write_text(
            f"schedule: {{_target_: ddpm_data.schedules.linear, num_timesteps: {10 + number}}}\n"
        )
        rows = [
            BinLoss(0, 1, first, first + 4, 0.0, value, 3)
            for first, value in zip((0, 5), LOSSES.get(str(number), []), strict=False)
        ]
        write_losses(rows, folder / "timestep_loss.csv")
        lines = [f"{epoch},{value},{100 + epoch}" for epoch, value in enumerate(LOSSES.get(str(number), []))]
        (folder / "metrics.csv").write_text("\n".join(["epoch,val_loss,images_per_s", *lines]) + "\n")
    return tmp_path


def test_the_table_has_every_job_best_first(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(sweep)]) == 1
    with (sweep / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["0", "3", "1", "2", "4"]
    assert [row["lowest val_loss"] for row in rows] == ["0.3", "0.4", "0.9", "", ""]
    assert [row["at epoch"] for row in rows] == ["1", "0", "0", "", ""]
    assert [row["last val_loss"] for row in rows] == ["0.3", "0.6", "nan", "", ""]
    assert rows[0]["images per second"] == "100"
    assert [row["ended"] for row in rows] == ["finished"] * 3 + ["failed: ValueError: a | b", "started"]
    assert "trainer.limit" not in rows[0]
    text = (sweep / "compare.md").read_text()
    assert text.startswith("All with trainer.limit=3.")
    assert "a \\| b" in text
    assert len({len(line.replace("\\|", "")) for line in text.splitlines()[2:] if "a \\|" not in line}) == 1
    assert text in capsys.readouterr().out


def test_the_picture_has_a_curve_of_each_job_in_both_panels(sweep: Path) -> None:
    compare([str(sweep)])
    with Image.open(sweep / "compare.png") as image:
        picture = np.array(image.convert("RGB")).astype(int)
    half = picture.shape[1] // 2
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # of the first two, which have both
        close = np.abs(picture - colour).max(-1) < 30
        assert close[: picture.shape[0] // 2, :half].sum() > 100
        assert close[: picture.shape[0] // 2, half:].sum() > 100


def test_another_metric_and_an_app_without_our_hydra_callback(tmp_path: Path) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text("- lr=3\n- name=a=b\n")
    logs = tmp_path / "0" / "lightning_logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("epoch,val/acc\n0,0.5\n1,0.25\n")
    assert compare([str(tmp_path), "--metric", "val/acc", "--output-dir", str(tmp_path / "out")]) == 1
    (row,) = csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines())
    assert (row["lowest val/acc"], row["ended"]) == ("0.25", "unknown")
    assert not (tmp_path / "out" / "compare.png").exists()


def test_a_metric_that_no_job_has_is_refused_with_those_there_are(sweep: Path) -> None:
    with pytest.raises(SystemExit, match="one of epoch, images_per_s, val_loss"):
        compare([str(sweep), "--metric", "val_los"])


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no jobs in it"):
        compare([str(tmp_path)])


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


def test_the_report_overlays_schedules_and_shows_the_users_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no conf/ here: ours
    images = ["dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=8", "dataset.val=0.2"]
    assert report(["schedule=linear,jsd", "schedule.num_timesteps=50", *images]) == 0
    with Image.open("report/report.png") as picture:
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


@pytest.mark.parametrize("command", ["check", "report", "verify", "compare"])
def test_help_names_the_command_and_only_the_new_spellings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"ddpm_data.{command}").main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ddpm-data {command} ")
    assert ("--output-dir DIR " in shown) == (command != "verify")
    assert ("--num-workers N " in shown) == ("--max-items N " in shown) == (command == "check")
    assert not re.search(r"--(out|workers|most)\b(?!-)", shown)


def test_old_spellings_of_options_set_the_same_values() -> None:
    parser = start_command("check", None)
    add_option(parser, "--max-items", "--most", type=int, default=1)
    add_output_option(parser, Path("a"), "a")
    assert vars(parser.parse_args([])) == {"max_items": 1, "output_dir": Path("a")}
    given = {"max_items": 2, "output_dir": Path("b")}
    assert vars(parser.parse_args(["--most", "2", "--out", "b"])) == given
    assert vars(parser.parse_args(["--max-items", "2", "--output-dir", "b"])) == given


def test_the_commands_are_listed_and_run() -> None:
    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "ddpm_data", *arguments]
        result = subprocess.run(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        assert result.returncode == status
        return result.stdout

    listed = run()
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("  ddpm-data ") and "=" not in line] == [
        "check",
        "report",
        "verify",
        "compare",
    ]
    assert "usage: ddpm-data compare" in run("compare", "--help")
    assert "no command nope" in run("nope", status=1)
