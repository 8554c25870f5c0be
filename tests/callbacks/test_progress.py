"""What a person sees in a terminal, and what a log file gets."""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from ddpm_data.callbacks import Progress, Throughput
from tests.callbacks.helpers import data
from tests.conftest import Recorder, trainer


class Model(Recorder):
    def training_step(self, batch: Any, batch_idx: int) -> Any:  # noqa: ANN401  # Lightning's
        time.sleep(0.02)  # slower than the bar may move
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, prog_bar=True)
        return loss


def fit(folder: Path, progress: Progress, *callbacks: L.Callback, **options: Any) -> None:  # noqa: ANN401  # Trainer's own
    options = {"max_epochs": 3, "enable_progress_bar": True} | options
    run = trainer(folder, callbacks=[progress, Throughput(2), *callbacks], **options)
    run.fit(Model(), datamodule=data())


def show(folder: Path, monkeypatch: pytest.MonkeyPatch, progress: Progress, **options: Any) -> list[str]:  # noqa: ANN401  # Trainer's own
    """Fit in a terminal of 80 columns; the bars that were drawn there, one after another."""
    import pty
    import termios
    import tty

    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    termios.tcsetwinsize(theirs, (40, 80))
    with os.fdopen(theirs, "w") as terminal, (folder / "shown").open("wb") as file:
        monkeypatch.setattr(sys, "stdout", terminal)
        fit(folder, progress, Reader(ours, file), **options)
    os.close(ours)
    return (folder / "shown").read_bytes().decode().split("\r")


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "max_epochs": -1, "max_steps": 9}])
@pytest.mark.parametrize("refresh_seconds", [0.001, 1000])
def test_the_bar_moves_with_every_slow_batch_and_says_what_is_left(
    refresh_seconds: float, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = show(tmp_path, monkeypatch, Progress(refresh_seconds), **options)
    for epoch in (1, 2, 3):
        name = f"Epoch {epoch} " if options else f"Epoch {epoch}/3 "
        seen = {int(n) for frame in frames if frame.startswith(name) for n in re.findall(r" (\d)/5", frame)}
        assert seen >= ({1, 2, 3, 4, 5} if refresh_seconds < 1 else {0})
    last = next(frame for frame in reversed(frames) if frame.startswith("Epoch"))
    assert re.search(r"\[\d\d:\d\d, 00:00 left\] \|.*5/5, .*train_loss=", last)


class Reader(L.Callback):
    """Empties the terminal's buffer after every batch, so that writing to it never waits."""

    def __init__(self, terminal: int, file: Any) -> None:  # noqa: ANN401  # any writer of bytes
        self.terminal, self.file = terminal, file
        os.set_blocking(terminal, False)

    def on_train_batch_end(self, *_: object) -> None:
        try:
            while data := os.read(self.terminal, 65536):
                self.file.write(data)
        except BlockingIOError:
            return

    def on_train_end(self, *_: object) -> None:
        self.on_train_batch_end()


def test_a_log_file_gets_lines_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Progress(line_seconds=3600.0))
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Epoch 3/3 step 15 \[\d\d:\d\d, 00:00 left\] train_loss=\S+ images_per_s=\S+", line)
    fit(tmp_path, Progress(line_seconds=0.001))
    assert len(capsys.readouterr().out.splitlines()) == 15 + 1


def test_every_run_of_one_trainer_prints_its_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, callbacks=[Progress(line_seconds=0.001)], enable_progress_bar=True)
    run.validate(Model(), datamodule=data(), verbose=False)
    assert not capsys.readouterr().out
    for epochs in (1, 2):
        run.fit_loop.max_epochs = epochs
        run.fit(Model(), datamodule=data())
        assert len(capsys.readouterr().out.splitlines()) == 5 + 1


@pytest.mark.parametrize("options", [{"refresh_seconds": 0}, {"line_seconds": -1}, {"line_seconds": "often"}])
def test_seconds_out_of_range_name_their_key(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"callbacks\.progress_bar\.{next(iter(options))}"):
        Progress(**options)
