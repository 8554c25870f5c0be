"""The main job as a user runs it: real runs, a real sweep, a real resume, and errors that name the key."""

import csv
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.callbacks import TimestepLoss
from ddpm_data.cli.compare import main as compare
from ddpm_data.diffusion.timestep_bins import read_losses
from tests.conftest import ROOT, trainer, uint8_images
from tests.groups import PATIENCE
from tests.interrupting import printed_command, shell
from tests.warm import python
from train_stub import DDPM, UNet

PICTURES = ("noising.png", "schedule.png", "samples.png", "timestep_loss.png")


def job(*overrides: str, cwd: Path | None = None) -> str:
    """Run the main job in a process of its own; what it printed."""
    command = [python(), str(ROOT / "train_stub.py"), *overrides]
    result = subprocess.run(
        command, cwd=cwd or ROOT, timeout=PATIENCE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_main_job_trains_and_leaves_what_it_names(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    printed = job(
        "trainer=smoke",
        "trainer.limit_train_batches=12",
        "schedule.num_timesteps=100",
        f"hydra.run.dir={folder}",
        "samples=9",
        cwd=tmp_path,
    )
    assert "train_loss=" in printed
    assert "val_loss=" in printed
    assert "images_per_s=" in printed
    assert "Warning" not in printed
    lines = printed.splitlines()
    assert lines[0] == f"The run's folder is {folder}"
    assert re.fullmatch(r"The model has [\d,]+ weights to train", lines[1])
    assert not re.search("[┏│]", printed)  # no table of the model's parts
    last = printed[printed.index("The run took") :]
    assert str(folder) in last
    for name in (*PICTURES, "metrics.csv", "timestep_loss.csv", "config.yaml", "checkpoints/last.ckpt"):
        assert name in last
        assert (folder / name).is_file()
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    rows = metrics(folder)
    assert {row["epoch"] for row in rows if row["val_loss"]} == {"0", "1"}
    assert all(float(row["images_per_s"]) > 0 for row in rows if row["images_per_s"])
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.slow
def test_a_sweep_gives_four_finished_runs_with_their_resolved_configs(tmp_path: Path) -> None:
    job(
        "-m",
        "schedule=linear,cosine",
        "schedule.num_timesteps=10,30",
        "trainer=smoke",
        "samples=1",
        f"hydra.sweep.dir={tmp_path}",
    )
    swept = []
    for number in range(4):
        folder = tmp_path / str(number)
        assert all((folder / name).is_file() for name in (*PICTURES, "metrics.csv", "checkpoints/last.ckpt"))
        config = (folder / "config.yaml").read_text()
        assert "${" not in config
        schedule = OmegaConf.create(config).datamodule.schedule
        swept.append((schedule._target_.rpartition(".")[2], schedule.num_timesteps))
    assert swept == [("linear", 10), ("linear", 30), ("cosine", 10), ("cosine", 30)]
    assert compare([str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert [row["job"] for row in rows] == ["0", "1", "2", "3"]  # whichever has the lowest loss
    assert [row["objective"] for row in rows] == [
        f"schedule={name} schedule.num_timesteps={length}" for name, length in swept
    ]
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.width == 2 * 930  # the losses of all four share a panel, over the signal-to-noise ratio


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="real signals, a real shell")
def test_a_run_interrupted_in_every_way_ends_where_the_whole_run_ends(tmp_path: Path) -> None:
    """Killed, Ctrl-C in a terminal with workers, SIGTERM in a validation; each time it goes on in the same folder."""
    common = ["trainer=smoke", "trainer.max_epochs=3", "samples=1", "schedule.num_timesteps=20", "compile=false"]
    common += ["timesteps=low_discrepancy", "callbacks.latest.every_n_train_steps=3"]
    job(*common, f"hydra.run.dir={tmp_path / 'whole'}")
    (tmp_path / "notes").mkdir()
    events = "{step 4: SIGKILL, step 6: SIGINT, validation 8: SIGTERM}"
    send = (
        f"+callbacks.send={{_target_:tests.interrupting.Send,notes:{tmp_path / 'notes'},to_group:true,events:{events}}}"
    )
    folder = tmp_path / "it's a=b"
    quoted = "hydra.run.dir='it\\'s a=b'"
    first = shlex.join([python(), str(ROOT / "train_stub.py"), *common, "loader.num_workers=1", send, quoted])

    status, printed = shell(first, tmp_path)
    assert status == -signal.SIGKILL, printed[-3000:]
    assert json.loads((folder / "job.json").read_text())["status"] == "started"
    status, printed = shell(first, tmp_path)
    assert status == 1
    assert "it's a=b holds the files of another run" in printed
    again = f"{first} " + shlex.quote("ckpt_path='it\\'s a=b/checkpoints/latest.ckpt'")
    status, printed = shell(again, tmp_path)  # from step 3 to step 6
    assert (status, printed.count("To resume")) == (130, 1), printed[-3000:]
    for step, expected in ((6, 143), (8, 0)):
        record = json.loads((folder / "job.json").read_text())
        assert (record["status"], record["step"]) == ("interrupted", step)
        assert compare([str(folder)]) == 1
        assert f"interrupted at step {step}" in (folder / "compare.md").read_text()
        status, printed = shell(printed_command(printed), tmp_path)
        assert status == expected, printed[-3000:]
    assert "Traceback" not in printed
    assert json.loads((folder / "job.json").read_text())["status"] == "finished"

    rows, expected_rows = metrics(folder), metrics(tmp_path / "whole")
    names = ("epoch", "step", "train_loss", "val_loss")
    assert [[row[name] for name in names] for row in rows] == [[row[name] for name in names] for row in expected_rows]
    tables = [read_losses(at / "timestep_loss.csv") for at in (folder, tmp_path / "whole")]
    assert tables[0] == tables[1]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()
    }
    weights = [torch.load(at / "checkpoints/last.ckpt")["state_dict"] for at in (folder, tmp_path / "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)  # bit for bit: the same triples, the same weights


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="real signals, a real shell")
def test_two_processes_make_one_run_also_when_one_is_told_to_end(tmp_path: Path) -> None:
    overrides = ["trainer=ddp_cpu", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "samples=1"]
    overrides += ["trainer.log_every_n_steps=1", "schedule.num_timesteps=20", "compile=false", "hydra.run.dir=run"]
    send = f"+callbacks.send={{_target_:tests.interrupting.Send,notes:{tmp_path},events:{{step 3: SIGTERM}}}}"
    status, printed = shell(shlex.join([python(), str(ROOT / "train_stub.py"), *overrides, send]), tmp_path)
    assert (status, printed.count("To resume")) == (143, 1), printed[-3000:]
    status, printed = shell(printed_command(printed), tmp_path)
    assert (status, printed.count("The run took")) == (0, 1), printed[-3000:]
    folder = tmp_path / "run"
    assert all((folder / name).is_file() for name in (*PICTURES, "metrics.csv", "checkpoints/last.ckpt"))
    steps = [int(row["step"]) for row in metrics(folder) if row["train_loss"]]
    assert steps == list(range(7))  # 1,618 images on two processes


def test_the_average_follows_optimizer_steps_not_batches(tmp_path: Path) -> None:
    model = DDPM(schedules.linear(10), channels=1, width=8, learning_rate=1e-3, ema_decay=0.9)
    dm = DDPMDataModule(uint8_images(24, 1, 4, 4), schedule=schedules.linear(10), batch_size=4)
    run = trainer(tmp_path, accumulate_grad_batches=2)
    run.fit(model, datamodule=dm)
    assert run.global_step == 3
    assert int(model.ema.n_averaged) == 3


def test_the_validation_loss_is_the_mean_of_the_losses_by_timestep(tmp_path: Path) -> None:
    model = DDPM(schedules.linear(10), channels=1, width=8, learning_rate=1e-3, ema_decay=0.9)
    dm = DDPMDataModule(uint8_images(24, 1, 4, 4), 0.3, schedule=schedules.linear(10), batch_size=4)
    run = trainer(tmp_path, callbacks=[TimestepLoss(4)])
    run.fit(model, datamodule=dm)
    rows = read_losses(tmp_path / "timestep_loss.csv")
    assert sum(row.examples for row in rows) == 7
    mean = sum((row.loss or 0) * row.examples for row in rows) / 7
    assert mean == pytest.approx(float(run.callback_metrics["val_loss"]), rel=1e-6)


@pytest.mark.parametrize("schedule", ["jsd", "zero_terminal_snr"])
def test_schedules_that_end_in_no_signal_are_sampled_too(schedule: str) -> None:
    betas = schedules.jsd(8) if schedule == "jsd" else schedules.zero_terminal_snr(schedules.linear(8))
    model = DDPM(betas, channels=1, width=8, learning_rate=1e-3, ema_decay=0.9)
    samples = model.sample((2, 1, 8, 8), seed=0)
    assert samples.isfinite().all()
    assert samples.abs().max() <= 1
    assert torch.equal(samples, model.sample((2, 1, 8, 8), seed=0))


def test_sampling_recovers_a_distribution_it_knows() -> None:
    """With the exact noise predictor of a Gaussian N(0.3, 0.2^2), ancestral sampling gives that Gaussian back."""
    model = DDPM(schedules.linear(), channels=1, width=8, learning_rate=1e-3, ema_decay=0.9)
    process, mean, std = model.process, 0.3, 0.2

    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            abar = process.alphas_cumprod[condition.long()].view(-1, 1, 1, 1)
            return (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar)

    model.ema = Exact()  # type: ignore[assignment]
    samples = model.sample((64, 1, 16, 16), seed=0)
    assert samples.mean().item() == pytest.approx(mean, abs=0.01)
    assert samples.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("side", [4, 8, 28, 32])
def test_the_network_keeps_shapes_and_hears_t(side: int) -> None:
    net = UNet(channels=3, width=16)
    x = torch.zeros(2, 3, side, side)
    early, late = net(x, torch.tensor([0, 0])), net(x, torch.tensor([0, 900]))
    assert early.shape == x.shape
    assert torch.equal(early[0], late[0])
    assert not torch.allclose(early[1], late[1])


WRONG = [
    ("loader.batch_sise=3", "batch_sise"),
    ("trainer.max_epoch=3", "max_epoch"),
    ("schedule=cosin", "cosin"),
    ("schedule.num_timesteps=0", "schedule.num_timesteps"),
    ("schedule.num_timesteps=1.5", "schedule.num_timesteps"),
    ("schedule.end=3", "schedule.end"),
    ("loader.batch_size=abc", "loader.batch_size"),
    ("loader.num_workers=-1", "loader.num_workers"),
    ("loader.batch_size=9999 loader.drop_last=true", "loader.batch_size"),
    ("dataset.val=2", "dataset.val"),
    ("dataset.flip=2", "dataset.flip"),
    ("dataset.channels=null", "model.channels"),
    ("model.channels=3", "model.channels"),
    ("+loader.batchsize=4", "batchsize"),
    ("schedule.rescale=maybe", "schedule.rescale"),
    ("callbacks.throughput.every_n_steps=0", "every_n_steps"),
    ("trainer.max_epochs=0", "trainer.max_epochs"),
    ("dataset.image_size=30", "dataset.image_size"),
    ("dataset=image_folder", "dataset.root"),
    ("dataset=image_folder dataset.root=/nowhere", "dataset.root"),
    ("timesteps.low_discrepancy=maybe", "timesteps.low_discrepancy"),
    ("model.width=12", "model.width"),
    ("model.learning_rate=-1", "model.learning_rate"),
    ("model.ema_decay=1", "model.ema_decay"),
    ("trainer.max_epochs=abc", "trainer.max_epochs"),
    ("trainer.max_epochs=-3", "max_epochs"),
    ("trainer.precision=8", "Precision 8"),
    ("seed=-1", "seed"),
    ("samples=0", "samples"),
    ("ckpt_path=nowhere.ckpt", "ckpt_path"),
    (f"ckpt_path={ROOT / 'README.md'}", "ckpt_path"),
    ("dataset=image_folder dataset.root=", "dataset.root"),
    ("dataset=image_folder dataset.root=2024", "./2024"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* images looked at are smaller:UserWarning")
@pytest.mark.parametrize(("overrides", "says"), WRONG)
def test_wrong_keys_and_values_end_with_an_error_that_names_the_key(
    overrides: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train_stub.py", "trainer=smoke", f"hydra.run.dir={tmp_path}", *overrides.split()]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "train_stub.py"), run_name="__main__")
    message = str(stopped.value.code)  # which Python prints as it ends
    assert says in message
    assert "\n" not in message
    assert "Traceback" not in capfd.readouterr().err
    if (tmp_path / "job.json").exists():
        assert json.loads((tmp_path / "job.json").read_text())["error"] == message
    assert not list(tmp_path.rglob("*.png"))
