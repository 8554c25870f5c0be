"""Fits that one process, and two under torchrun, run one after the other; test_ddp.py compares what they saw.

Each leaves ``{name: what happened}`` in a file of its rank: the rows of every optimizer step, or an error's words.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed
from torch.utils.data import IterableDataset, TensorDataset, get_worker_info

from ddpm_data import DDPMDataModule, LossAwareTimesteps, Triple, schedules
from ddpm_data.datamodule.loss_aware import LossAwareTables
from tests.conftest import Recorder, trainer, uint8_images


class Sharded(IterableDataset[Tensor]):
    """Splits itself over processes and workers."""

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        world = (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        return iter(uint8_images(24, 1, 4, 4)[world[1] * workers + worker :: world[0] * workers])


SAVED = 6  # optimizer steps, of which an epoch has 4
LOSS_AWARE: tuple[dict[str, Any], dict[str, Any]] = (
    dict(batch_size=8, loss_aware=True),
    dict(batch_size=4, loss_aware=True),
)
# What one process is told, and what two are: per-device batch size and the rest.
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2 x 4": (dict(batch_size=8), dict(batch_size=4)),
    "2 x 2, accumulated": (dict(batch_size=8), dict(batch_size=2, accumulate_grad_batches=2)),
    "4, accumulated": (dict(batch_size=4, accumulate_grad_batches=2), dict(batch_size=4)),
    "workers": (dict(batch_size=8), dict(batch_size=4, num_workers=2, prefetch_factor=1)),
    "workers anew": (dict(batch_size=8), dict(batch_size=4, num_workers=1, persistent_workers=False)),
    "own sampler": (dict(batch_size=8), dict(batch_size=4, use_distributed_sampler=False)),
    "reloaded": (dict(batch_size=8), dict(batch_size=4, reload_dataloaders_every_n_epochs=1)),
    "loss-aware": LOSS_AWARE,
    "loss-aware, accumulated": (
        dict(batch_size=8, loss_aware=True),
        dict(batch_size=2, accumulate_grad_batches=2, loss_aware=True),
    ),
    "limited": (dict(batch_size=8, limit_train_batches=3), dict(batch_size=4, limit_train_batches=3)),
    "limited share": (dict(batch_size=8, limit_train_batches=0.5), dict(batch_size=4, limit_train_batches=0.5)),
} | {
    f"{length} images{', drop_last' * drop_last}": (
        dict(batch_size=8, length=length, drop_last=drop_last),
        dict(batch_size=4, length=length, drop_last=drop_last),
    )
    for length in (10, 11, 23, 31)
    for drop_last in (False, True)
}
ALONE: dict[str, dict[str, Any]] = {
    "a rest of one": dict(batch_size=4, length=9),
    "1 image": dict(batch_size=4, length=1),
    "7 images, drop_last": dict(batch_size=4, length=7, drop_last=True),
    "iterable": dict(batch_size=4, iterable=True),
    "iterable, workers": dict(batch_size=4, iterable=True, num_workers=2),
}


class Steps(Recorder):
    """Also notes the optimizer step of every batch, and writes a checkpoint in the middle of the second epoch."""

    def __init__(self, save: Path | None) -> None:
        super().__init__()
        self.step_of: list[int] = []
        self.save = save

    def training_step(self, batch: Triple, batch_idx: int) -> Any:  # noqa: ANN401  # a dict; the Recorder's is a tensor
        self.step_of.append(self.global_step)
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss, "losses": batch.x_t.square().flatten(1).mean(1) * (1 + batch.t)}

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401  # Lightning's
        if self.save is not None and self.global_step == SAVED:
            self.trainer.save_checkpoint(self.save)


def run(
    folder: Path,
    devices: int,
    batch_size: int,
    length: int = 26,
    iterable: bool = False,
    num_workers: int = 0,
    loss_aware: bool = False,
    save: Path | None = None,
    ckpt: Path | None = None,
    **options: Any,  # noqa: ANN401  # the DataModule's or the Trainer's
) -> dict[str, Any]:
    loading = {
        name: options.pop(name) for name in ("drop_last", "prefetch_factor", "persistent_workers") if name in options
    }
    train = Sharded() if iterable else TensorDataset(uint8_images(length, 1, 4, 4))
    dm = DDPMDataModule(
        train,
        schedule=schedules.linear(4 if loss_aware else 100),
        timesteps=LossAwareTimesteps(every=1, sightings=1) if loss_aware else None,
        batch_size=batch_size,
        num_workers=num_workers,
        flip=0.5,
        **loading,
    )
    fit = trainer(folder, devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2, **options)
    model = Steps(save)
    try:
        fit.fit(model, datamodule=dm, ckpt_path=ckpt)
    except ValueError as error:
        return {"error": str(error)}
    steps: list[list[bytes]] = [[] for _ in range(fit.global_step)]
    for step, (x_t, _, noise) in zip(model.step_of, model.seen["train"], strict=True):
        steps[step] += [(a.numpy().tobytes() + b.numpy().tobytes()) for a, b in zip(x_t, noise, strict=True)]
    tables = [callback.shares for callback in fit.callbacks if isinstance(callback, LossAwareTables)]  # type: ignore[attr-defined]  # a connector's
    return {"steps": steps, "tables": tables}


# What the second of two processes is told otherwise, and which part of both says so.
DISAGREEING: dict[str, tuple[dict[str, Any], str]] = {
    "length": (
        dict(train=TensorDataset(uint8_images(27, 1, 4, 4))),
        "the length of train is 26 in process 0 and 27",
    ),
    "length of val": (
        dict(val=TensorDataset(uint8_images(3, 1, 4, 4))),
        "the length of val is 9 in process 0 and 3",
    ),
    "kind": (dict(train=Sharded()), "the length of train is 26 in process 0 and None in process 1"),
    "seed": (dict(seed=1), "`seed` is 0 in process 0 and 1 in process 1"),
    "batch size": (dict(batch_size=5), "`batch_size` is 4 in process 0 and 5 in process 1"),
    "drop_last": (dict(drop_last=True), "`drop_last` is False in process 0 and True in process 1"),
    "steps": (dict(schedule=schedules.linear(50)), "`num_timesteps` is 100 in process 0 and 50 in process 1"),
    "schedule": (
        dict(schedule=schedules.cosine(100)),
        "`schedule` differs between process 0 (there) and process 1 (here)",
    ),
    "target": (
        dict(target="velocity"),
        "`target` differs between process 0 (there) and process 1 (here)",
    ),
    "image size": (dict(image_size=2), "`image_size` is None in process 0 and (2, 2) in process 1"),
    "max_steps": (dict(max_steps=0), "`trainer.max_steps` is -1 in process 0 and 0 in process 1"),
    "flip": (dict(flip=0.5), "`flip` is 0.0 in process 0 and 0.5 in process 1"),
    "limit": (dict(limit_train_batches=2), "`trainer.limit_train_batches` is 1.0 in process 0 and 2 in process 1"),
    "images": (
        dict(train=TensorDataset(255 - uint8_images(26, 1, 4, 4))),
        "the digest of train[0] is",
    ),
}


def disagree(folder: Path, name: str, rank: int) -> str:
    """What a process says that was not given the same as the other one: an error, or a warning."""
    train, val = (TensorDataset(uint8_images(count, 1, 4, 4)) for count in (26, 9))
    options: dict[str, Any] = dict(train=train, val=val, schedule=schedules.linear(100), batch_size=4)
    options |= DISAGREEING[name][0] if rank else {}
    limits = {key: options.pop(key) for key in ("limit_train_batches", "max_steps") if key in options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit = trainer(folder, devices=2, strategy="ddp", max_epochs=1, **limits)
            fit.fit(Recorder(), datamodule=DDPMDataModule(**options))
        except ValueError as error:
            return str(error)
    return "\n".join(str(warning.message) for warning in caught)


class Eager(DDPMDataModule):
    """Sets itself up where only one process of a machine is, for example to count something."""

    def prepare_data(self) -> None:
        super().prepare_data()
        self.setup("fit")


def use_alone(folder: Path, rank: int) -> str:
    """What one process does alone, or otherwise than the other one: nobody may have to wait for it."""
    train = TensorDataset(uint8_images(26, 1, 4, 4))
    options: dict[str, Any] = dict(train=train, test=train, schedule=schedules.linear(100), batch_size=4)

    class Looks(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.is_global_zero:
                datamodule = trainer.datamodule  # type: ignore[attr-defined]  # fit() was given one
                datamodule.setup("test")
                next(iter(datamodule.test_dataloader()))

    datamodule = Eager(**options)
    fit = trainer(folder, devices=2, strategy="ddp", max_epochs=1, callbacks=[Looks()])
    fit.fit(Recorder(), datamodule=datamodule)
    if rank == 0:
        datamodule.setup("test")
        next(iter(datamodule.test_dataloader()))
    fit.test(Recorder(), datamodule=datamodule)
    own = trainer(folder, devices=1, strategy="auto", max_epochs=1)  # a Trainer for each process, though in one group
    own.fit(Recorder(), datamodule=DDPMDataModule(**options, seed=rank))
    return "done"


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo")
    seen = {name: run(folder, 2, **two) for name, (_, two) in SCENARIOS.items()}
    seen |= {name: run(folder, 2, **options) for name, options in ALONE.items()}
    two = LOSS_AWARE[1]
    rank = distributed.get_rank()
    seen |= {f"disagreeing: {name}": {"error": disagree(folder, name, rank)} for name in DISAGREEING}
    seen["alone"] = {"error": use_alone(folder, rank)}
    seen["one checkpoint"] = run(folder, 2, ckpt=folder / "one.ckpt" if rank else None, **LOSS_AWARE[1])
    seen["taken up"] = run(folder, 2, ckpt=folder / "one.ckpt", **two)
    run(folder, 2, save=folder / "two.ckpt", **two)
    torch.save(seen, folder / f"rank{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
