"""A run resumed from any checkpoint sees what the whole run saw from there on, and Lightning counts as it did there.

Each case trains once, writing a checkpoint in several hooks of every batch, and then resumes from every one of them in
a new Trainer with a new DataModule.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset, get_worker_info

from ddpm_data import (
    DDPMDataModule,
    DensityTimesteps,
    ForwardDiffusion,
    ForwardProcess,
    LossAwareTimesteps,
    Triple,
    UniformTimesteps,
    densities,
    noises,
    processes,
    schedules,
    weights,
)
from ddpm_data.datamodule.same_objective import Summary, find_differences, summarise
from tests.conftest import Recorder, trainer, uint8_images

BETAS = schedules.linear(50)
EPOCHS = 2
HOOKS = ("training_step", "on_train_batch_end", "on_validation_end", "on_train_epoch_end")


class Seen(NamedTuple):
    """One batch, as the model saw it."""

    epoch: int
    batch_idx: int
    global_step: int
    last: bool
    batches: float
    rows: tuple[bytes, ...]


class Steps(Logger):
    """Keeps the steps that metrics are logged at."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    name = "steps"
    version = 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # Lightning's
        """Nothing to keep."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "loss" in metrics and step is not None:
            self.steps.append(step)


class Model(L.LightningModule):
    """Notes every batch, validation and epoch; writes checkpoints where told."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder = folder
        self.seen: list[Seen] = []
        self.logged: list[int] = []
        self.validated: list[tuple[int, int]] = []
        self.validated_after: list[int] = []  # batches
        self.ended: list[int] = []
        self.done_at_save: dict[str, tuple[int, int]] = {}

    def save(self, hook: str) -> None:
        if self.folder and not self.trainer.sanity_checking:
            name = f"{len(self.seen):03d}-{hook}"
            self.trainer.save_checkpoint(self.folder / f"{name}.ckpt")
            self.done_at_save[name] = len(self.validated), len(self.ended)

    def on_train_epoch_start(self) -> None:
        self.save("on_train_epoch_start")

    def training_step(self, batch: Triple, batch_idx: int) -> dict[str, Tensor]:
        rows = tuple(row.numpy().tobytes() for row in batch.x_t)
        last, count = self.trainer.is_last_batch, self.trainer.num_training_batches
        self.seen.append(Seen(self.current_epoch, batch_idx, self.global_step, last, count, rows))
        self.save("training_step")
        self.log("loss", 1.0)
        weight = self.trainer.datamodule.loss_weight(batch.t).mean()  # type: ignore[attr-defined]  # fit() was given one
        loss = (self.weight - batch.x_t.mean()).square().sum() * weight
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()  # type: ignore[union-attr]  # there is one
            self.manual_backward(loss)
            optimizer.step()  # type: ignore[union-attr]
        return {"loss": loss, "losses": batch.x_t.square().flatten(1).mean(1) * (1 + batch.t)}

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: ANN401  # Lightning's
        self.save("on_train_batch_end")

    def validation_step(self, batch: Triple, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.validated.append((self.current_epoch, self.global_step))
            self.validated_after.append(len(self.seen))

    def on_validation_end(self) -> None:
        self.save("on_validation_end")

    def on_train_epoch_end(self) -> None:
        self.ended.append(self.current_epoch)
        self.save("on_train_epoch_end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Source(IterableDataset[Tensor]):
    """Gives images in an order of its own, shared out among workers; as its length is not known, nor is the last."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        return iter(self.images[info.id :: info.num_workers] if info else self.images)


def run(
    tmp_path: Path,
    folder: Path | None = None,
    ckpt: Path | None = None,
    data: dict[str, Any] | None = None,
    touch: bool = False,
    iterable: bool = False,
    manual: bool = False,
    **options: Any,  # noqa: ANN401  # Trainer's own
) -> Model:
    """Train; the model that did."""
    model = Model(folder)
    model.automatic_optimization = not manual
    train, val = TensorDataset(uint8_images(21, 1, 2, 2)), TensorDataset(uint8_images(3, 1, 2, 2))
    if iterable:
        train, val = Source(train.tensors[0]), Source(val.tensors[0])  # type: ignore[assignment]
    dm = DDPMDataModule(train, val, **(dict(schedule=BETAS, batch_size=4) | (data or {})))  # type: ignore[arg-type]
    logger = Steps()
    fit = trainer(tmp_path, **(dict(max_epochs=EPOCHS, logger=logger, log_every_n_steps=1) | options))
    if touch:

        class Touch(L.Callback):
            def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                assert trainer.estimated_stepping_batches > 0

        fit.callbacks.append(Touch())  # type: ignore[attr-defined]
    fit.fit(model, datamodule=dm, ckpt_path=ckpt)
    assert fit.current_epoch == EPOCHS, ckpt
    model.logged = logger.steps
    return model


def seen_before(checkpoint: Path, accumulate: int, per_epoch: int) -> int:
    """Batches whose optimizer step is in the checkpoint."""
    number, _, hook = checkpoint.stem.partition("-")
    done = int(number) - (hook == "training_step")
    if done % per_epoch == 0 and hook != "training_step":
        return done
    return done - done % per_epoch % accumulate


LOSS_AWARE = dict(schedule=schedules.linear(4), timesteps=LossAwareTimesteps(every=2, sightings=1, decay=0.5))
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "drop_last": (dict(drop_last=True), {}),
    "accumulated": ({}, dict(accumulate_grad_batches=2)),
    "accumulated by four": (dict(drop_last=True), dict(accumulate_grad_batches=4)),
    "sanity check": ({}, dict(num_sanity_val_steps=2)),
    "estimated steps read": ({}, dict(touch=True)),
    "validated every two batches": ({}, dict(val_check_interval=2)),
    "validated and accumulated": ({}, dict(val_check_interval=3, accumulate_grad_batches=2)),
    "no validation": ({}, dict(limit_val_batches=0)),
    "limited": ({}, dict(limit_train_batches=4)),
    "limited, no validation": ({}, dict(limit_train_batches=4, limit_val_batches=0)),
    "limited, validated every other epoch": ({}, dict(limit_train_batches=0.7, check_val_every_n_epoch=2)),
    "overfitted": ({}, dict(overfit_batches=2, limit_val_batches=0)),
    "a worker": (dict(num_workers=1), {}),
    "counted in steps": ({}, dict(max_epochs=-1, max_steps=12)),
    "manual optimisation": ({}, dict(manual=True)),
    "iterable": ({}, dict(iterable=True)),
    "iterable, accumulated": ({}, dict(iterable=True, accumulate_grad_batches=2)),
    "iterable, validated every two batches": ({}, dict(iterable=True, val_check_interval=2)),
    "iterable, limited": (dict(drop_last=True), dict(iterable=True, limit_train_batches=4)),
    "iterable, limited, no validation": ({}, dict(iterable=True, limit_train_batches=3, limit_val_batches=0)),
    "iterable, two workers": (dict(num_workers=2), dict(iterable=True)),
    "loss-aware": (LOSS_AWARE, {}),
    "loss-aware, accumulated": (LOSS_AWARE, dict(accumulate_grad_batches=2)),
    "loss-aware, iterable": (LOSS_AWARE, dict(iterable=True, val_check_interval=2)),
    "reloaded": ({}, dict(reload_dataloaders_every_n_epochs=1)),
    "reloaded, two workers": (dict(num_workers=2, persistent_workers=False), dict(reload_dataloaders_every_n_epochs=1)),
}


QUICK = {"plain", "accumulated", "iterable", "limited, no validation"}


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_from_any_checkpoint_the_rest_is_the_same(case: str, tmp_path: Path) -> None:
    data, options = CASES[case]
    saved = tmp_path / "saved"
    whole = run(tmp_path, saved, data=data, **options)
    per_epoch = len(whole.seen) // EPOCHS
    checkpoints = sorted(saved.glob("*.ckpt"))
    assert len(checkpoints) > 2 * len(whole.seen)
    if "loss-aware" in case:
        assert torch.load(checkpoints[-1], weights_only=True)["ddpm_data_loss_aware"]["number"] > 1
    if "worker" in case:
        checkpoints = checkpoints[2::9]
    for checkpoint in checkpoints:
        before = seen_before(checkpoint, options.get("accumulate_grad_batches", 1), per_epoch)
        if before == len(whole.seen) and "max_steps" in options:
            continue  # every step is done: Lightning's fit returns at once, without the epoch's end
        rest = run(tmp_path, ckpt=checkpoint, data=data, **options)
        assert rest.seen == whole.seen[before:], checkpoint.stem
        assert torch.equal(rest.weight, whole.weight), checkpoint.stem
        validated, ended = whole.done_at_save[checkpoint.stem]
        # A validation inside an accumulation window is repeated with the window.
        again = sum(after > before for after in whole.validated_after[:validated])
        assert rest.validated == whole.validated[validated - again :], checkpoint.stem
        assert rest.ended == whole.ended[ended:], checkpoint.stem
        assert rest.logged == whole.logged[len(whole.logged) - len(rest.logged) :], checkpoint.stem


def rows(seen: list[Seen]) -> list[bytes]:
    return sorted(row for batch in seen for row in batch.rows)


ELASTIC = [dict(batch_size=b, drop_last=d) for b in (1, 3, 6, 8, 21, 40) for d in (False, True) if b < 40 or not d]


@pytest.mark.slow
@pytest.mark.parametrize("data", ELASTIC, ids=str)
@pytest.mark.parametrize("drop_last", [False, True])
def test_another_batch_size_takes_up_the_rest_of_the_epoch(
    data: dict[str, Any], drop_last: bool, tmp_path: Path
) -> None:
    """Every example of the interrupted epoch once in total, but for what drop_last drops of it; then whole epochs."""
    saved = tmp_path / "saved"
    whole = run(tmp_path, saved, data=dict(drop_last=drop_last))
    fresh = run(tmp_path, data=data)
    for checkpoint in sorted(saved.glob("*on_train_batch_end.ckpt")) + sorted(saved.glob("*on_train_epoch_end.ckpt")):
        before = seen_before(checkpoint, 1, len(whole.seen) // EPOCHS)
        rest = run(tmp_path, ckpt=checkpoint, data=data)
        for epoch in range(EPOCHS):
            first = [batch for batch in whole.seen[:before] if batch.epoch == epoch]
            second = [batch for batch in rest.seen if batch.epoch == epoch]
            if not first:
                assert [batch.rows for batch in second] == [batch.rows for batch in fresh.seen if batch.epoch == epoch]
                continue
            total = rows(first) + rows(second)
            assert len(set(total)) == len(total)
            left = 21 - len(rows(first))
            dropped = left % data["batch_size"] if data["drop_last"] and second else 21 - len(total)
            assert len(total) == 21 - dropped
            assert dropped == 0 or data["drop_last"] or not second
            if second:
                count = fresh.seen[0].batches
                assert [batch.batch_idx for batch in second] == list(range(int(count) - len(second), int(count)))
                assert [batch.last for batch in second] == [False] * (len(second) - 1) + [True]


@pytest.mark.slow
def test_a_resumed_run_may_be_resumed_again(tmp_path: Path) -> None:
    """A chain of checkpoints, each written one batch after the last was loaded."""
    folder = tmp_path / "whole"
    whole = run(tmp_path, folder)
    checkpoint, seen = folder / "001-on_train_batch_end.ckpt", whole.seen[:1]
    for number in range(1, len(whole.seen)):
        folder = tmp_path / str(number)
        model = run(tmp_path, folder, ckpt=checkpoint)
        seen.append(model.seen[0])
        checkpoint = folder / "001-on_train_batch_end.ckpt"
    assert seen == whole.seen


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(seed=1), "seed=0, and this run has seed=1"),
        (dict(schedule=schedules.linear(60)), "num_timesteps=50, and this run has num_timesteps=60"),
        (dict(val=0.2), "length=21, and this run has length=17"),
    ],
)
def test_another_stream_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "saved")
    dm = DDPMDataModule(
        TensorDataset(uint8_images(21, 1, 2, 2)),
        **(dict(schedule=BETAS, batch_size=4) | change),  # type: ignore[arg-type]
    )
    with pytest.raises(ValueError, match=says):
        trainer(tmp_path).fit(Model(), datamodule=dm, ckpt_path=tmp_path / "saved" / "003-on_train_batch_end.ckpt")


def test_another_objective_is_refused(tmp_path: Path) -> None:
    """What differs is named, with both values; a checkpoint without an objective, as older ones are, is taken."""
    run(tmp_path, tmp_path / "saved")
    path = tmp_path / "saved" / "003-on_train_batch_end.ckpt"
    nudged = BETAS * (1 + 1e-9)  # as on another machine
    density = DensityTimesteps(densities.logit_normal)
    by_size = DensityTimesteps(densities.logit_normal, shift_by_size=densities.sd3_shift)
    changes: list[tuple[dict[str, Any], str]] = [
        (dict(target="velocity"), r"`target` \(noise there, velocity here\)\. A run"),
        (dict(weight=weights.min_snr), r"objective: `weight` \(weight 1 there, 0\.\d+ here, in range"),
        (dict(schedule=schedules.cosine(50)), r"`schedule` \(s\w+ 0\.\d+ there, 0\.\d+ here, in range"),
        (
            dict(schedule=processes.chain(BETAS, "t + 1")),
            r"`schedule` \(condition 0 there, 1 here, in range 1 of 50 of t",
        ),
        (dict(noise=noises.offset(0.1)), r"`noise` \(gaussian there, Offset\(strength=0\.1, rises=False\) here\)"),
        (dict(timesteps=density), r"`timesteps` \(UniformTimesteps there, DensityTimesteps here\)"),
        (dict(timesteps=UniformTimesteps(True)), r"`timesteps` \(low_discrepancy=False there, True here\)"),
        (
            dict(timesteps=by_size),
            r"`timesteps` \(UniformTimesteps there, DensityTimesteps here",
        ),
        (dict(schedule=nudged), ""),
    ]
    for change, says in changes:
        dm = DDPMDataModule(
            TensorDataset(uint8_images(21, 1, 2, 2)),
            TensorDataset(uint8_images(3, 1, 2, 2)),
            **(dict(schedule=BETAS, batch_size=4) | change),  # type: ignore[arg-type]
        )
        model, refuses = Model(), pytest.raises(ValueError, match=says) if says else nullcontext()
        with refuses:
            trainer(tmp_path).fit(model, datamodule=dm, ckpt_path=path)
        assert bool(model.seen) != bool(says)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["ddpm_data_objective"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    data = (TensorDataset(uint8_images(21, 1, 2, 2)), TensorDataset(uint8_images(3, 1, 2, 2)))
    model, dm = Model(), DDPMDataModule(*data, schedule=BETAS, batch_size=4, weight=weights.min_snr)
    trainer(tmp_path).fit(model, datamodule=dm, ckpt_path=tmp_path / "older.ckpt")
    assert model.seen


def test_a_setting_of_the_users_own_is_named_without_addresses() -> None:
    """They differ from process to process."""

    @dataclass
    class Mine:
        choose: Any
        low: int

        def __call__(self, position: Tensor, *_: object) -> Tensor:
            return position * 0 + self.low

    first, second, third = (
        summarise(ForwardDiffusion(ForwardProcess(schedules.linear(10)), timesteps=Mine(lambda: 0, low)))
        for low in (1, 1, 2)
    )
    assert first == second != third


def test_another_shift_by_size_is_another_objective() -> None:
    def summary(shift_by_size: Any) -> Summary:  # noqa: ANN401  # a function of a size, or None
        density = DensityTimesteps(densities.logit_normal, shift_by_size=shift_by_size)
        return summarise(ForwardDiffusion(processes.rectified_flow(100), timesteps=density))

    saved, now = summary(densities.sd3_shift), summary(densities.flux_shift_by_size)
    assert find_differences(saved, saved) == {}
    assert find_differences(saved, now)["timesteps"].startswith("shift_by_size=0.125, 1, 2.828 there, 1.")
    assert find_differences(saved, summary(None))["timesteps"] == "shift_by_size=0.125, 1, 2.828 there, None here"


def test_a_checkpoint_holds_a_handful_of_integers(tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "saved", data=dict(seed=2**64 - 1))
    saved = torch.load(tmp_path / "saved" / "003-on_train_batch_end.ckpt", weights_only=True)["DDPMDataModule"]
    place = dict(epoch=0, place=12, window=0, ended=0)
    assert saved == place | dict(seed=2**64 - 1, length=21, num_timesteps=50)


def test_a_training_step_without_losses_is_told_what_to_return(tmp_path: Path) -> None:
    dm = DDPMDataModule(TensorDataset(uint8_images(8, 1, 2, 2)), batch_size=4, **LOSS_AWARE)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"none under 'losses'.*Return \{'loss': loss, 'losses': losses\}"):
        trainer(tmp_path).fit(Recorder(), datamodule=dm)


def test_a_second_fit_begins_anew(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    whole = run(tmp_path, saved)
    dm = DDPMDataModule(
        TensorDataset(uint8_images(21, 1, 2, 2)), TensorDataset(uint8_images(3, 1, 2, 2)), schedule=BETAS, batch_size=4
    )
    resumed, anew = Model(), Model()
    trainer(tmp_path, max_epochs=EPOCHS).fit(resumed, datamodule=dm, ckpt_path=saved / "003-on_train_batch_end.ckpt")
    trainer(tmp_path, max_epochs=EPOCHS).fit(anew, datamodule=dm)
    assert resumed.seen == whole.seen[3:]
    assert anew.seen == whole.seen


def test_validation_from_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "saved")
    passes = []
    for checkpoint in (None, tmp_path / "saved" / "003-on_train_batch_end.ckpt"):
        dm, model = DDPMDataModule(None, TensorDataset(uint8_images(3, 1, 2, 2)), schedule=BETAS), Recorder()
        trainer(tmp_path).validate(model, datamodule=dm, ckpt_path=checkpoint, verbose=False)
        passes.append(model.all("val"))
    assert len(passes[0].t) == 3
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


class Renamed(DDPMDataModule):
    """What a user's module is called after a clean-up."""


@pytest.mark.parametrize(("checkpoint", "inside"), [("003-on_train_batch_end", True), ("on_train_epoch_end", False)])
def test_a_checkpoint_of_another_datamodule_is_refused_inside_an_epoch(
    checkpoint: str, inside: bool, tmp_path: Path
) -> None:
    """It began the epoch anew: the first examples came twice, the last ones never."""
    whole = run(tmp_path, tmp_path / "saved")
    path = next(path for path in sorted((tmp_path / "saved").iterdir()) if checkpoint in path.name)
    data = (TensorDataset(uint8_images(21, 1, 2, 2)), TensorDataset(uint8_images(3, 1, 2, 2)))
    model, renamed = Model(), Renamed(*data, schedule=BETAS, batch_size=4)
    fit = trainer(tmp_path, max_epochs=EPOCHS)
    if inside:
        with pytest.raises(ValueError, match=r"inside epoch 0, and holds the state of DDPMDataModule .* Renamed\."):
            fit.fit(model, datamodule=renamed, ckpt_path=path)
        assert not model.seen
    else:
        fit.fit(model, datamodule=renamed, ckpt_path=path)
        assert [seen.rows for seen in model.seen] == [seen.rows for seen in whole.seen if seen.epoch == 1]
