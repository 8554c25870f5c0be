"""Continuing inside an epoch: the stream's place in a checkpoint, and Lightning's own counters made to agree with it.

Lightning restores its counters but no place in the data, and its counters count batches, which are something else once
their size or the number of processes has changed. So the DataModule saves a place, and when a checkpoint is loaded the
counters are rewritten to say how much of the epoch is done in today's batches. Their keys are Lightning's private ones:
pyproject.toml admits the minor releases that tests/test_resume.py has passed on.
"""

from typing import Any

import lightning as L

from ddpm_data.loading.samplers import ENDLESS, EpochPlans


class StreamCheckpoint(L.Callback):
    """Says where a run stands in the training stream, and takes another run up from there.

    A callback, since its ``on_load_checkpoint`` comes after the DataModule's ``load_state_dict`` and before Lightning
    restores its loops, if it stands first in the list.

    Args:
        epochs: How the training sampler plan them, which is told where to begin.
        stream: What makes it this stream and no other (seed, length, steps): a checkpoint must agree.
    """

    def __init__(self, epochs: EpochPlans, stream: dict[str, int]) -> None:
        self.epochs = epochs
        self.stream = stream
        self._loaded: dict[str, int] | None = None
        self._done_before = (0, 0)  # an epoch, and how many of its batches, of today's size, were done before
        self._mend_step = False

    def attach(self, trainer: L.Trainer) -> None:
        """Stand first among the Trainer's callbacks, in place of what an earlier ``fit`` left there."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector of the Trainer's
        callbacks[:] = [self, *(callback for callback in callbacks if not isinstance(callback, StreamCheckpoint))]

    def save(self, trainer: L.Trainer) -> dict[str, int]:
        """The place after the last optimizer step, right in any hook, also in the middle of a step.

        Returns:
            ``epoch``; ``place``, the first example of it that no finished step has seen; ``window``, batches delivered
            since that step (in flight not counted), which a resumed run repeats; ``ended``, 1 if all of the epoch's
            batches were; and the stream's own values.
        """
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress  # Lightning types its trackers as their base class
        epoch, done = trainer.current_epoch, batches.current.processed
        if trainer.fit_loop.epoch_progress.current.ready == epoch:  # between two epochs
            return {"epoch": epoch, "place": 0, "window": 0, "ended": 0} | self.stream
        in_flight = batches.current.ready != done
        last = not in_flight and (batches.is_last_batch or done == trainer.num_training_batches)
        window = 0 if last else done % trainer.accumulate_grad_batches
        before = self._done_before[1] if epoch == self._done_before[0] else 0
        place = self.epochs.plan_for(epoch).end(done - window - before - 1)
        return {"epoch": epoch, "place": place, "window": window, "ended": int(last)} | self.stream

    def load(self, saved: dict[str, int]) -> None:
        """Remember what :meth:`save` said, until Lightning's part of the checkpoint is at hand.

        Raises:
            ValueError: It was said of another stream.
        """
        for key, now in self.stream.items():
            if saved.get(key) != now:
                raise ValueError(
                    f"the checkpoint was written with {key}={saved.get(key)}, and this run has {key}={now}: it would "
                    "not see the rest of the same stream. Restore that value, or begin anew without the checkpoint."
                )
        self._loaded = saved

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Point the sampler to the place, and rewrite the counters that Lightning will load."""
        if self._loaded is None or trainer.state.fn != "fit":
            return
        epoch, place, window, ended = (self._loaded[key] for key in ("epoch", "place", "window", "ended"))
        counters = checkpoint["loops"]["fit_loop"]
        progress = counters["epoch_progress"]
        begun = progress["current"]["ready"] != progress["current"]["processed"]
        done, left = self._batches(trainer, place) if begun else (0, 1)
        left = 0 if ended and self.epochs.plan.length == ENDLESS else left  # how long it was is not in the plan
        self.epochs.resumed = (epoch, place)
        self._done_before = (epoch, done)
        self._mend_step = True
        if not begun:
            for part in progress.values():
                part |= dict.fromkeys(part, part["processed"])
        elif window == 0:
            _mark_validation_as_due(counters)
        _count_batches(counters, done, window, last=not left)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,  # noqa: ANN401  # Lightning's
        batch_idx: int,
    ) -> None:
        """Keep the loggers' step at the optimizer's, in manual optimisation at the batch's, when restarting."""
        loop: Any = trainer.fit_loop.epoch_loop
        if self._mend_step:
            batches = loop.batch_progress.total.processed
            loop._batches_that_stepped = trainer.global_step if pl_module.automatic_optimization else batches
        self._mend_step = False

    def _batches(self, trainer: L.Trainer, place: int) -> tuple[int, int]:
        """How many of the epoch's batches, of today's size, are done at a place and how many are left."""
        plan, limit = self.epochs.plan, trainer.limit_train_batches
        whole = plan.count_batches()
        count = min(whole, limit) if isinstance(limit, int) else int(whole * limit)
        left = plan._replace(start=place).count_batches()
        if count < whole:  # the epoch ends early, at a place of its own
            left = min(left, max(0, -(-(plan.end(count - 1) - place) // plan.batch)))
        return count - left, left


def _mark_validation_as_due(counters: dict[str, Any]) -> None:
    """A checkpoint written when a batch ends comes before the validation of that batch: have it run if it is due."""
    batches = counters["epoch_loop.batch_progress"]["total"]
    if batches["completed"] < batches["processed"]:
        for part in counters["epoch_loop.val_loop.batch_progress"].values():
            if isinstance(part, dict):
                part |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def _count_batches(counters: dict[str, Any], done: int, window: int, last: bool) -> None:
    batches = counters["epoch_loop.batch_progress"]
    total = batches["total"]["processed"] - window
    batches["current"] |= dict.fromkeys(batches["current"], done)
    batches["total"] |= dict.fromkeys(batches["total"], total)
    batches["is_last_batch"] = last
