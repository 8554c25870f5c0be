"""``ddpm-data report``: show on one page what a training objective does, such as ``ddpm-data report preset=sd3``.

To compare objectives in one picture, separate the values of any key by commas: ``preset=sd3,flux,edm,ddpm``.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_data.cli._command import explain_missing_picture, start_command
from ddpm_data.cli._config import compose_datamodule, find_datamodule_config
from ddpm_data.cli._table import markdown_table
from ddpm_data.diffusion.objective import Objective, view_on_log_snr
from ddpm_data.diffusion.process import ForwardProcess, GaussianProcess, make_process
from ddpm_data.diffusion.processes import from_diffusers
from ddpm_data.diffusion.timesteps import Timesteps, UniformTimesteps, find_probabilities

_ROWS = 3  # images that are shown being noised
_OBJECTIVE_HEADER = (
    "objective",
    "target",
    "half of training above",
    "80% of training between",
    "weight of x_0's error at +20 dB",
    "at -20 dB",
)
_TARGETS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "x_0"}  # diffusers' names for them
_HEADER = ("schedule", "steps", "beta, first", "beta, last", "signal left", "SNR at the end", "as much noise as signal")


def main(arguments: list[str] | None = None) -> int:
    """Compose the schedules, print their table, and draw the page; returns 0.

    Args:
        arguments: Command-line arguments; ``None`` takes those of the process.

    Raises:
        SystemExit: An argument is wrong, the configuration has no DataModule, or matplotlib is not installed.
    """
    from hydra.utils import instantiate

    args = start_command("report", arguments)
    processes: dict[str, GaussianProcess] = {}
    timesteps: dict[str, Timesteps] = {}
    objectives: dict[str, Objective] = {}
    images = None
    for name, overrides in expand_sweep(args.overrides).items():
        args.overrides = overrides
        node = find_datamodule_config(args)
        label = name or str(node.schedule._target_).rpartition(".")[2]
        processes[label] = make_process(instantiate(node.schedule))
        timesteps[label] = instantiate(node.timesteps) or UniformTimesteps()
        weight = instantiate(node.get("weight"))
        objectives[label] = Objective(processes[label], node.get("target") or "noise", weight)
        images = _load_images(args) if images is None else images
    for file in args.diffusers:
        label, process, objective = read_scheduler(file)
        processes[label], timesteps[label], objectives[label] = process, UniformTimesteps(), objective
    print(markdown_table([_HEADER, *(table_row(name, process) for name, process in processes.items())]))
    lines = [objective_row(name, processes[name], timesteps[name], objectives[name]) for name in processes]
    print(f"\n{markdown_table([_OBJECTIVE_HEADER, *lines])}")
    path = args.output_dir / "report.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if problem := explain_missing_picture(path.name):
        raise SystemExit(problem)
    from ddpm_data.plots import schedule_sheet

    schedule_sheet(processes, path, timesteps, images, objectives=objectives)
    print(f"\nwrote {path}")
    return 0


def expand_sweep(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Expand overrides with several values into one list of overrides per combination of values.

    Args:
        overrides: Hydra overrides, such as ``schedule=linear,cosine``.

    Returns:
        The overrides of each combination, by a name that is different for each.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices: list[list[tuple[str, str]]] = []  # for each override, one override per value, and its name
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        short = f"{key.rpartition('.')[2]}=" if "." in key.rpartition("/")[2] else ""
        choices.append([(f"{key}={value}", f"{short}{value}") for value in values] or [(str(override.input_line), "")])
    combinations = itertools.product(*choices)
    return {
        " ".join(name for _, name in combination if name): [text for text, _ in combination]
        for combination in combinations
    }


def table_row(name: str, process: GaussianProcess) -> list[str]:
    """Make the cells of a schedule's line in the table.

    Args:
        name: The schedule's name.
        process: The forward process with that schedule.
    """
    snr = process.snr(torch.arange(process.num_timesteps))
    last_snr = 10 * math.log10(snr[-1]) if snr[-1] > 0 else -math.inf
    equal = int((snr < 1).nonzero()[0]) if (snr < 1).any() else None
    return [
        name,
        f"{process.num_timesteps:,}",
        *([f"{process.betas[i]:.3g}" for i in (0, -1)] if isinstance(process, ForwardProcess) else ["-", "-"]),
        f"{snr[-1] / (1 + snr[-1]) if snr[-1].isfinite() else 1:.3g} of the variance",
        f"{last_snr:.1f} dB",
        "never" if equal is None else f"from t = {equal} ({equal / process.num_timesteps:.0%})",
    ]


def objective_row(name: str, process: GaussianProcess, timesteps: Timesteps, objective: Objective) -> list[str]:
    """Make the cells of an objective's line in the table: where it trains and how it weighs, by signal-to-noise ratio.

    Args:
        name: The objective's name.
        process: The forward process.
        timesteps: How t is drawn.
        objective: The target and weight.
    """
    shares = find_probabilities(timesteps, process)
    decibels = 10 * process.snr(torch.arange(process.num_timesteps)).cpu().log10()
    drawn = shares.cumsum(0)
    high, half, low = (
        float(decibels[int((drawn < share).sum().clamp(max=len(drawn) - 1))]) for share in (0.1, 0.5, 0.9)
    )
    view = view_on_log_snr(process, objective, shares)
    x, y = -view.log_snr.numpy(), view.weight.log().numpy()  # rising, as np.interp asks
    weights = []
    for place in (20, -20):
        is_there = len(x) > 0 and x[0] <= -place * math.log(10) / 10 <= x[-1]
        value = math.exp(np.interp(-place * math.log(10) / 10, x, y)) if is_there else math.nan
        weights.append("-" if math.isnan(value) else f"{value:.3g}")
    return [name, objective.target, f"{_round(half)} dB", f"{_round(low)} and {_round(high)} dB", *weights]


def _round(value: float) -> str:
    return f"{value:.0f}".replace("-0", "0") if abs(value) < 1 else f"{value:.0f}"


def read_scheduler(file: Path) -> tuple[str, GaussianProcess, Objective]:
    """Read the config of a scheduler of diffusers: its name, its process, and the target that it is made for.

    Args:
        file: A ``scheduler_config.json``.

    Raises:
        SystemExit: The file cannot be read, names no scheduler of diffusers, or one of a kind whose training table is
            not known here; or diffusers is not installed.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--diffusers {file}: this is no scheduler_config.json that can be read ({error}).") from error
    try:
        import diffusers
    except ImportError as error:
        raise SystemExit("--diffusers needs the package diffusers: pip install diffusers.") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None:
        raise SystemExit(f"--diffusers {file}: `_class_name` is {name!r}, which is no scheduler of diffusers.")
    try:
        process = from_diffusers(kind.from_config(config))
    except TypeError as error:
        raise SystemExit(f"--diffusers {file}: {error}") from error
    is_flow = "FlowMatch" in str(name)
    target: Any = "flow" if is_flow else _TARGETS.get(config.get("prediction_type", "epsilon"), "noise")
    folder = file.absolute().parent
    label = folder.parent.name if folder.name == "scheduler" else folder.name  # as in a model's folder
    return f"{label} ({name})", process, Objective(process, target)


def _load_images(args: argparse.Namespace) -> Tensor | None:
    """Load the first training images as the model will see them; if that fails, print why and return ``None``."""
    from hydra.utils import instantiate

    plain = {"num_workers": 0, "prefetch_factor": None, "multiprocessing_context": None, "cache_dir": None}
    try:
        datamodule = instantiate(compose_datamodule(args) | plain | {"batch_size": _ROWS})
        if datamodule.transform.latents is not None:
            print("the report shows no images: latents cannot be shown as images")
            return None
        datamodule.setup("fit")
        images: Tensor = next(iter(datamodule.train_dataloader())).images
    except Exception as error:  # any error of a dataset: a schedule can be shown without one
        print(f"the report shows no images: {error}", file=sys.stderr)
        return None
    return images
