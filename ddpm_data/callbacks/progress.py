"""The callback that shows how far a run is."""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from ddpm_data._checks import check_float


class Progress(TQDMProgressBar):
    """A progress bar with the number of epochs and the time left for the whole run; in a log file, lines instead.

    The bar is Lightning's. It is drawn anew after ``refresh_seconds``, so it moves with every batch where batches are
    slow. If the output is neither a terminal nor a notebook, a line is printed every ``line_seconds``, and at the end.

    Args:
        refresh_seconds: Seconds between two updates of the bar, above 0.
        line_seconds: Seconds between two lines, above 0.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is not above 0.
    """

    BAR_FORMAT = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"

    def __init__(self, refresh_seconds: float = 0.2, line_seconds: float = 30.0) -> None:
        super().__init__()
        for name, value in (("refresh_seconds", refresh_seconds), ("line_seconds", line_seconds)):
            if check_float("Progress", f"callbacks.progress_bar.{name}", value) <= 0:
                raise ValueError(
                    f"Progress({name}={value}): it must be above 0. Change `callbacks.progress_bar.{name}`, or remove "
                    "the callback."
                )
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self._prints_lines = self._is_quiet = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose between the bar and lines."""
        super().setup(trainer, pl_module, stage)
        is_shown = sys.stdout.isatty() or "ipykernel" in sys.modules  # a notebook shows tqdm's bar
        is_wanted = self.is_enabled or (self._is_quiet and trainer.is_global_zero)  # quiet since an earlier run
        self._is_quiet = is_wanted and not is_shown
        self._prints_lines = self._is_quiet and stage == "fit"
        if self._is_quiet:
            self.disable()
        elif is_wanted:
            self.enable()

    def on_train_start(self, *args: Any) -> None:  # noqa: ANN401  # Lightning's
        """Begin to measure the run's time."""
        super().on_train_start(*args)
        trainer = args[0]
        self._began = self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None  # when a first batch had ended, and how many then were done
        self._begin_epoch(trainer)  # a run that resumes inside an epoch does not call the next method

    def on_train_epoch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Begin an epoch's bar."""
        self._begin_epoch(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:  # noqa: ANN401  # Lightning's
        """Draw the bar, or print a line, if it is time to."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, self._count_done(trainer)
        if now - self._shown < (self.line_seconds if self._prints_lines else self.refresh_seconds):
            return
        self._shown = now
        if self._prints_lines:
            self._print_line(trainer)
        else:
            self._describe(trainer)
            super().on_train_batch_end(trainer, *args)

    def on_train_end(self, *args: Any) -> None:  # noqa: ANN401  # Lightning's
        """Show the end."""
        if self._prints_lines:
            self._print_line(args[0])
        elif self._first is not None:
            self._describe(args[0])
            self.train_progress_bar.n = self._batches(args[0]).current.processed
            self.train_progress_bar.set_postfix(self.get_metrics(*args))
        super().on_train_end(*args)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics to show. A narrow terminal cuts the end off, so the speed comes last."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return dict(sorted(metrics.items(), key=lambda item: item[0] == "images_per_s"))

    def on_exception(self, trainer: L.Trainer, *_: object) -> None:
        """Leave the bar as it is, so that what is printed next does not come before it."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def _begin_epoch(self, trainer: L.Trainer) -> None:
        self._describe(trainer)
        self.train_progress_bar.reset(self._epoch_length(trainer))

    def _describe(self, trainer: L.Trainer) -> None:
        self.train_progress_bar.set_description_str(f"{self._epoch(trainer)} {self._time_left(trainer)}", refresh=False)

    def _print_line(self, trainer: L.Trainer) -> None:
        metrics = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.get_metrics(trainer, trainer.lightning_module).items()
        )
        print(f"{self._epoch(trainer)} step {trainer.global_step} {self._time_left(trainer)} {metrics}", flush=True)

    def _epoch(self, trainer: L.Trainer) -> str:
        last = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
        epoch = trainer.current_epoch + 1 if last is None else min(trainer.current_epoch + 1, last)
        return f"Epoch {epoch}" + (f"/{last}" if last is not None else "")

    def _time_left(self, trainer: L.Trainer) -> str:
        """Tell the run's time, and estimate the rest from its mean, with validations but without the first batch.

        The first batch takes longer than others, because functions are compiled.
        """
        now, done, total = time.monotonic(), self._count_done(trainer), self._count_all(trainer)
        elapsed = _clock(now - self._began)
        if total is None or self._first is None or done == self._first[1]:
            return f"[{elapsed}]"
        seconds_per_batch = (now - self._first[0]) / (done - self._first[1])
        return f"[{elapsed}, {_clock(seconds_per_batch * max(0, total - done))} left]"

    def _epoch_length(self, trainer: L.Trainer) -> int | None:
        batches = trainer.num_training_batches
        return int(batches) if batches != float("inf") else None

    def _count_done(self, trainer: L.Trainer) -> int:
        """Count the batches done, those of before a restart included."""
        return int(self._batches(trainer).total.processed)

    def _batches(self, trainer: L.Trainer) -> Any:  # noqa: ANN401  # Lightning types its trackers as their base class
        return trainer.fit_loop.epoch_loop.batch_progress

    def _count_all(self, trainer: L.Trainer) -> int | None:
        """Count the batches that the run will have done at its end, if that is known."""
        length = self._epoch_length(trainer)
        counts = []
        if length is not None and trainer.max_epochs is not None and trainer.max_epochs > 0:
            counts.append(length * trainer.max_epochs)
        if trainer.max_steps > 0:
            every = trainer.accumulate_grad_batches
            epochs, rest = divmod(trainer.max_steps, -(-length // every)) if length else (0, trainer.max_steps)
            counts.append(epochs * (length or 0) + rest * every)  # an epoch's last step may take fewer batches
        return min(counts, default=None)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
