"""How an interrupted job goes on: the command that is printed, and a SLURM job that starts again by itself."""

import os
import shlex
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ddpm_data._interruption import check_checkpoint, read_step, resume_command
from ddpm_data.hydra import JobRecords

CHECKPOINT = Path("run/checkpoints/latest.ckpt")
RESUMED = f"a=1 ckpt_path={CHECKPOINT} hydra.run.dir=run"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what a launcher of these tests may have set."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("started", "environment", "command"),
    [
        (["python", "train.py"], {}, "python train.py"),
        (["python", "-m", "train"], {}, "python -m train"),
        (["python", "-u", "train.py"], {"LOCAL_WORLD_SIZE": "2"}, "torchrun --standalone --nproc-per-node=2 train.py"),
        (["python", "-u", "-m", "a"], {"LOCAL_WORLD_SIZE": "4"}, "torchrun --standalone --nproc-per-node=4 -m a"),
        (["python", "-u", "train.py"], {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}, "python -u train.py"),
    ],
)
def test_the_command_starts_as_many_processes_again(
    started: list[str], environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if environment:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    typed = ["a=1", "hydra.sweep.dir=b"]
    monkeypatch.setattr(sys, "orig_argv", [*started, *typed])
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    assert resume_command(typed, Path("run"), CHECKPOINT) == f"{command} {RESUMED}"


def test_where_a_job_changes_to_its_folder_the_checkpoints_path_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    monkeypatch.setattr(sys, "argv", ["train.py"])
    command = resume_command(["hydra.job.chdir=true"], Path("run"), CHECKPOINT, changes_dir=True)
    assert command == f"python train.py hydra.job.chdir=true ckpt_path={CHECKPOINT.absolute()} hydra.run.dir=run"


def test_a_file_that_lightning_has_not_written_is_no_checkpoint(tmp_path: Path) -> None:
    foreign, picture, own = (tmp_path / f"{name}.ckpt" for name in ("foreign", "picture", "own"))
    torch.save({"state_dict": {}}, foreign)
    Image.new("L", (8, 8)).save(picture, "png")
    for path in (foreign, picture):
        with pytest.raises(ValueError, match=rf"{path.name} is no checkpoint that Lightning has written.*`ckpt_path`"):
            check_checkpoint(path)
    for content in ({}, {"of the user's": tmp_path}):  # a path is more than weights, so nobody looks at the rest
        torch.save({"pytorch-lightning_version": "2.5", "global_step": 3} | content, own)
        check_checkpoint(own)
        assert read_step(own) == (None if content else 3)
    torch.save({"pytorch-lightning_version": "2.5"}, own, _use_new_zipfile_serialization=False)
    check_checkpoint(own)
    assert read_step(foreign) is None


def test_commands_that_are_printed_can_be_pasted_where_a_folder_has_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("a b")
    (folder / "0").mkdir(parents=True)
    (folder / "last.ckpt").touch()
    hydra = {"run": {"dir": str(folder)}, "sweep": {"dir": str(folder)}, "overrides": {"hydra": []}}
    config = OmegaConf.create({"ckpt_path": None, "hydra": hydra})
    with pytest.raises(SystemExit) as refused:
        JobRecords().on_run_start(config)
    assert shlex.split(str(refused.value.code))[-1] == "ckpt_path='a b/last.ckpt'"
    (folder / "0" / "job.json").write_text('{"status": "finished", "overrides": []}')
    JobRecords().on_multirun_end(config)
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-3:] == ["ddpm-data", "compare", "a b"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_job_that_slurm_starts_again_resumes_on_every_process(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    own = folder if rank == "0" else tmp_path / "nowhere"  # train_stub.py gives other processes another folder
    hydra = {"run": {"dir": str(own)}, "overrides": {"hydra": [f"hydra.run.dir={folder}"]}}
    config = OmegaConf.create({"ckpt_path": None, "hydra": hydra})
    OmegaConf.set_readonly(config, True)
    monkeypatch.setenv("SLURM_PROCID", rank)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    JobRecords().on_run_start(config)
    assert config.ckpt_path is None  # it had not saved yet
    (folder / "checkpoints").mkdir(parents=True)
    for age, name in enumerate(("latest.ckpt", "best.ckpt")):
        (folder / "checkpoints" / name).touch()
        os.utime(folder / "checkpoints" / name, (100 - age, 100 - age))
    JobRecords().on_run_start(config)
    assert config.ckpt_path == str(folder / "checkpoints" / "latest.ckpt")
    assert capsys.readouterr().out.count("SLURM has started this job again") == (rank == "0")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    config = OmegaConf.create({"ckpt_path": None, "hydra": hydra})
    if rank == "0":
        with pytest.raises(SystemExit, match="another run"):
            JobRecords().on_run_start(config)
