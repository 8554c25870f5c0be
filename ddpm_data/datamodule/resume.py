"""Resume inside an epoch: save the offset in the stream to checkpoints, and convert Lightning's counters to it.

Lightning saves how many batches of the epoch are done, but no offset in the data. If the batch size or the number of
processes changes, this count becomes wrong. So the DataModule saves the offset. When it loads a checkpoint,
:func:`rewrite_progress` converts Lightning's counters to batches of the current size.
"""

from copy import deepcopy
from typing import Any

import lightning as L

from ddpm_data.datamodule.same_objective import Summary, find_differences
from ddpm_data.loading.samplers import ENDLESS, EpochPlans

# The counters are private to Lightning. tests/datamodule/test_resume.py has passed on these minor releases.
_LIGHTNING_RELEASES = ("2.5", "2.6")
_OBJECTIVE = "ddpm_data_objective"  # the key of the objective's summary in a checkpoint


class StreamCheckpoint(L.Callback):
    """Saves the offset in the training stream to checkpoints, and resumes a run from there.

    It is a callback because a callback's ``on_load_checkpoint`` runs after the DataModule's ``load_state_dict`` and
    before Lightning restores its loops, if the callback is the first in the list.

    Args:
        plans: The plans of the training order. After a checkpoint is loaded, they begin at its offset.
        identity: The values that identify the stream (seed, length, steps). A checkpoint must have the same values.
        objective: The summary of the objective. A checkpoint that has one must have the same.
        owner: The name of the DataModule's class, under which Lightning stores its state.
    """

    def __init__(self, plans: EpochPlans, identity: dict[str, int], objective: Summary, owner: str) -> None:
        self.plans = plans
        self.identity = identity
        self.objective = objective
        self.owner = owner
        self._loaded: dict[str, int] | None = None
        self._done_before = (0, 0)  # the resumed epoch, and its batches of the current size that were done before
        self._restore_step = False

    @property
    def begin(self) -> tuple[int, int]:
        """The epoch and offset of the checkpoint that was loaded; without one, of the stream's begin."""
        return (0, 0) if self._loaded is None else (self._loaded["epoch"], self._loaded["place"])

    def attach(self, trainer: L.Trainer) -> None:
        """Become the first of the Trainer's callbacks, and replace the one of an earlier ``fit``."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector of the Trainer's
        callbacks[:] = [self, *(callback for callback in callbacks if not isinstance(callback, StreamCheckpoint))]

    def save(self, trainer: L.Trainer) -> dict[str, int]:
        """Return the state after the last optimizer step, in any hook and also in the middle of a step.

        Returns:
            The identity and four integers: ``epoch``; ``place``, the offset of the first example that no finished step
            has seen; ``window``, the batches of an unfinished gradient accumulation, which a resumed run repeats; and
            ``ended``, 1 if all batches of the epoch were delivered.
        """
        loop: Any = trainer.fit_loop  # Lightning types its trackers as their base class
        batches = loop.epoch_loop.batch_progress
        epoch, done = trainer.current_epoch, batches.current.processed
        if loop.epoch_progress.current.started == epoch:  # between two epochs, or in the hooks where one starts
            return {"epoch": epoch, "place": 0, "window": 0, "ended": 0} | self.identity
        in_flight = batches.current.ready != done
        ended = not in_flight and (batches.is_last_batch or done == trainer.num_training_batches)
        window = 0 if ended else done % trainer.accumulate_grad_batches
        before = self._done_before[1] if epoch == self._done_before[0] else 0
        offset = self.plans.plan_for(epoch).end(done - window - before - 1)
        return {"epoch": epoch, "place": offset, "window": window, "ended": int(ended)} | self.identity

    def load(self, state: dict[str, int]) -> None:
        """Store the state that :meth:`save` returned until Lightning calls :meth:`on_load_checkpoint`.

        Raises:
            ValueError: The state belongs to another stream.
        """
        for key, now in self.identity.items():
            if key == "batch_size" and state["epoch"] == state["place"] == 0:
                continue  # nothing was seen yet; so Lightning's search for a batch size may begin anew
            if state.get(key) != now:
                raise ValueError(
                    f"the checkpoint was written with {key}={state.get(key)}, and this run has {key}={now}: it would "
                    "not continue the same stream. Set that value back, or start a new run without the checkpoint."
                )
        self._loaded = state

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the summary of the objective."""
        checkpoint[_OBJECTIVE] = self.objective

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the order begin at the offset, and rewrite the counters that Lightning will load.

        Raises:
            ValueError: The checkpoint was written inside an epoch, and has no offset in the stream; or it was written
                with another objective.
        """
        if trainer.state.fn != "fit":
            return
        _refuse_another_objective(checkpoint, self.objective)
        if self._loaded is None:
            _refuse_unknown_offset(checkpoint, self.owner)
            return
        epoch, offset, window, ended = (self._loaded[key] for key in ("epoch", "place", "window", "ended"))
        has_begun = _is_inside_epoch(checkpoint["loops"]["fit_loop"])
        done, left = self._count_batches(trainer, offset) if has_begun else (0, 1)
        left = 0 if ended and self.plans.full.length == ENDLESS else left  # the plan does not know the epoch's length
        self.plans.resume_at(epoch, offset, has_ended=not left)
        self._done_before = (epoch, done)
        self._restore_step = True
        checkpoint["loops"]["fit_loop"] = rewrite_progress(
            checkpoint["loops"]["fit_loop"], L.__version__, done, window, is_last=not left
        )

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ANN401  # Lightning's
        batch_idx: int,
    ) -> None:
        """Set the loggers' step after a restart: to the optimizer's step, or in manual optimisation to the batch's."""
        loop: Any = trainer.fit_loop.epoch_loop
        if self._restore_step:
            batches = loop.batch_progress.total.processed
            loop._batches_that_stepped = trainer.global_step if pl_module.automatic_optimization else batches
        self._restore_step = False

    def _count_batches(self, trainer: L.Trainer, offset: int) -> tuple[int, int]:
        """Count the epoch's batches, of the current size, before and after an offset."""
        plan, limit = self.plans.full, trainer.limit_train_batches
        total = plan.count_batches()
        count = min(total, limit) if isinstance(limit, int) else int(total * limit)
        left = plan._replace(start=offset).count_batches()
        if count < total:  # a limit ends the epoch early
            left = min(left, max(0, -(-(plan.end(count - 1) - offset) // plan.global_batch_size)))
        return count - left, left


def _refuse_another_objective(checkpoint: dict[str, Any], objective: Summary) -> None:
    """Refuse a checkpoint of another objective; those written before objectives were saved have none."""
    differences = find_differences(checkpoint[_OBJECTIVE], objective) if _OBJECTIVE in checkpoint else {}
    if differences:
        changes = "; ".join(f"`{key}` ({change})" for key, change in differences.items())
        raise ValueError(
            f"the checkpoint was written with another objective: {changes}. A run that changes it on the way is "
            "neither of the two, and its losses do not compare. Set it back. To go on with another objective on "
            "purpose, start a new run from the model's weights alone, without `ckpt_path`: "
            "model.load_state_dict(torch.load(path)['state_dict'])."
        )


def _refuse_unknown_offset(checkpoint: dict[str, Any], owner: str) -> None:
    """Refuse a checkpoint from inside an epoch that another DataModule wrote, or none: it has no offset."""
    fit_loop = checkpoint["loops"]["fit_loop"]
    if not _is_inside_epoch(fit_loop):  # the next one begins anyway
        return
    epoch = fit_loop["epoch_progress"]["current"]["processed"]
    others = [key for key, state in checkpoint.items() if isinstance(state, dict) and {"epoch", "place"} <= set(state)]
    states = " and ".join(others) or "no DDPMDataModule"
    raise ValueError(
        f"the checkpoint was written inside epoch {epoch}, and holds the state of {states} in place of "
        f"{owner}. So the rest of the epoch is unknown, and a resumed run would repeat some examples and skip "
        "others. Give the DataModule's class its old name, or resume from a checkpoint written when an epoch ended."
    )


def rewrite_progress(fit_loop: dict[str, Any], release: str, done: int, window: int, is_last: bool) -> dict[str, Any]:
    """Convert Lightning's fit-loop counters to batches of the current size, and return them.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``; not changed.
        release: Lightning's version.
        done: Batches of the epoch that are done.
        window: Batches of an unfinished gradient accumulation, which are repeated and so not counted as done.
        is_last: Whether no batch of the epoch is left.

    Raises:
        RuntimeError: We do not know the counters of this release of Lightning.
    """
    if ".".join(release.split(".")[:2]) not in _LIGHTNING_RELEASES:
        raise RuntimeError(
            f"lightning {release}: we do not know how its checkpoints count batches, so a run cannot resume inside "
            f"an epoch. Install a release of {' or '.join(_LIGHTNING_RELEASES)}: pip install 'lightning<2.7'."
        )
    counters = deepcopy(fit_loop)
    epochs, batches = counters["epoch_progress"], counters["epoch_loop.batch_progress"]
    if not _is_inside_epoch(counters):
        for part in epochs.values():
            part |= dict.fromkeys(part, part["processed"])
    elif window == 0 and (batches["total"]["completed"] < batches["total"]["processed"] or _is_validating(counters)):
        # Written when a batch ended, which comes before the validation of that batch, or in that validation: have it
        # run if it is due, from its start, because means over its first part are not in the checkpoint.
        for part in counters["epoch_loop.val_loop.batch_progress"].values():
            if isinstance(part, dict):
                part |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    batches["total"] |= dict.fromkeys(batches["total"], batches["total"]["processed"] - window)
    batches["current"] |= dict.fromkeys(batches["current"], done)
    batches["is_last_batch"] = is_last
    return counters


def _is_inside_epoch(fit_loop: dict[str, Any]) -> bool:
    """Tell whether counters were saved inside an epoch: after the hooks at its start, before those at its end."""
    current = fit_loop["epoch_progress"]["current"]
    return bool(current["started"] != current["processed"])


def _is_validating(fit_loop: dict[str, Any]) -> bool:
    """Tell whether counters were saved inside a validation."""
    current = fit_loop["epoch_loop.val_loop.batch_progress"]["current"]
    return bool(current["ready"] != current["completed"])
