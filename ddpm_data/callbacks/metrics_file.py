"""The logger that writes metrics.csv, and goes on with it when a run is resumed."""

import csv
import warnings
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

_COUNTERS = {"epoch", "step"}  # columns that say where a row belongs


class MetricsFile(CSVLogger):
    """Lightning's ``CSVLogger``, except that a run that resumes in the same folder continues ``metrics.csv``.

    Rows of steps that the resumed run repeats are replaced. If it repeats all, the old file is renamed to
    ``metrics-1.csv``. Lightning's logger deletes the file. The arguments are those of ``CSVLogger``.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the file."""
        if not isinstance(self._experiment, _ContinuingWriter):
            self._experiment = _ContinuingWriter(log_dir=self.log_dir)
        return self._experiment

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Write the rows up to a checkpoint, so that a killed run has them."""
        self.save()


class _ContinuingWriter(ExperimentWriter):
    """Writes rows below those of an earlier run."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._has_begun = False

    def _check_log_dir_exists(self) -> None:
        """Leave the files of an earlier run, which Lightning deletes here."""

    def save(self) -> None:
        """Write the rows logged since the last call."""
        if self.metrics and not self._has_begun:
            self._has_begun = True
            self._keep_earlier_rows(Path(self.metrics_file_path))
        super().save()

    def _keep_earlier_rows(self, path: Path) -> None:
        if not path.exists():
            return
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(file)
        if lines and not lines[-1].endswith("\n"):
            warnings.warn(
                f"{path} ends inside a line, as when a disk is full or a run is killed: {lines.pop()!r}. The line is "
                "left out.",
                stacklevel=2,
            )
        reader = csv.DictReader(lines)
        rows, columns = list(reader), list(reader.fieldnames or [])
        first = min(int(row["step"]) for row in self.metrics)
        repeated = set().union(*(row for row in self.metrics if row["step"] == first)) - _COUNTERS
        kept = [row for row in rows if _is_before(row, first, repeated)]
        if not kept:
            path.rename(_free_name(path))
            return
        self.metrics_keys = columns
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(kept)


def _is_before(row: dict[str, str], first: int, repeated: set[str]) -> bool:
    """Tell whether a row is none that a run repeats whose first step is ``first``, with the metrics ``repeated``.

    One step may have a row of training and one of validation. A run that was interrupted between them repeats one.
    """
    step = int(row["step"])
    return step < first or (step == first and not any(row.get(name) for name in repeated))


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return free
