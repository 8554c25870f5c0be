"""Tools that the benchmarks share: timing in turn, the machine in words, results as JSON, Markdown and a picture."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Row = dict[str, float | str]
_BLUES, _GREYS = ("#0072B2", "#56B4E9", "#A6D4F2"), ("0.35", "0.55", "0.75")  # ours, and the other libraries
_DPI = 200  # sharp where the site shows a picture at half its size
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


def draw_bars(title: str, rows: list[Row], unit: str, path: Path) -> None:
    """Draw a bar for every number in the rows, in one group per row.

    Args:
        title: The picture's title.
        rows: Rows with the same keys. The first value names the group.
        unit: The unit of all numbers.
        path: The PNG file to write.
    """
    from matplotlib import pyplot

    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    groups = [str(next(iter(row.values()))) for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.9 * len(rows)), layout="constrained")
    height, blues, greys = 0.8 / len(names), iter(_BLUES), iter(_GREYS)
    for number, name in enumerate(names):
        values = [float(row[name]) for row in rows]
        places = [i + number * height for i in range(len(rows))]
        colour = next(blues if name.startswith("ddpm_data") else greys)
        bars = axes.barh(places, values, height * 0.9, label=name, color=colour)
        axes.bar_label(bars, fmt="{:.2f}" if max(values) < 100 else "{:,.0f}", padding=2, fontsize=8)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(rows))], groups)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def draw_dots(title: str, groups: Mapping[str, list[Row]], unit: str, path: Path) -> None:
    """Draw a dot for every row on a logarithmic axis, in groups. Bars would have no beginning there.

    Args:
        title: The picture's title.
        groups: Rows by the title of their group. In each, the first value is its name, and the one under ``unit`` is
            drawn. The value under ``times the fastest other``, if there is one, is written beside it.
        unit: The unit of all numbers.
        path: The PNG file to write.
    """
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    lines = sum(map(len, groups.values())) + len(groups)
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * lines), layout="constrained")
    place, names = 0, dict[int, str]()
    for group, rows in groups.items():
        axes.text(0, place, group, transform=axes.get_yaxis_transform(), weight="bold", va="center", fontsize=9)
        for place, row in enumerate(rows, place + 1):  # noqa: B020  # the next group begins where this one ends
            names[place], value = str(next(iter(row.values()))), float(row[unit])
            is_ours = names[place].startswith("ddpm_data")
            times = row.get("times the fastest other")
            axes.axhline(place, color="0.9", linewidth=0.8, zorder=0)
            axes.plot(value, place, "o", color=_BLUES[0] if is_ours else _GREYS[1], markersize=7)
            text = f" {value:,.0f}" + f" ({times}x)" * bool(times)
            box = {"facecolor": "white", "linewidth": 0, "pad": 1}
            axes.annotate(text, (value, place), (7, 0), textcoords="offset points", va="center", fontsize=8, bbox=box)
        place += 1
    axes.set_yticks(list(names), list(names.values()), fontsize=9)
    axes.set_ylim(place - 0.5, -0.6)
    axes.set_xscale("log")
    values = [float(row[unit]) for rows in groups.values() for row in rows]
    axes.set_xlim(10 ** math.floor(math.log10(min(values))), 4 * max(values))  # room for the text at the last dot
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(f"{unit}, logarithmic; in brackets: times the fastest other library")
    axes.set_title(title, loc="left")
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def _read_cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
