"""metrics.csv of a run that is resumed in its folder, or that starts anew in one."""

from pathlib import Path

import pytest

from ddpm_data.callbacks import MetricsFile
from tests.callbacks.helpers import rows_of


def log(folder: Path, *rows: tuple[int, dict[str, float]]) -> None:
    """A logger at work, with a write after every row."""
    logger = MetricsFile(folder, name="", version="", flush_logs_every_n_steps=1)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    logger.finalize("success")


def test_a_resumed_run_replaces_the_rows_it_repeats_and_keeps_the_others(tmp_path: Path) -> None:
    log(tmp_path, (0, {"a": 1}), (1, {"a": 2}), (1, {"b": 3}), (2, {"a": 4}), (3, {"a": 5}))
    log(tmp_path, (2, {"a": 6}), (2, {"c": 7}), (5, {"a": 8}))
    rows = [{name: value for name, value in row.items() if value} for row in rows_of(tmp_path / "metrics.csv")]
    expected = [(0, "a", 1), (1, "a", 2), (1, "b", 3), (2, "a", 6), (2, "c", 7), (5, "a", 8)]
    assert rows == [{"step": str(step), name: str(value)} for step, name, value in expected]


def test_a_run_that_was_interrupted_before_its_validation_keeps_the_row_of_training(tmp_path: Path) -> None:
    log(tmp_path, (4, {"epoch": 0, "train": 1}))
    log(tmp_path, (4, {"epoch": 0, "val": 2}), (5, {"epoch": 1, "train": 3}))
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(row["step"], row["train"], row["val"]) for row in rows] == [("4", "1", ""), ("4", "", "2"), ("5", "3", "")]


def test_runs_that_repeat_everything_leave_the_old_files(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        log(tmp_path, (0, {"a": value}))
    names = ("metrics-1.csv", "metrics-2.csv", "metrics.csv")
    assert [rows_of(tmp_path / name) for name in names] == [[{"a": str(value), "step": "0"}] for value in (1, 2, 3)]


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_a_line_that_ends_inside_is_left_out(kept: int, tmp_path: Path) -> None:
    """Of a full disk, or of a process that was killed as it wrote."""
    log(tmp_path, (0, {"a": 1.5}), (1, {"a": 2.5}))
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole.removesuffix(last) + last[:kept])
    with pytest.warns(UserWarning, match="metrics.csv ends inside a line"):
        log(tmp_path, (1, {"a": 2.5}))
    assert path.read_bytes() == whole


def test_a_logger_that_logs_nothing_changes_nothing(tmp_path: Path) -> None:
    log(tmp_path, (0, {"a": 1}))
    log(tmp_path)
    assert rows_of(tmp_path / "metrics.csv") == [{"a": "1", "step": "0"}]
