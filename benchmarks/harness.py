"""Tools that the benchmarks share: timing in turn, the machine in words, results as JSON, Markdown and a picture."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Row = dict[str, float | str]
_WARM_UP = 3  # runs that are not counted


def time_in_turn(
    functions: Mapping[str, Callable[[], object]], rounds: int, threads: tuple[int, ...]
) -> dict[str, float]:
    """Time functions in turn, so that a change in the machine's speed affects them all.

    Args:
        functions: The functions to time, by name.
        rounds: How often each runs at each number of threads, after three runs that are not counted.
        threads: Numbers of threads to try.

    Returns:
        The median seconds of each function at the number of threads that suits it best.
    """
    best = dict.fromkeys(functions, float("inf"))
    for count in threads:
        torch.set_num_threads(count)
        times: dict[str, list[float]] = {name: [] for name in functions}
        for number in range(rounds + _WARM_UP):
            for name, function in functions.items():
                began = time.perf_counter()
                function()
                if number >= _WARM_UP:
                    times[name].append(time.perf_counter() - began)
        best = {name: min(best[name], statistics.median(times[name])) for name in functions}
    return best


def describe_machine() -> str:
    """Name the processor, its cores, and the versions of Python and torch."""
    names = [line.partition(":")[2].strip() for line in _read_cpuinfo() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({vectors}), {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def markdown_table(rows: list[Row]) -> str:
    """Format rows as a table in Markdown. Numbers below 1,000 have two decimal places."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (value if isinstance(value, str) else _format_number(value) for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_report(title: str, rows: list[Row], output_dir: Path | None) -> None:
    """Print the machine and the table, and write both to ``<title>.json``.

    Args:
        title: The name of the file.
        rows: The rows of the table.
        output_dir: The folder for the file; ``None`` writes none.
    """
    print(f"{describe_machine()}\n\n{markdown_table(rows)}")
    if output_dir:
        output_dir.mkdir(parents=True, exist_ok=True)
        record = {"machine": describe_machine(), "rows": rows}
        (output_dir / f"{title}.json").write_text(json.dumps(record, indent=1) + "\n")


def draw_bars(title: str, rows: list[Row], unit: str, path: Path, log: bool = False) -> None:
    """Draw a bar for every number in the rows, in one group per row.

    Args:
        title: The picture's title.
        rows: Rows with the same keys. The first value names the group.
        unit: The unit of all numbers.
        path: The PNG file to write.
        log: Whether the axis is logarithmic.
    """
    from matplotlib import pyplot

    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    groups = [str(next(iter(row.values()))) for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.9 * len(rows)), layout="constrained")
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        values = [float(row[name]) for row in rows]
        bars = axes.barh([i + number * height for i in range(len(rows))], values, height * 0.9, label=name)
        if len(names) == 1:  # then each row is a library, and ours stands out by its colour
            for bar, group in zip(bars, groups, strict=True):
                bar.set_color("C0" if group.startswith("ddpm_data") else "0.7")
        axes.bar_label(bars, fmt="{:.2f}" if max(values) < 100 else "{:,.0f}", padding=2, fontsize=8)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(rows))], groups)
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


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _read_cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
