"""Processes that train together divide one stream, so all must have been given the same: here they compare it.

Without this, a node that lacks one file, or an argument that depends on the rank, would have processes wait for each
other for ever, or train on noise that they share.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import lightning as L
from torch import distributed

from ddpm_data._distributed import World
from ddpm_data._keys import warn
from ddpm_data.datamodule._trainer import get_trainer_world
from ddpm_data.datamodule.same_objective import Summary, find_differences, summarise
from ddpm_data.datamodule.splits import Splits
from ddpm_data.diffusion.guidance import ConditionDropout
from ddpm_data.diffusion.transform import ForwardDiffusion
from ddpm_data.types import Stage

_TRAINER_ARGUMENTS = (
    *("max_epochs", "max_steps", "accumulate_grad_batches", "precision", "overfit_batches"),
    *("limit_train_batches", "limit_val_batches", "val_check_interval", "check_val_every_n_epoch"),
)


class ProcessComparison(L.Callback):
    """Compares a Trainer's processes before it begins, in hooks that Lightning calls in all of them.

    That is not so of ``setup()``, which one process may call alone.

    Args:
        compare: Compares them.
    """

    def __init__(self, compare: Callable[[L.Trainer], None]) -> None:
        self.compare = compare

    def attach(self, trainer: L.Trainer) -> None:
        """Become one of the Trainer's callbacks, and replace the one of an earlier ``setup()``."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector of the Trainer's
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, ProcessComparison)]
        callbacks.append(self)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare before validation is tried."""
        self.compare(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare again: under some strategies checkpoints are read in between."""
        self.compare(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare, if the validation is not that of a fit."""
        if trainer.state.fn == "validate":
            self.compare(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare."""
        self.compare(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare."""
        self.compare(trainer)


class Given(NamedTuple):
    """What one process has been given.

    Attributes:
        facts: What has to be equal, by a config key or a name.
        objective: The summary of the objective, whose tables have other last digits on other machines.
        items: What tells some items of the datasets from others, by their names.
    """

    facts: Mapping[str, object]
    objective: Summary
    items: Mapping[str, str]


def describe(
    trainer: L.Trainer,
    stages: Iterable[Stage],
    splits: Splits,
    transform: ForwardDiffusion,
    dropout: ConditionDropout,
    begin: tuple[int, int] | None,
) -> Given:
    """Describe what all processes of a Trainer must have been given alike.

    Args:
        trainer: The Trainer.
        stages: The stages that it runs.
        splits: The datasets, set up, and how they are read.
        transform: The batch transform.
        dropout: The dropout of conditions.
        begin: The epoch and the offset at which training begins; ``None`` for evaluation.
    """
    options, world = splits.options, get_trainer_world(trainer)
    facts: dict[str, object] = {"`seed`": transform.seed}
    items: dict[str, str] = {}
    for name in filter(splits.has, stages):
        images = splits.images(name)
        facts[f"the length of {name}"] = images.length
        if name == "train":
            identity = images.stream_identity(options, world)
            facts |= {f"the {key} of {name}": value for key, value in identity.items()}
        items |= images.name_items()
    facts |= {"`loader.batch_size`": options.batch_size, "`loader.drop_last`": options.drop_last}
    facts["`schedule.num_timesteps`"] = transform.process.num_timesteps
    if transform.latents is None:
        facts |= {f"`dataset.{name}`": value for name, value in vars(splits.processor).items()}
    facts |= {"`dataset.latents`": repr(transform.latents), "`dataset.flip`": transform.flip}
    facts |= {"`dataset.condition`": splits.conditions.describe(), "`dataset.condition_dropout`": dropout.probability}
    if begin is not None:
        facts["the start of training"] = f"epoch {begin[0]} after {begin[1]} images"
    facts |= {f"`trainer.{name}`": getattr(trainer, name, None) for name in _TRAINER_ARGUMENTS}
    return Given(facts, summarise(transform), items)


def compare_processes(given: Given, world: World) -> None:
    """Compare what the processes have been given. All of them have to call this.

    Other items are worth a warning only: they leave the stream's order and noise as they are, and may be random ones
    that somebody tries this with.

    Raises:
        ValueError: Two differ in something else. It is raised in every process.
    """
    everyone: list[Given] = [given] * world.size
    distributed.all_gather_object(everyone, given)
    first = everyone[0]
    for rank, other in enumerate(everyone):
        differences = list(_list_differences(first.facts, other.facts, rank))
        differences += [
            f"`{key}` differs between process 0 (there) and process {rank} (here): {difference}"
            for key, difference in find_differences(first.objective, other.objective).items()
        ]
        if differences:
            raise ValueError(
                f"{differences[0]}, but the processes divide one stream. Start every process with the same code, "
                "configuration, checkpoint and files."
            )
    others = (text for rank, other in enumerate(everyone) for text in _list_differences(first.items, other.items, rank))
    if world.rank == 0 and (difference := next(others, None)):
        warn(
            f"{difference}, so the processes do not have the same images: some are trained on twice and others never. "
            "Give every process the same files or arrays (random ones from a generator with a seed).",
            stacklevel=2,
        )


def _list_differences(first: Mapping[str, object], other: Mapping[str, object], rank: int) -> Iterator[str]:
    for name in {**first, **other}:
        if first.get(name) != other.get(name):
            yield f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {rank}"
