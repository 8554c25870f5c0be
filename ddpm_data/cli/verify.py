"""Do one process and several see the same stream with your configuration? ``python -m ddpm_data.verify --help``.

Trains a model that learns nothing for a few steps, on real processes (gloo, CPU), through real Lightning Trainers: on
one process, on several, and on several from a checkpoint that the one wrote half way. What reached each step is then
compared example by example. An error here is one that your training would have had.
"""

import argparse
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

from ddpm_data._nested import leaves
from ddpm_data.cli._config import add_config_options, compose_datamodule
from ddpm_data.datamodule.module import DDPMDataModule
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.types import ConditionedTriple, Triple

Row = tuple[str, ...]  # digests of an example's x_t, t, noise and condition
Steps = list[list[Row]]
_PARTS = ("x_t", "t", "noise", "condition")


class RunRecord(NamedTuple):
    """What reached the model in one run."""

    train: Steps
    val: list[Row]
    by_number: bool  # whether the training set is asked for items by number


def main(arguments: list[str] | None = None) -> int:
    """Run, compare, print; returns 0 if everything agreed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ddpm_data.verify", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many to compare with one (default 2)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps (default 20)")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.processes < 2 or args.steps < 2:
        parser.error("--processes and --steps are at least 2")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        batch_size = _write_config(args, path / "datamodule.yaml")
        half, many, whole = args.steps // 2, args.processes, batch_size * args.processes
        with tqdm(total=3, desc="Runs", unit="run") as progress:
            one = _run(path, 1, whole, args.steps, half, resume=False)
            progress.update()
            several = _run(path, many, batch_size, args.steps, half, resume=False)
            progress.update()
            again = many if one.by_number else 1
            resumed = _run(path, again, whole // again, args.steps, half, resume=True)
            progress.update()
    print(f"\n{len(one.train)} steps of {whole} images: 1 process x {whole}, {many} processes x {batch_size}\n")
    if not one.by_number:
        print("The training set is iterable: it decides itself which image comes when, so that another number of")
        print("processes sees other images. No two examples share their noise all the same.\n")
    good = True
    for name, run, start in ((f"{many} processes", several, 0), (f"{again} process(es), resumed", resumed, half)):
        if one.by_number or start:
            good &= _report(f"training, {name}", _flat(one.train[start:]), _flat(run.train))
            good &= _report(f"validation, {name}", one.val, run.val)
        noises = [row[2] for row in _flat(run.train)]
        shared = len(noises) - len(set(noises))
        good &= not shared
        print(f"{'SHARED' if shared else 'unique':8}noise of {len(noises)} training examples, {name}")
    return 0 if good else 1


def _report(what: str, first: list[Row], second: list[Row]) -> bool:
    """Compare as many examples as both runs saw: an epoch's last few may be cut otherwise."""
    if bool(first) != bool(second):
        print(f"DIFFERS {what}: {len(first)} examples against {len(second)}")
        return False
    both = list(zip(first, second, strict=False))
    for number, (a, b) in enumerate(both):
        parts = [name for name, x, y in zip(_PARTS, a, b, strict=False) if x != y]
        if parts:
            random = " (t and noise agree: an item, or `augment`, is random)" if parts == ["x_t"] else ""
            print(f"DIFFERS {what}: {' and '.join(parts)} of example {number} of {len(both)}{random}")
            return False
    print(f"{'agrees' if both else 'none':8}{what}: {len(both)} examples")
    return True


def _flat(steps: Steps) -> list[Row]:
    return [row for rows in steps for row in rows]


def _write_config(args: argparse.Namespace, path: Path) -> int:
    """Compose the DataModule's configuration into a file; returns its batch size."""
    from omegaconf import OmegaConf

    values = compose_datamodule(args)
    OmegaConf.save(values, path)
    return int(values.get("batch_size", 64))


def _run(folder: Path, processes: int, batch_size: int, steps: int, half: int, resume: bool) -> RunRecord:
    out = folder / f"{processes}-{resume}"
    out.mkdir()
    job = [
        "-m",
        "ddpm_data.cli.verify",
        "--job",
        *map(str, (folder, out, processes, batch_size, steps, half, int(resume))),
    ]
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    result = subprocess.run(
        [sys.executable, *(several if processes > 1 else []), *job], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{processes} process(es) failed:\n{result.stderr[-4000:]}")
    ranks = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    train, val = (
        [_flat(list(parts)) for parts in zip(*(rank[stage] for rank in ranks), strict=True)]
        for stage in ("train", "val")
    )
    return RunRecord(train, _flat(val), ranks[0]["by_number"])


class _Recorder(L.LightningModule):
    """Learns nothing and keeps a digest of every example."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.train_rows: dict[int, list[Row]] = {}
        self.val_rows: Steps = []

    def training_step(self, batch: Triple | ConditionedTriple, batch_idx: int) -> Tensor:
        self.train_rows.setdefault(self.global_step, []).extend(_digests(batch))
        return self.weight.sum()

    def validation_step(self, batch: Triple | ConditionedTriple, batch_idx: int) -> None:
        self.val_rows.append(_digests(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _digests(batch: Triple | ConditionedTriple) -> list[Row]:
    columns = [_example_bytes(part) for part in batch]
    return [tuple(blake2b(part, digest_size=8).hexdigest() for part in row) for row in zip(*columns, strict=True)]


def _example_bytes(part: object) -> list[bytes]:
    """List what each example has of a tensor, or of nested conditions."""
    columns = [
        [row.numpy().tobytes() for row in leaf.contiguous()] if isinstance(leaf, Tensor) else [s.encode() for s in leaf]
        for leaf in leaves(part)
    ]
    return [b"|".join(row) for row in zip(*columns, strict=True)]


class _SaveAt(L.Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:  # noqa: ANN401  # Lightning's
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def _job(arguments: list[str]) -> None:
    """One process of one run."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    warnings.simplefilter("ignore")
    folder, out = map(Path, arguments[:2])
    processes, batch_size, steps, half, resume = map(int, arguments[2:])
    datamodule: DDPMDataModule = instantiate(OmegaConf.load(folder / "datamodule.yaml"), batch_size=batch_size)
    model, checkpoint = _Recorder(), folder / "half.ckpt"
    trainer = partial(
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
    saving: list[L.Callback] = [] if resume or processes > 1 else [_SaveAt(half, checkpoint)]
    run = trainer(limit_val_batches=0, callbacks=saving)
    run.fit(model, datamodule=datamodule, ckpt_path=checkpoint if resume else None)
    if datamodule.splits.has("val"):
        trainer(limit_val_batches=steps).validate(model, datamodule=datamodule, verbose=False)
    seen: dict[str, Any] = {"train": list(model.train_rows.values()), "val": model.val_rows}
    seen["by_number"] = isinstance(datamodule.splits.images("train"), MapStyleImages)
    torch.save(seen, out / f"{run.global_rank}.pt")


if __name__ == "__main__":
    _job(sys.argv[2:])  # of the runs that main() starts
