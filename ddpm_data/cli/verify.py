"""``ddpm-data verify``: check that one process and several see the same stream with your configuration.

The command trains a dummy model for a few steps, with real processes (gloo, CPU) and real Lightning Trainers: in one
process, in several, and in several from a checkpoint that the first run wrote halfway. Then it compares every example
that reached the model. If a run fails here, your training would fail too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_data._bytes import bytes_of
from ddpm_data._checks import check_int
from ddpm_data._errors import FULL_ERROR, explain
from ddpm_data._nested import leaves
from ddpm_data.cli._command import start_command
from ddpm_data.cli._config import compose_datamodule
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.hydra import DEFAULTS
from ddpm_data.types import ConditionedTriple, Triple

Row = tuple[str, ...]  # digests of an example's x_t, t, noise and condition
Steps = list[list[Row]]
_PARTS = ("x_t", "t", "noise", "condition")
_NOISE = _PARTS.index("noise")
_ERROR = "error.txt"  # a run's error in one line


class RunRecord(NamedTuple):
    """The examples that reached the model in one run.

    Attributes:
        train: The training examples of each step.
        val: The validation examples.
        is_map_style: Whether the training dataset is map-style, so that every number of processes sees the same images.
    """

    train: Steps
    val: list[Row]
    is_map_style: bool


class Runs(NamedTuple):
    """The runs that are compared.

    Attributes:
        single: In one process.
        several: In several processes.
        resumed: From the checkpoint that ``single`` wrote.
        resumed_processes: The processes of ``resumed``: several, or one if the training dataset is iterable.
    """

    single: RunRecord
    several: RunRecord
    resumed: RunRecord
    resumed_processes: int


def main(arguments: list[str] | None = None) -> int:
    """Run one process, several, and a resumed run, and print how their streams compare.

    Args:
        arguments: Command-line arguments; ``None`` takes those of the process.

    Returns:
        0 if everything agrees, else 1.

    Raises:
        SystemExit: An argument is wrong, the configuration has no DataModule, or a run failed.
    """
    args = start_command("verify", arguments)
    with tempfile.TemporaryDirectory() as folder:
        batch_size = _write_config(args, Path(folder) / "datamodule.yaml")
        runs = _run_all(Path(folder), args.processes, batch_size, args.steps)
    global_batch, sizes = batch_size * args.processes, f"{args.processes} processes x {batch_size}"
    print(f"\n{len(runs.single.train)} steps of {global_batch} images: 1 process x {global_batch}, {sizes}\n")
    if not runs.single.is_map_style:
        print("The training set is iterable: it decides by itself which image comes when. Another number of processes")
        print("therefore sees other images. But no two examples may share their noise.\n")
    agrees = _compare_runs(runs, args.processes, args.steps // 2)
    unsaid = "" if runs.single.is_map_style else " (whether processes read the same images was not looked at)"
    print(f"\npassed: the streams agree{unsaid}" if agrees else "\nFAILED: see the lines with DIFFERS or SHARED above")
    return 0 if agrees else 1


def _run_all(folder: Path, processes: int, batch_size: int, steps: int) -> Runs:
    half, global_batch = steps // 2, batch_size * processes
    with tqdm(total=3, desc="Runs", unit="run", leave=False) as progress:
        single = _run(folder, 1, global_batch, steps, half, resume=False)
        progress.update()
        several = _run(folder, processes, batch_size, steps, half, resume=False)
        progress.update()
        resumed_processes = processes if single.is_map_style else 1
        resumed = _run(folder, resumed_processes, global_batch // resumed_processes, steps, half, resume=True)
        progress.update()
    return Runs(single, several, resumed, resumed_processes)


def _compare_runs(runs: Runs, processes: int, resumed_at: int) -> bool:
    """Compare the other runs with the single one, and print the result; returns whether everything agrees."""
    single, agree = runs.single, True
    for name, run, first_step in (
        (f"{processes} processes", runs.several, 0),
        (f"{runs.resumed_processes} process(es), resumed", runs.resumed, resumed_at),
    ):
        if single.is_map_style or first_step:
            agree &= _compare_examples(f"training, {name}", _flatten(single.train[first_step:]), _flatten(run.train))
            agree &= _compare_examples(f"validation, {name}", single.val, run.val)
        noises = [row[_NOISE] for row in _flatten(run.train)]
        repeats = len(noises) - len(set(noises))
        agree &= not repeats
        print(f"{'SHARED' if repeats else 'unique':8}noise of {len(noises)} training examples, {name}")
    return agree


def _compare_examples(name: str, first: list[Row], second: list[Row]) -> bool:
    """Compare the examples that both runs saw, and print the result.

    An epoch's last few examples may have reached only one of the runs.

    Returns:
        Whether they agree.
    """
    if bool(first) != bool(second):
        print(f"DIFFERS {name}: {len(first)} examples against {len(second)}")
        return False
    pairs = list(zip(first, second, strict=False))
    for number, (first_row, second_row) in enumerate(pairs):
        parts = [part for part, a, b in zip(_PARTS, first_row, second_row, strict=False) if a != b]
        if parts:
            cause = " (t and noise agree: an item, or `augment`, is random)" if parts == ["x_t"] else ""
            print(f"DIFFERS {name}: {' and '.join(parts)} of example {number} of {len(pairs)}{cause}")
            return False
    print(f"{'agrees' if pairs else 'none':8}{name}: {len(pairs)} examples")
    return True


def _flatten(steps: Steps) -> list[Row]:
    return [row for rows in steps for row in rows]


def _write_config(args: argparse.Namespace, path: Path) -> int:
    """Write the DataModule's configuration into a file; returns its batch size."""
    from omegaconf import OmegaConf

    values = compose_datamodule(args)
    OmegaConf.save(values, path)
    is_ours = "key_names" in values
    given = values.get("batch_size", (values.get("loader") or {}).get("batch_size") if is_ours else None)
    default = DEFAULTS["batch_size"] if is_ours else 64
    return check_int("verify", "loader.batch_size", default if given is None else given, 1)


def _run(folder: Path, processes: int, batch_size: int, steps: int, half: int, resume: bool) -> RunRecord:
    """Train in new processes, and collect what reached the model.

    Args:
        folder: Holds the configuration and the checkpoint; the runs write to a folder in it.
        processes: How many processes train.
        batch_size: Images per process and step.
        steps: Optimizer steps.
        half: The step after which the run in one process writes its checkpoint.
        resume: Whether to start from that checkpoint instead of writing one.

    Raises:
        SystemExit: A process failed; its error is in the message.
    """
    output = folder / f"{processes}-{resume}"
    output.mkdir()
    job = ["-m", "ddpm_data.cli.verify", "--job", str(folder), str(output)]
    job += map(str, (processes, batch_size, steps, half, int(resume)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    result = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *job],
        env=_environment(),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        explained = output / _ERROR
        said = explained.read_text(encoding="utf-8") if explained.exists() else f"\n{result.stderr[-4000:]}"
        raise SystemExit(f"FAILED: a run in {processes} process(es) ended: {said}")
    ranks = [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    train, val = (
        [_flatten(list(parts)) for parts in zip(*(rank[stage] for rank in ranks), strict=True)]
        for stage in ("train", "val")
    )
    return RunRecord(train, _flatten(val), ranks[0]["is_map_style"])


def _environment() -> dict[str, str]:
    """Return the environment for the runs: torchrun asks for libuv, and torch for Windows is built without it."""
    return ({"USE_LIBUV": "0"} if sys.platform == "win32" else {}) | dict(os.environ)


class _Recorder(L.LightningModule):
    """A dummy model that keeps a digest of every example."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_rows: dict[int, list[Row]] = {}
        self.val_rows: Steps = []

    def training_step(self, batch: Triple | ConditionedTriple, batch_idx: int) -> dict[str, Tensor]:
        self.train_rows.setdefault(self.global_step, []).extend(_digest_examples(batch))
        losses = batch.x_t.float().square().flatten(1).mean(1)  # for loss-aware timesteps, so that their table changes
        return {"loss": self.weight.sum(), "losses": losses}

    def validation_step(self, batch: Triple | ConditionedTriple, batch_idx: int) -> None:
        self.val_rows.append(_digest_examples(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _digest_examples(batch: Triple | ConditionedTriple) -> list[Row]:
    columns = [_example_bytes(part) for part in batch]
    return [tuple(blake2b(part, digest_size=8).hexdigest() for part in row) for row in zip(*columns, strict=True)]


def _example_bytes(part: object) -> list[bytes]:
    """List the bytes that each example has in a tensor, or in nested conditions."""
    columns = [
        [bytes_of(row).tobytes() if isinstance(row, Tensor) else repr(row).encode() for row in leaf]
        for leaf in leaves(part)
    ]
    return [b"|".join(row) for row in zip(*columns, strict=True)]


class _SaveAt(L.Callback):
    """A callback that writes a checkpoint after a given step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401  # Lightning's
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def _train(arguments: list[str]) -> None:
    """Train and validate as one process of a run, and save what reached the model.

    Args:
        arguments: The arguments after ``--job``, see :func:`_run`.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    warnings.simplefilter("ignore")
    folder, output = map(Path, arguments[:2])
    processes, batch_size, steps, half, resume = map(int, arguments[2:])
    datamodule: DDPMDataModule = instantiate(OmegaConf.load(folder / "datamodule.yaml"), batch_size=batch_size)
    model, checkpoint = _Recorder(), folder / "half.ckpt"
    make_trainer = partial(
        L.Trainer,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    callbacks: list[L.Callback] = [] if resume or processes > 1 else [_SaveAt(half, checkpoint)]
    trainer = make_trainer(limit_val_batches=0, callbacks=callbacks)
    trainer.fit(model, datamodule=datamodule, ckpt_path=checkpoint if resume else None)
    if datamodule.splits.has("val"):
        make_trainer(limit_val_batches=steps).validate(model, datamodule=datamodule, verbose=False)
    record: dict[str, Any] = {"train": list(model.train_rows.values()), "val": model.val_rows}
    record["is_map_style"] = datamodule.splits.images("train").length is not None
    torch.save(record, output / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    try:
        _train(sys.argv[2:])  # in the processes that _run() starts
    except Exception as error:
        message = None if os.environ.get(FULL_ERROR) == "1" else explain(error)
        if message is not None:
            Path(sys.argv[3], _ERROR).write_text(message, encoding="utf-8")
        raise
