"""The comparison of a sweep: what its tables and pictures say, on known runs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from ddpm_data.cli._objective import Objective, loss_kind, name_objectives, read_objective
from ddpm_data.cli.compare import main as compare
from ddpm_data.cli.compare import read_jobs
from ddpm_data.diffusion.timestep_bins import BinLoss, write_losses
from tests.test_configs import composed

LOSSES = {"0": [0.5, 0.3], "1": [0.9, float("nan")], "3": [0.4, 0.6]}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five jobs: two that finished, one that diverged, one that failed, one that was interrupted."""
    endings = ["finished", "finished", "failed", "finished", "interrupted"]
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
        record |= {"step": 7} if ended == "interrupted" else {}
        (folder / "job.json").write_text(json.dumps(record))
        (folder / "config.yaml").write_text(
            f"schedule: {{_target_: ddpm_data.schedules.linear, num_timesteps: {10 + number}}}\n"
        )
        rows = [
            BinLoss(0, 1, first, first + 4, 10.0 - 4 * first, value, 3)
            for first, value in zip((0, 5), LOSSES.get(str(number), []), strict=False)
        ]
        write_losses(rows, folder / "timestep_loss.csv")
        lines = [f"{epoch},{value},{100 + epoch},{value}" for epoch, value in enumerate(LOSSES.get(str(number), []))]
        (folder / "metrics.csv").write_text("\n".join(["epoch,val_loss,images_per_s,val_error", *lines]) + "\n")
    return tmp_path


def test_the_table_has_every_job_best_first(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare([str(sweep), "--metric", "val_error"]) == 1  # no loss, so all jobs are in one group
    with (sweep / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["0", "3", "1", "2", "4"]
    assert "objective" not in rows[0]
    assert [row["lowest val_error"] for row in rows] == ["0.3", "0.4", "0.9", "", ""]
    assert [row["at epoch"] for row in rows] == ["1", "0", "0", "", ""]
    assert [row["last val_error"] for row in rows] == ["0.3", "0.6", "nan", "", ""]
    assert rows[0]["images per second"] == "100"
    assert [row["ended"] for row in rows] == ["finished"] * 3 + ["failed: ValueError: a | b", "interrupted at step 7"]
    assert "trainer.limit" not in rows[0]
    text = (sweep / "compare.md").read_text()
    assert text.startswith("All with trainer.limit=3.")
    assert "a \\| b" in text
    assert len({len(line.replace("\\|", "")) for line in text.splitlines()[2:] if "a \\|" not in line}) == 1
    assert text in capsys.readouterr().out


def test_losses_are_ranked_within_an_objective_only(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Jobs 0 and 3 are given one schedule: the better of them is first, and the other groups follow in their order."""
    (sweep / "3" / "config.yaml").write_text((sweep / "0" / "config.yaml").read_text())
    (sweep / "4" / "config.yaml").unlink()  # ended before it was written
    compare([str(sweep)])
    printed = capsys.readouterr().out
    assert printed.count("Jobs with different objectives are not ranked: their losses measure different errors") == 1
    titles = [*(f"schedule.num_timesteps={length}" for length in (10, 11, 12)), "unknown"]
    rows = list(csv.DictReader((sweep / "compare.csv").read_text().splitlines()))
    assert [row["job"] for row in rows] == ["0", "3", "1", "2", "4"]
    assert [row["objective"] for row in rows] == [titles[0], *titles]
    assert (sweep / "compare.md").read_text() in printed
    compare([str(sweep), "--metric", "val_error"])
    assert "objective" not in capsys.readouterr().out.lower()


def objective(*overrides: str) -> Objective:
    cfg = composed(*overrides)
    return read_objective(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)))


@pytest.mark.slow
def test_an_objective_is_all_that_a_validation_loss_depends_on() -> None:
    """The configs of the main job; a list each of overrides that make the same objective."""
    alike = [
        [[], ["timesteps=low_discrepancy"], ["dataset.val=0.2"], ["model.width=8", "seed=3"], ["dataset.flip=0.5"]],
        [["schedule=cosine"], ["schedule=cosine", "loader.batch_size=3"]],
        [["schedule.end=0.01"]],
        [["schedule.num_timesteps=100"], ["schedule.num_timesteps=100", "trainer.max_epochs=3"]],
        [["timesteps=logit_normal"]],
        [["target=x_0"]],
        [["weight=min_snr"]],
        [["noise=offset"]],
        [["dataset=fake"]],
    ]
    found = [{objective(*overrides) for overrides in group} for group in alike]
    assert [len(objectives) for objectives in found] == [1] * len(alike)
    assert len(set.union(*found)) == len(alike)
    assert name_objectives([objective(*group[0]) for group in alike[:4]]) == [
        "schedule=linear schedule.num_timesteps=1000 schedule.end=0.02",
        "schedule=cosine",
        "schedule=linear schedule.num_timesteps=1000 schedule.end=0.01",
        "schedule=linear schedule.num_timesteps=100 schedule.end=0.02",
    ]
    kinds = [loss_kind(next(iter(objectives))) for objectives in found]
    assert len(set(kinds[:5])) == 1  # these compare at equal signal-to-noise ratios
    assert len(set(kinds)) == 1 + 4
    assert name_objectives([kinds[0], kinds[5]]) == ["target=noise weight.of=noise", "target=x_0 weight.of=x_0"]


def test_an_app_with_our_groups_below_a_key_of_its_own_has_the_same_objective() -> None:
    schedule = {"_target_": "ddpm_data.schedules.cosine", "num_timesteps": 7}
    cfg = {"schedule": "of theirs", "ddpm_data": {"schedule": schedule, "datamodule": {"image_size": 8}}}
    found = dict(read_objective(OmegaConf.create(cfg)))
    assert found["ddpm_data.schedule"] == "cosine"
    assert found["ddpm_data.schedule.num_timesteps"] == "7"


@pytest.mark.parametrize("cfg", [{}, {"ddpm_data": None}, {"datamodule": "x"}, [], {"schedule": None}])
def test_configs_without_an_objective_have_none(cfg: object) -> None:
    assert read_objective(OmegaConf.create(cfg)) == ()


def test_jobs_of_several_sweeps_are_told_apart(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = sweep / "all"
    for name in ("a", "b"):
        shutil.copytree(sweep / "0", parent / name / "0")
    jobs = read_jobs(parent, "val_loss")
    assert [job.name for job in jobs] == ["a/0", "b/0"]
    compare([str(parent)])
    assert "| a/0 |" in capsys.readouterr().out


def test_a_damaged_record_is_a_job_that_says_so(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, content in enumerate(("{", '{"status": 3, "overrides": "abc"}', '{"status": "finished"}')):
        (sweep / str(number) / "job.json").write_text(content)
    assert compare([str(sweep)]) == 1
    assert capsys.readouterr().out.count("unknown: job.json is damaged") == 3


def test_a_metric_that_is_no_number_is_named(sweep: Path) -> None:
    (sweep / "0" / "metrics.csv").write_text("epoch,val_loss\n0,abc\n")
    with pytest.raises(SystemExit, match=r"metrics.csv of job 0 has val_loss='abc', which is no number"):
        compare([str(sweep)])


def test_names_with_dollars_are_drawn(sweep: Path) -> None:
    record = json.loads((sweep / "0" / "job.json").read_text())
    record["overrides"] += ["a=${b}_{$c$}^"]
    (sweep / "0" / "job.json").write_text(json.dumps(record))
    compare([str(sweep)])
    assert (sweep / "compare.png").exists()


def test_the_picture_has_a_curve_of_each_job_in_both_panels(sweep: Path) -> None:
    compare([str(sweep)])
    with Image.open(sweep / "compare.png") as image:
        picture = np.array(image.convert("RGB")).astype(int)
    half = picture.shape[1] // 2
    for colour in ((0x00, 0x72, 0xB2), (0xCC, 0x79, 0xA7)):  # of the first and the fourth, which have both
        close = np.abs(picture - colour).max(-1) < 30
        assert close[: picture.shape[0] // 2, :half].sum() > 100
        assert close[: picture.shape[0] // 2, half:].sum() > 100


def test_losses_of_another_target_have_a_panel_of_their_own(sweep: Path) -> None:
    compare([str(sweep)])
    with Image.open(sweep / "compare.png") as picture:
        width = picture.width
    with (sweep / "3" / "config.yaml").open("a") as file:
        file.write("datamodule: {target: x_0}\n")
    compare([str(sweep)])
    with Image.open(sweep / "compare.png") as picture:
        assert (width, picture.width) == (2 * 930, 3 * 930)


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


def test_a_line_that_is_half_written_is_none_yet(sweep: Path) -> None:
    """The sweep may be at work."""
    path = next(sweep.rglob("metrics.csv"))
    jobs = repr(read_jobs(sweep, "val_loss"))  # a loss is nan
    with path.open("a") as file:
        file.write("1,2,")
    assert repr(read_jobs(sweep, "val_loss")) == jobs


def test_a_metric_that_no_job_has_is_refused_with_those_there_are(sweep: Path) -> None:
    with pytest.raises(SystemExit, match="one of epoch, images_per_s, val_error, val_loss"):
        compare([str(sweep), "--metric", "val_los"])


def test_a_folder_without_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no jobs in it"):
        compare([str(tmp_path)])
