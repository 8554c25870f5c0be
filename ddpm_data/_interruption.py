"""What a job does when it is interrupted: end with the signal's status, and say how to go on from its checkpoint."""

import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from zipfile import is_zipfile

Handler = Callable[[int, FrameType | None], Any] | int  # what signal.signal takes
_NOT_OF_A_JOB = re.compile(r"[+~]*(ckpt_path|hydra[./](run\.dir|sweep|mode|launcher|sweeper)\b[^=]*)(=|$)")
_SECONDS_TO_SAVE = 10  # that a sweep waits for the checkpoints of its jobs; a job in its setup will not write one
_PLAIN_VALUE = re.compile(r"[\w\-./\\:%+@]+")  # what Hydra's grammar takes without quotes


def is_first_process() -> bool:
    """Tell whether this is the first of the processes that torchrun, SLURM or Lightning started, or the only one."""
    ranks = [os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))]
    ranks += [os.environ.get(name, "0") for name in ("LOCAL_RANK", "NODE_RANK")]  # all that Lightning's launcher sets
    return all(rank == "0" for rank in ranks)


def is_on_several_machines() -> bool:
    """Tell whether the job has processes on several machines, that torchrun or SLURM started."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("GROUP_WORLD_SIZE", "SLURM_NNODES"))


def end_on_signals() -> dict[int, Handler]:
    """Have Ctrl-C and SIGTERM end the process by ``SystemExit``, with 130 or 143, so that it can still say something.

    Handlers of others stay. Where Lightning requeues SLURM jobs, SIGTERM must not end them.

    Returns:
        The handlers that were replaced, by signal.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    defaults: dict[int, Handler] = {signal.SIGINT: signal.default_int_handler}
    if "SLURM_NTASKS" not in os.environ:
        defaults[signal.SIGTERM] = signal.SIG_DFL
    replaced = {number: handler for number, handler in defaults.items() if signal.getsignal(number) == handler}
    for number in replaced:
        signal.signal(number, _end)
    return replaced


def _end(number: int, _: FrameType | None) -> None:
    # Lightning kills the first process if another one that it started fails.
    raise SystemExit(128 + number if is_first_process() else 0)


def end_sweep_on_signals(find_running: Callable[[], Iterable[Path]]) -> None:
    """Have Ctrl-C and SIGTERM end a sweep whose launcher runs each job in a process of its own.

    Such launchers kill those processes as soon as the sweep ends, so it first waits for the jobs to save. A second
    signal ends it at once. A terminal sends Ctrl-C to the jobs, too; SIGTERM is sent on to them.

    Args:
        find_running: Finds the folders of the jobs that have not ended.
    """
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            # Windows has no groups. Where this process leads its group, that is the sweep and what it started.
            if sys.platform != "win32" and number == signal.SIGTERM and os.getpgrp() == os.getpid():
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                os.killpg(0, signal.SIGINT)
                signal.signal(signal.SIGINT, receive)
            os.write(2, b"\nWaiting until the jobs have saved. Press Ctrl-C again to stop at once.\n")
            _wait_for_checkpoints(find_running)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, receive)


def _wait_for_checkpoints(find_running: Callable[[], Iterable[Path]]) -> None:
    began = time.time()
    while time.time() < began + _SECONDS_TO_SAVE:
        checkpoints = [find_checkpoint(folder) for folder in find_running()]
        if all(path is not None and path.stat().st_mtime > began for path in checkpoints):
            return
        time.sleep(0.2)


def find_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint in a run's folder that was written last; ``None`` if there is none."""
    return max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def read_step(checkpoint: Path) -> int | None:
    """Return the number of steps after which Lightning wrote a checkpoint; ``None`` if it does not say."""
    content = _read_weights(checkpoint)
    return int(content["global_step"]) if content and "global_step" in content else None


def check_checkpoint(checkpoint: Path) -> None:
    """Refuse what is no checkpoint of Lightning's, before a Trainer's setup.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a file of another kind.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint.absolute()}. Change `ckpt_path`.")
    content = _read_weights(checkpoint)
    is_foreign = not is_zipfile(checkpoint) if content is None else "pytorch-lightning_version" not in content
    if is_foreign:
        raise ValueError(f"{checkpoint.absolute()} is no checkpoint that Lightning has written. Change `ckpt_path`.")


def _read_weights(checkpoint: Path) -> dict[str, Any] | None:
    """Map a checkpoint into memory; ``None`` if it is a folder, no checkpoint, or holds more than weights."""
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=is_zipfile(checkpoint))
    except Exception:  # any error of torch's
        return None
    return content if isinstance(content, dict) else {}


def is_used(folder: Path) -> bool:
    """Tell whether a folder holds metrics or checkpoints of a run."""
    return any(next(folder.rglob(pattern), None) is not None for pattern in ("metrics.csv", "*.ckpt"))


def resume_command(overrides: Sequence[str], folder: Path, checkpoint: Path | None, changes_dir: bool = False) -> str:
    """Write the command line that goes on with a Hydra job, for a POSIX shell.

    Args:
        overrides: The job's overrides.
        folder: The job's folder.
        checkpoint: The checkpoint to resume from. ``None`` starts the job again, from the checkpoint that it had.
        changes_dir: Whether a job runs in its own folder (``hydra.job.chdir``), so that paths have to be absolute.
    """
    arguments, program = sys.argv[1:], sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if "TORCHELASTIC_RUN_ID" in os.environ and not is_on_several_machines():  # torchrun has started it by python -u
        processes = f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"
        program = ["torchrun", "--standalone", processes, *(word for word in program[1:] if word != "-u")]
    flags = [word for word in arguments if word.startswith("-") or not re.search("^~|=", word)]
    old_checkpoint = [word for word in overrides if checkpoint is None and word.lstrip("+").startswith("ckpt_path=")]
    words = [word for word in overrides if not _NOT_OF_A_JOB.match(word)] + old_checkpoint
    if checkpoint is not None:
        words.append(f"ckpt_path={quote(checkpoint.absolute(), is_absolute=changes_dir)}")
    words.append(f"hydra.run.dir={quote(folder)}")
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    return " ".join(map(shell_quote, [*program, *flags, *words]))


def shell_quote(word: str) -> str:
    """Write a word for a POSIX shell, in double quotes if it has single ones."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def quote(path: Path, is_absolute: bool = False) -> str:
    """Write a path as a value in Hydra's grammar, relative to the working folder if it lies in it and may be."""
    text = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) and not is_absolute else path)
    if _PLAIN_VALUE.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'") + "'"
