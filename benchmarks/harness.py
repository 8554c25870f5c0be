"""What the benchmarks share: interleaved timing, the machine in words, and results as JSON, Markdown and a picture."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Row = dict[str, float | str]


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int, threads: tuple[int, ...]) -> dict[str, float]:
    """Median seconds of each way, at the number of threads that suits it best, all of them taken in turn.

    Args:
        ways: What to time, by name.
        rounds: How often each is run at each number of threads, after three runs that are not counted.
        threads: Numbers of threads to try.
    """
    best = dict.fromkeys(ways, float("inf"))
    for count in threads:
        torch.set_num_threads(count)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 3):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                if number >= 3:
                    times[name].append(time.perf_counter() - began)
        best = {name: min(best[name], statistics.median(times[name])) for name in ways}
    return best


def machine() -> str:
    """Processor, cores, versions."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({vectors}), {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def markdown(rows: list[Row]) -> str:
    """The rows as a table; numbers below 1,000 to two places."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (value if isinstance(value, str) else _figure(value) for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def report(title: str, rows: list[Row], out: Path | None) -> None:
    """Print the machine and the table; write ``<title>.json`` too where asked."""
    print(f"{machine()}\n\n{markdown(rows)}")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{title}.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def bars(title: str, rows: list[Row], unit: str, path: Path, log: bool = False) -> None:
    """A bar for every number in the rows, a group a row, named by the row's first value."""
    from matplotlib import pyplot

    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.9 * len(rows)), layout="constrained")
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = [float(row[name]) for row in rows]
        drawn = axes.barh([i + place * height for i in range(len(rows))], values, height * 0.9, label=name)
        if len(names) == 1:  # then a row is a way, and ours stand out by colour
            for bar, row in zip(drawn, rows, strict=True):
                bar.set_color("C0" if str(next(iter(row.values()))).startswith("ddpm_data") else "0.7")
        axes.bar_label(drawn, fmt="{:.2f}" if max(values) < 100 else "{:,.0f}", padding=2, fontsize=8)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(rows))], [str(next(iter(row.values()))) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    if log:
        axes.set_xscale("log")
        unit += " (logarithmic axis)"
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
