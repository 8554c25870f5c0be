"""``ddpm-data compare``: make one table and one picture of a sweep.

The table (``compare.csv``, ``compare.md``) has a line per job: the values that were varied, how the job ended, and the
lowest and the last value of a metric. The picture (``compare.png``) shows the jobs' schedules in one panel, and their
validation losses by timestep if ``callbacks.TimestepLoss`` wrote them.
"""

import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ddpm_data.cli._command import add_output_option, explain_missing_picture, start_command
from ddpm_data.cli._table import markdown_table
from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timestep_bins import BinLoss, read_losses

_SCHEDULE_KEYS = ("schedule", "ddpm_data.schedule")


class Job(NamedTuple):
    """The record that one job of a sweep left in its folder.

    Attributes:
        folder: The job's folder.
        overrides: Values by config key.
        ended: ``finished``, ``failed: ...``, ``interrupted at step ...``, ``started`` if it was killed or is running,
            or ``unknown``.
        readings: The metric's values, each with its epoch.
        images_per_s: The median of its readings; ``None`` if there are none.
    """

    folder: Path
    overrides: dict[str, str]
    ended: str
    readings: list[tuple[float, str]]
    images_per_s: float | None

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
    parser = start_command("compare", __doc__)
    parser.add_argument("folder", type=Path, help="the sweep's folder, which holds the folders of its jobs")
    parser.add_argument(
        "--metric", default="val_loss", help="column of metrics.csv; less is better (default: val_loss)"
    )
    add_output_option(parser, None, "the sweep's folder")
    args = parser.parse_intermixed_args(arguments)
    jobs = sorted(read_jobs(args.folder, args.metric), key=lambda job: job.best()[0])
    output_dir = args.output_dir or args.folder
    output_dir.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    lines = make_table(jobs, varied, args.metric)
    common = " ".join(f"{key}={jobs[0].overrides[key]}" for key in keys if key not in varied)
    text = f"All with {common}.\n\n" * bool(common) + markdown_table(lines) + "\n"
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
    return [_read_job(path, metric, rows) for path, rows in metrics.items()]


def _read_metrics(folder: Path) -> list[dict[str, str]]:
    """Read the rows of a job's newest metrics.csv; without such a file there are none."""
    path = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read_job(folder: Path, metric: str, rows: Sequence[dict[str, str]]) -> Job:
    from omegaconf import OmegaConf

    if (folder / "job.json").is_file():
        record = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        overrides, ended = record["overrides"], record["status"]
        ended += f": {record['error']}".partition("\n")[0] if ended == "failed" else ""
        ended += f" at step {record['step']}" if ended == "interrupted" and "step" in record else ""
    else:  # of an app without our Hydra callback
        overrides, ended = OmegaConf.load(folder / ".hydra" / "overrides.yaml"), "unknown"
    pairs = (str(override).lstrip("+").partition("=") for override in overrides)
    readings = [(float(row[metric]), row.get("epoch", "")) for row in rows if row.get(metric)]
    speeds = [float(row["images_per_s"]) for row in rows if row.get("images_per_s")]
    values = {key: value for key, _, value in pairs}
    return Job(folder, values, ended, readings, statistics.median(speeds) if speeds else None)


def make_table(jobs: Sequence[Job], varied: Sequence[str], metric: str) -> list[list[str]]:
    """Make the cells of the table: a header, then a line per job.

    Args:
        jobs: The jobs, in the order of their lines.
        varied: Config keys with a column each.
        metric: The metric's name, for the header.
    """
    lines = [["job", *varied, f"lowest {metric}", "at epoch", f"last {metric}", "images per second", "ended"]]
    for job in jobs:
        best, epoch = job.best()
        losses = [f"{best:.4g}" if epoch else "", epoch, f"{job.readings[-1][0]:.4g}" if job.readings else ""]
        speed = f"{job.images_per_s:,.0f}" if job.images_per_s else ""
        lines.append([job.folder.name, *(job.overrides.get(key, "") for key in varied), *losses, speed, job.ended])
    return lines


def _draw_jobs(jobs: Sequence[Job], keys: Sequence[str], path: Path) -> None:
    """Draw the schedules of the jobs that have one, and their losses by timestep."""
    if problem := explain_missing_picture(path.name):
        print(problem)
        return
    from ddpm_data.plots import Curve, Panel, compare_curves

    snr, losses = {}, {}
    for job in jobs:
        name = f"{job.folder.name}: {' '.join(job.overrides.get(key, '') for key in keys)}"
        process = _load_process(job.folder)
        if process is None:
            continue
        t = torch.arange(process.num_timesteps)
        snr[name] = Curve(t / len(t), 10 * process.snr(t).log10())
        if rows := _read_last_losses(job.folder):
            middle = torch.tensor([(row.first_t + row.last_t + 1) / 2 for row in rows])
            losses[name] = Curve(middle / len(t), torch.tensor([row.loss for row in rows]))
    panels = [
        Panel("signal-to-noise ratio, dB", snr),
        Panel("validation loss per example, last validation", losses, is_log=True),
    ]
    if any(panel.curves for panel in panels):
        compare_curves([panel for panel in panels if panel.curves], path)
        print(f"wrote {path}")


def _load_process(folder: Path) -> ForwardProcess | None:
    """Build the forward process from the schedule in a job's config.yaml, whose modules must be importable here."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if not (folder / "config.yaml").is_file():
        return None
    cfg = OmegaConf.load(folder / "config.yaml")
    node = next((node for key in _SCHEDULE_KEYS if (node := OmegaConf.select(cfg, key)) is not None), None)
    try:
        return None if node is None else ForwardProcess(instantiate(node))
    except Exception as error:  # any error of the user's function, which may also be why the job failed
        print(f"job {folder.name} is not in the picture: {str(error).splitlines()[0]}")
        return None


def _read_last_losses(folder: Path) -> list[BinLoss]:
    tables = sorted(folder.rglob("timestep_loss.csv"), key=lambda path: path.stat().st_mtime)
    rows = [row for row in read_losses(tables[-1]) if row.loss is not None] if tables else []
    return [row for row in rows if row.step == rows[-1].step]
