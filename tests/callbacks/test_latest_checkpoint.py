"""A real signal at every moment of a fit, and a resumed run that ends where the whole run ends."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.utils.data import TensorDataset

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.callbacks import LatestCheckpoint, TimestepLoss
from ddpm_data.diffusion.timestep_bins import read_losses
from tests.callbacks.helpers import IMAGES
from tests.conftest import trainer
from tests.interrupting import Send
from train_stub import DDPM

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
EPOCHS, STEPS = 2, 10  # 5 batches in each epoch


def data() -> DDPMDataModule:
    return DDPMDataModule(
        TensorDataset(IMAGES), TensorDataset(IMAGES[:24]), schedule=schedules.linear(20), batch_size=8
    )


def fit(folder: Path, *callbacks: L.Callback, ckpt_path: Path | None = None, **options: Any) -> DDPM:  # noqa: ANN401  # Trainer's own
    torch.manual_seed(0)
    model = DDPM(schedules.linear(20), channels=1, width=8, learning_rate=1e-3, ema_decay=0.5)
    ours = [TimestepLoss(2, folder=folder), LatestCheckpoint(folder), *callbacks]
    options = {"callbacks": ours, "max_epochs": EPOCHS, "enable_checkpointing": True} | options
    trainer(folder, **options).fit(model, datamodule=data(), ckpt_path=ckpt_path)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DDPM]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "name", "step"),
    [
        ("step 1", "SIGINT", 1),
        ("step 3", "SIGTERM", 3),
        ("step 3", "SIGUSR1", 3),
        ("step 5", "SIGTERM", 5),  # the epoch's last: its validation begins
        ("validation 5", "SIGINT", 5),
        ("step 10", "SIGINT", 10),
        ("validation 10", "SIGTERM", 10),
    ],
)
def test_a_signal_ends_the_run_after_the_step_and_nothing_is_lost(
    moment: str, name: str, step: int, whole: tuple[Path, DDPM], tmp_path: Path
) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, Send({moment: name}, str(tmp_path)))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    saved = torch.load(tmp_path / "latest.ckpt", weights_only=True)
    assert saved["global_step"] == step
    resumed = fit(tmp_path, ckpt_path=tmp_path / "latest.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole[1].state_dict(), rtol=0, atol=0)
    tables = [read_losses(folder / "timestep_loss.csv") for folder in (tmp_path, whole[0])]
    assert tables[0] == tables[1]  # also of the validation that was interrupted


def test_a_signal_in_the_last_step_keeps_what_follows_from_beginning(tmp_path: Path) -> None:
    """Without a validation, nothing comes between that step and the end of training."""
    send, latest = Send({"step 10": "SIGINT"}, str(tmp_path)), LatestCheckpoint(tmp_path)
    with pytest.raises(SystemExit):
        fit(tmp_path, limit_val_batches=0, callbacks=[latest, send])
    assert torch.load(tmp_path / "latest.ckpt", weights_only=True)["global_step"] == STEPS


def test_where_max_steps_cuts_an_epoch_its_rest_stays_to_be_seen(tmp_path: Path) -> None:
    """A checkpoint from after the end would begin with the next epoch."""
    send, latest = Send({"step 3": "SIGINT"}, str(tmp_path)), LatestCheckpoint(tmp_path, every_n_train_steps=2)
    with pytest.raises(SystemExit):
        fit(tmp_path, max_steps=3, limit_val_batches=0, callbacks=[latest, send])
    assert torch.load(tmp_path / "latest.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_a_second_press_ends_the_run_at_once_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Stuck(L.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # at the same moment: torchrun sends a press on
            pressed = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
            pressed.start()
            threading.Event().wait()  # for ever

    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, Stuck())
    assert stopped.value.code == 130
    assert not (tmp_path / "latest.ckpt").exists()
    assert capfd.readouterr().err.count("Press Ctrl-C again to stop at once.") == 1


@pytest.mark.slow
def test_a_slurm_job_is_requeued_after_the_step_and_goes_on_until_slurm_ends_it(
    whole: tuple[Path, DDPM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal, and Lightning's own handler, which alone would save in the middle of the step."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    job = {"JOB_ID": "77", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    class InTheStep(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

    fit(tmp_path, InTheStep(), plugins=[SLURMEnvironment(auto_requeue=True)])
    assert (tmp_path / "told").read_text() == "requeue 77\n"
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == 3
    assert torch.load(tmp_path / "latest.ckpt", weights_only=True)["global_step"] == 3
    resumed = fit(tmp_path, ckpt_path=tmp_path / "hpc_ckpt_1.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole[1].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (1.5, TypeError)])
def test_steps_out_of_range_name_their_key(every: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error, match=r"callbacks\.latest.every_n_train_steps"):
        LatestCheckpoint(every_n_train_steps=every)
