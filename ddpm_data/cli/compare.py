"""One table and one picture of a sweep: ``python -m ddpm_data.compare multirun/DATE/TIME``.

The table (``compare.csv``, ``compare.md``) has a row a job: what was varied, how the job ended, its lowest and its last
value of a metric. The picture (``compare.png``) lays the jobs' schedules over each other, and their validation losses
by timestep where ``callbacks.TimestepLoss`` has left them.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ddpm_data.cli._table import markdown
from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timestep_bins import BinLoss, read_losses

_SCHEDULES = ("schedule", "ddpm_data.schedule")


class Job(NamedTuple):
    """What one job left in its folder.

    Attributes:
        folder: Its folder.
        overrides: Value by key.
        ended: ``finished``, ``failed: ...``, ``started`` where it was killed or goes on, ``unknown``.
        readings: Of the metric, with their epochs.
        images_per_s: Its median reading, where there are some.
    """

    folder: Path
    overrides: dict[str, str]
    ended: str
    readings: list[tuple[float, str]]
    images_per_s: float | None

    def best(self) -> tuple[float, str]:
        """The lowest reading and its epoch; infinity where there is none that is a number."""
        return min((reading for reading in self.readings if math.isfinite(reading[0])), default=(math.inf, ""))


def main(arguments: list[str] | None = None) -> int:
    """Read, print, write; returns 1 if a job has not finished, else 0."""
    parser = argparse.ArgumentParser(prog="python -m ddpm_data.compare", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the sweep; its jobs are the folders in it")
    parser.add_argument("--metric", default="val_loss", help="column of metrics.csv, less is better (default val_loss)")
    parser.add_argument("--out", type=Path, help="folder for what is written (default that of the sweep)")
    args = parser.parse_args(arguments)
    jobs = sorted(read_jobs(args.folder, args.metric), key=lambda job: job.best()[0])
    out = args.out or args.folder
    out.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    lines = table(jobs, varied, args.metric)
    shared = " ".join(f"{key}={jobs[0].overrides[key]}" for key in keys if key not in varied)
    text = f"All with {shared}.\n\n" * bool(shared) + markdown(lines) + "\n"
    print(text)
    (out / "compare.md").write_text(text)
    with (out / "compare.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    print(f"wrote {out / 'compare.md'}\nwrote {out / 'compare.csv'}")
    _draw(jobs, varied, out / "compare.png")
    return int(any(job.ended != "finished" for job in jobs))


def read_jobs(folder: Path, metric: str) -> list[Job]:
    """The jobs of a sweep, by their numbers.

    Raises:
        SystemExit: There are none, or they have metrics, but none of them this one.
    """
    folders = {path.parent for path in folder.rglob("job.json")}
    folders |= {path.parent.parent for path in folder.rglob(".hydra/overrides.yaml")}
    if not folders:
        raise SystemExit(f"{folder.absolute()} has no jobs in it: no job.json, no .hydra. Give a sweep's folder.")
    rows = {path: _metrics(path) for path in sorted(folders, key=lambda path: (len(path.name), path))}
    columns = {column for found in rows.values() for row in found for column in row}
    if columns and metric not in columns:
        raise SystemExit(f"no job in {folder.absolute()} has {metric}: --metric is one of {', '.join(sorted(columns))}")
    return [_job(path, metric, found) for path, found in rows.items()]


def _metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a job's newest metrics.csv; none where it left none."""
    path = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _job(folder: Path, metric: str, rows: Sequence[dict[str, str]]) -> Job:
    from omegaconf import OmegaConf

    if (folder / "job.json").is_file():
        record = json.loads((folder / "job.json").read_text())
        overrides, ended = record["overrides"], record["status"]
        ended += f": {record['error']}".partition("\n")[0] if ended == "failed" else ""
    else:  # of an app without our Hydra callback
        overrides, ended = OmegaConf.load(folder / ".hydra" / "overrides.yaml"), "unknown"
    pairs = (str(override).lstrip("+").partition("=") for override in overrides)
    readings = [(float(row[metric]), row.get("epoch", "")) for row in rows if row.get(metric)]
    speeds = [float(row["images_per_s"]) for row in rows if row.get("images_per_s")]
    values = {key: value for key, _, value in pairs}
    return Job(folder, values, ended, readings, statistics.median(speeds) if speeds else None)


def table(jobs: Sequence[Job], varied: Sequence[str], metric: str) -> list[list[str]]:
    """A line a job, under a head."""
    lines = [["job", *varied, f"lowest {metric}", "at epoch", f"last {metric}", "images a second", "ended"]]
    for job in jobs:
        best, epoch = job.best()
        losses = [f"{best:.4g}" if epoch else "", epoch, f"{job.readings[-1][0]:.4g}" if job.readings else ""]
        speed = f"{job.images_per_s:,.0f}" if job.images_per_s else ""
        lines.append([job.folder.name, *(job.overrides.get(key, "") for key in varied), *losses, speed, job.ended])
    return lines


def _draw(jobs: Sequence[Job], keys: Sequence[str], path: Path) -> None:
    """Schedules, and losses by timestep, of the jobs that have them."""
    try:
        from ddpm_data.plots.curves import Curve, Panel, compare_curves
    except ImportError as error:
        print(f"no {path.name}: {error}")
        return
    snr, losses = {}, {}
    for job in jobs:
        name = f"{job.folder.name}: {' '.join(job.overrides.get(key, '') for key in keys)}"
        process = _process(job.folder)
        if process is None:
            continue
        t = torch.arange(process.num_timesteps)
        snr[name] = Curve(t / len(t), 10 * process.snr(t).log10())
        if rows := _last_losses(job.folder):
            middle = torch.tensor([(row.first_t + row.last_t + 1) / 2 for row in rows])
            losses[name] = Curve(middle / len(t), torch.tensor([row.loss for row in rows]))
    panels = [
        Panel("signal-to-noise ratio, dB", snr),
        Panel("validation loss of an example, last validation", losses, is_log=True),
    ]
    if any(panel.curves for panel in panels):
        compare_curves([panel for panel in panels if panel.curves], path)
        print(f"wrote {path}")


def _process(folder: Path) -> ForwardProcess | None:
    """The schedule that a job's config.yaml names, made anew; the modules that it names must be importable here."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if not (folder / "config.yaml").is_file():
        return None
    cfg = OmegaConf.load(folder / "config.yaml")
    node = next((node for key in _SCHEDULES if (node := OmegaConf.select(cfg, key)) is not None), None)
    try:
        return None if node is None else ForwardProcess(instantiate(node))
    except Exception as error:  # whatever the function raised: the job may have failed for that very reason
        print(f"job {folder.name} is not in the picture: {str(error).splitlines()[0]}")
        return None


def _last_losses(folder: Path) -> list[BinLoss]:
    tables = sorted(folder.rglob("timestep_loss.csv"), key=lambda path: path.stat().st_mtime)
    rows = [row for row in read_losses(tables[-1]) if row.loss is not None] if tables else []
    return [row for row in rows if row.step == rows[-1].step]
