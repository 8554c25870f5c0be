"""Sweeps as a user runs them: real launchers and sweepers, jobs that fail, one cache, a comparison at the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import ROOT, uint8_images
from tests.groups import PATIENCE
from tests.interrupting import printed_command, shell
from tests.test_configs import composed
from tests.warm import python

SMALL = ["trainer=smoke", "trainer.limit_train_batches=2", "samples=1", "compile=false", "schedule.num_timesteps=10"]
WRONG_WIDTH = "DDPM(width=12): GroupNorm wants a multiple of 8. Change `model.width`."


def sweep(folder: Path, *overrides: str) -> tuple[int, str]:
    """Run one in a process group of its own; its status and what it printed."""
    command = [python(), str(ROOT / "train_stub.py"), "-m", *SMALL, f"hydra.sweep.dir={folder}", *overrides]
    process = subprocess.Popen(
        command, cwd=folder.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed


def records(folder: Path) -> list[dict[str, object]]:
    paths = sorted(folder.glob("*/job.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.slow
def test_jobs_side_by_side_share_one_cache_and_a_crashed_one_is_named_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(uint8_images(40, 8, 8)):
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number}.png")
    data = ["dataset=image_folder", f"dataset.root={tmp_path / 'images'}", "dataset.image_size=8", "dataset.channels=1"]
    cached = ["loader=cached", f"loader.cache_dir={tmp_path / 'cache'}", "loader.batch_size=16"]
    varied = ["schedule=linear,cosine", "model.width=8,12", "sweep=joblib"]
    status, printed = sweep(tmp_path / "runs", *varied, *data, *cached)
    assert status == 1
    assert "2 of 4 jobs failed:" in printed
    end = printed[printed.index("2 of 4 jobs failed:") :]
    for number, schedule in ((1, "linear"), (3, "cosine")):
        assert f"job {number} (schedule={schedule} model.width=12): {WRONG_WIDTH}" in end
        folder = tmp_path / "runs" / str(number)
        assert str(folder / "error.txt") in end
        assert "Traceback" in (folder / "error.txt").read_text()
    assert [job["status"] for job in records(tmp_path / "runs")] == ["finished", "failed"] * 2
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert printed.count(f"Decoding train into {tmp_path / 'cache'}:   0%") == 1
    for number in (0, 2):
        left = os.listdir(tmp_path / "runs" / str(number))
        assert {"config.yaml", "metrics.csv", "noising.png", "schedule.png", "samples.png"} <= set(left)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="real signals, a real shell")
def test_ctrl_c_ends_the_sweep_and_its_job_is_resumed_alone(tmp_path: Path) -> None:
    send = f"{{_target_:tests.interrupting.Send,notes:{tmp_path},events:{{step 2:SIGNAL}}}}"
    varied = "+callbacks.send=" + ",".join(send.replace("SIGNAL", name) for name in ("none", "SIGINT", "none"))
    status, printed = sweep(tmp_path / "runs", varied)
    assert status == 130, printed[-3000:]
    assert [job["status"] for job in records(tmp_path / "runs")] == ["finished", "interrupted"]
    assert records(tmp_path / "runs")[1]["step"] == 2
    refused, said = sweep(tmp_path / "runs", varied)
    assert (refused, "holds the files of another sweep" in said) == (1, True), said[-3000:]
    status, printed = shell(printed_command(printed), tmp_path)
    assert status == 0, printed[-3000:]
    assert [job["status"] for job in records(tmp_path / "runs")] == ["finished", "finished"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="real signals, a real shell")
def test_ctrl_c_ends_jobs_side_by_side_and_each_is_resumed(tmp_path: Path) -> None:
    """Joblib kills its processes at once, so the sweep waits until they have saved, and speaks for them."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    send = (
        f"+callbacks.send={{_target_:tests.interrupting.Send,notes:{tmp_path},to_group:true,events:{{step 2:SIGINT}}}}"
    )
    parallel = ["sweep=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=100", "seed=0,1,2", send]
    status, printed = sweep(tmp_path / "runs", *parallel)
    assert status == 130, printed[-3000:]
    assert "Traceback" not in printed
    jobs = records(tmp_path / "runs")
    assert {job["status"] for job in jobs} == {"interrupted"}
    assert 2 in {job.get("step") for job in jobs}  # whichever came first
    command = next(line for line in printed.splitlines() if line.startswith("  ") and "latest.ckpt" in line)
    status, printed = shell(f"{command} trainer.max_epochs=2", tmp_path)
    assert status == 0, printed[-3000:]
    assert "finished" in {job["status"] for job in records(tmp_path / "runs")}


@pytest.mark.slow
def test_optuna_goes_on_without_the_jobs_that_fail(tmp_path: Path) -> None:
    search = ["schedule=choice(linear,cosine)", "model.width=choice(8,12)", "hydra.sweeper.n_trials=4"]
    status, printed = sweep(tmp_path / "runs", "sweep=optuna", *search)
    assert status == 1, printed[-3000:]
    jobs = records(tmp_path / "runs")
    assert len(jobs) == 4
    assert {job["status"] for job in jobs} == {"failed", "finished"}
    best = OmegaConf.load(tmp_path / "runs" / "optimization_results.yaml")
    values = [job["value"] for job in jobs if job["status"] == "finished"]
    assert best.best_value == min(values)  # type: ignore[type-var]
    assert best.best_params["model.width"] == 8


@pytest.mark.slow
def test_submitit_runs_each_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    status, printed = sweep(tmp_path / "runs", "hydra/launcher=submitit_local", "timesteps=uniform,low_discrepancy")
    assert status == 0, printed[-3000:]
    assert "2 of 2 jobs finished" in printed
    assert len(list((tmp_path / "runs" / ".submitit").glob("*/*_submitted.pkl"))) == 2


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("joblib", "hydra_joblib_launcher.joblib_launcher.JoblibLauncher"),
        ("slurm", "hydra_submitit_launcher.submitit_launcher.SlurmLauncher"),
        ("ray", "hydra_ray_launcher.ray_launcher.RayLauncher"),
    ],
)
def test_sweep_configs_choose_their_launcher(name: str, launcher: str) -> None:
    if name == "ray":
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    from hydra.core.hydra_config import HydraConfig

    composed(f"sweep={name}")
    assert HydraConfig.get().launcher._target_ == f"hydra_plugins.{launcher}"
