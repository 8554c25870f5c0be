"""``ddpm-data compare``: make one table and one picture of a sweep.

The table (``compare.csv``, ``compare.md``) has a line per job: the values that were varied, how the job ended, and the
lowest and the last value of a metric. Losses are ranked among jobs with the same objective, since others measure other
errors. The picture (``compare.png``) shows the jobs' schedules in one panel. If ``callbacks.TimestepLoss`` wrote them,
it also shows their validation losses over the signal-to-noise ratio, where those of different schedules compare.
"""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_data.cli._command import explain_missing_picture, start_command
from ddpm_data.cli._objective import Objective, loss_kind, name_objectives, read_objective
from ddpm_data.cli._table import markdown_table
from ddpm_data.diffusion.process import GaussianProcess, make_process
from ddpm_data.diffusion.timestep_bins import MAX_DECIBELS, BinLoss, read_losses

_SCHEDULE_KEYS = ("schedule", "ddpm_data.schedule")
_NOT_COMPARABLE = (
    "The best job of each objective comes first. Jobs with different objectives are not ranked: their losses measure "
    "different errors, so the lower loss is not the better one."
)


class Job(NamedTuple):
    """The record that one job of a sweep left in its folder.

    Attributes:
        folder: The job's folder.
        name: The folder's name, or its path in the sweep's folder if names repeat there.
        overrides: Values by config key.
        ended: ``finished``, ``failed: ...``, ``interrupted at step ...``, ``started`` if it was killed or is running,
            or ``unknown``.
        readings: The metric's values, each with its epoch.
        images_per_s: The median of its readings; ``None`` if there are none.
        objective: What its loss measures.
    """

    folder: Path
    name: str
    overrides: dict[str, str]
    ended: str
    readings: list[tuple[float, str]]
    images_per_s: float | None
    objective: Objective

    def best(self) -> tuple[float, str]:
        """Return the lowest finite reading and its epoch, or infinity and no epoch if there is none."""
        return min((reading for reading in self.readings if math.isfinite(reading[0])), default=(math.inf, ""))


def main(arguments: list[str] | None = None) -> int:
    """Read a sweep's jobs, print their table, and write it and the picture.

    Args:
        arguments: Command-line arguments; ``None`` takes those of the process.

    Returns:
        1 if a job has not finished, else 0.

    Raises:
        SystemExit: An argument is wrong, or the folder has no jobs.
    """
    args = start_command("compare", arguments)
    groups = group_jobs(read_jobs(args.folder, args.metric), args.metric)
    jobs = [job for group in groups.values() for job in group]
    output_dir = args.output_dir or args.folder
    output_dir.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    lines = make_table(groups, varied, args.metric)
    common = " ".join(f"{key}={jobs[0].overrides[key]}" for key in keys if key not in varied)
    text = f"All with {common}.\n\n" * bool(common) + f"{_NOT_COMPARABLE}\n\n" * (len(groups) > 1)
    text += markdown_table(lines) + "\n"
    print(text)
    (output_dir / "compare.md").write_text(text, encoding="utf-8")
    with (output_dir / "compare.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    print(f"wrote {output_dir / 'compare.md'}\nwrote {output_dir / 'compare.csv'}")
    _draw_jobs(jobs, varied, output_dir / "compare.png")
    return int(any(job.ended != "finished" for job in jobs))


def read_jobs(folder: Path, metric: str) -> list[Job]:
    """Read the jobs of a sweep, in the order of their numbers.

    Args:
        folder: The sweep's folder.
        metric: The column of ``metrics.csv`` to read.

    Raises:
        SystemExit: The folder has no jobs, or the jobs have metrics but not this one.
    """
    folders = {path.parent for path in folder.rglob("job.json")}
    folders |= {path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}
    if not folders:
        raise SystemExit(f"{folder.absolute()} has no jobs in it: no job.json, no .hydra. Give a sweep's folder.")
    metrics = {path: _read_metrics(path) for path in sorted(folders, key=lambda path: (len(path.name), path))}
    columns = {column for rows in metrics.values() for row in rows for column in row}
    if columns and metric not in columns:
        raise SystemExit(f"no job in {folder.absolute()} has {metric}: --metric is one of {', '.join(sorted(columns))}")
    repeats = len({path.name for path in metrics}) < len(metrics)
    names = {path: path.relative_to(folder).as_posix() if repeats else path.name for path in metrics}
    return [_read_job(path, names[path], metric, rows) for path, rows in metrics.items()]


def group_jobs(jobs: Sequence[Job], metric: str) -> dict[str, list[Job]]:
    """Group jobs whose metric compares, the best first in each group.

    Args:
        jobs: The jobs of a sweep. The groups are in the order of their first jobs.
        metric: The metric's name. A loss compares jobs of one objective; another metric, such as FID, compares all.

    Returns:
        The jobs by the name of their objective, which is empty if all are in one group.
    """
    groups: dict[str, list[Job]] = {}
    names = name_objectives([job.objective for job in jobs]) if "loss" in metric.lower() else [""] * len(jobs)
    for name, job in zip(names, jobs, strict=True):
        groups.setdefault(name or ("unknown" if any(names) else ""), []).append(job)
    return {name: sorted(group, key=lambda job: job.best()[0]) for name, group in groups.items()}


def _read_metrics(folder: Path) -> list[dict[str, str]]:
    """Read the rows of a job's newest metrics.csv; without such a file there are none."""
    path = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if line.endswith("\n")))  # the last may be half written


def _read_job(folder: Path, name: str, metric: str, rows: Sequence[dict[str, str]]) -> Job:
    from omegaconf import OmegaConf

    overrides, ended = _read_record(folder)
    pairs = (str(override).lstrip("+").partition("=") for override in overrides)
    readings = [(_read_number(name, metric, row[metric]), row.get("epoch", "")) for row in rows if row.get(metric)]
    speeds = [_read_number(name, "images_per_s", text) for row in rows if (text := row.get("images_per_s"))]
    values = {key: value for key, _, value in pairs}
    speed = statistics.median(speeds) if speeds else None
    config = folder / "config.yaml"
    objective = read_objective(OmegaConf.load(config)) if config.is_file() else ()
    return Job(folder, name, values, ended, readings, speed, objective)


def _read_record(folder: Path) -> tuple[Sequence[str], str]:
    """Read a job's overrides and how it ended."""
    from omegaconf import OmegaConf

    ended = "unknown"  # of an app without our Hydra callback
    if (path := folder / "job.json").is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            overrides, ended = record["overrides"], record["status"]
            if not isinstance(overrides, list) or not isinstance(ended, str):
                raise TypeError("a list and a string are needed")
        except (ValueError, KeyError, TypeError):
            ended = f"unknown: {path.name} is damaged"
        else:
            ended += f": {record.get('error')}".partition("\n")[0] if ended == "failed" else ""
            ended += f" at step {record['step']}" if ended == "interrupted" and "step" in record else ""
            return overrides, ended
    path = folder / ".hydra" / "overrides.yaml"
    return [str(override) for override in OmegaConf.load(path)] if path.is_file() else [], ended


def _read_number(job: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SystemExit(f"metrics.csv of job {job} has {column}={text!r}, which is no number") from None


def make_table(groups: Mapping[str, Sequence[Job]], varied: Sequence[str], metric: str) -> list[list[str]]:
    """Make the cells of the table: a header, then a line per job.

    Args:
        groups: The jobs in the order of their lines, by their objective. If there are several, it has a column.
        varied: Config keys with a column each.
        metric: The metric's name, for the header.
    """
    lines = [["job", *varied, f"lowest {metric}", "at epoch", f"last {metric}", "images per second", "ended"]]
    for job in (job for group in groups.values() for job in group):
        best, epoch = job.best()
        losses = [f"{best:.4g}" if epoch else "", epoch, f"{job.readings[-1][0]:.4g}" if job.readings else ""]
        speed = f"{job.images_per_s:,.0f}" if job.images_per_s else ""
        lines.append([job.name, *(job.overrides.get(key, "") for key in varied), *losses, speed, job.ended])
    if len(groups) > 1:
        names = ["objective", *(name for name, group in groups.items() for _ in group)]
        lines = [[name, *line] for name, line in zip(names, lines, strict=True)]
    return lines


def _draw_jobs(jobs: Sequence[Job], keys: Sequence[str], path: Path) -> None:
    """Draw the schedules of the jobs that have one, and their losses: those that compare are in one panel."""
    if problem := explain_missing_picture(path.name):
        print(problem)
        return
    from ddpm_data.plots import Curve, Panel, compare_curves

    snr: dict[str, Curve] = {}
    losses: dict[Objective, dict[str, Curve]] = {}
    for job in jobs:
        name = f"{job.name}: {' '.join(job.overrides.get(key, '') for key in keys)}"
        process = _load_process(job.folder)
        if process is None:
            continue
        t = torch.arange(process.num_timesteps)
        snr[name] = Curve(t / len(t), 10 * process.snr(t).log10())
        if rows := _read_last_losses(job.folder):
            losses.setdefault(loss_kind(job.objective), {})[name] = Curve(*_losses_by_ratio(rows))
    kinds = dict(zip(losses, name_objectives(list(losses)), strict=True))
    panels = [Panel("signal-to-noise ratio, dB", snr)] if snr else []
    for kind, curves in losses.items():
        title = f"last validation loss{f', {kinds[kind]}' if kinds[kind] else ''}"
        panels.append(Panel(title, curves, is_log=True, over_snr=True))
    if panels:
        compare_curves(panels, path)
        print(f"wrote {path}")


def _losses_by_ratio(rows: Sequence[BinLoss]) -> tuple[Tensor, Tensor]:
    """Return the signal-to-noise ratios, in decibels, and the losses of the rows that have a finite ratio."""
    finite = [row for row in rows if abs(row.log_snr_db) < MAX_DECIBELS]
    return torch.tensor([row.log_snr_db for row in finite]), torch.tensor([row.loss for row in finite])


def _load_process(folder: Path) -> GaussianProcess | None:
    """Build the forward process from the schedule in a job's config.yaml, whose modules must be importable here."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if not (folder / "config.yaml").is_file():
        return None
    cfg = OmegaConf.load(folder / "config.yaml")
    node = next((node for key in _SCHEDULE_KEYS if (node := OmegaConf.select(cfg, key)) is not None), None)
    try:
        return None if node is None else make_process(instantiate(node))
    except Exception as error:  # any error of the user's function, which may also be why the job failed
        print(f"job {folder.name} is not in the picture: {str(error).splitlines()[0]}")
        return None


def _read_last_losses(folder: Path) -> list[BinLoss]:
    tables = sorted(folder.rglob("timestep_loss.csv"), key=lambda path: path.stat().st_mtime)
    rows = [row for row in read_losses(tables[-1]) if row.loss is not None] if tables else []
    return [row for row in rows if row.step == rows[-1].step]
