"""The comparison of a sweep: what its tables and pictures say, on known runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_data.cli.compare import main as compare
from ddpm_data.diffusion.timestep_bins import BinLoss, write_losses

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
