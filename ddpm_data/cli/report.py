"""``ddpm-data report``: show on one page what a noise schedule does, such as ``ddpm-data report schedule=cosine``.

To compare schedules in one picture, separate the values of any key by commas: ``schedule=linear,cosine``.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_data.cli._command import explain_missing_picture, start_command
from ddpm_data.cli._config import compose_datamodule, find_datamodule_config
from ddpm_data.cli._table import markdown_table
from ddpm_data.diffusion.process import ForwardProcess, GaussianProcess, make_process
from ddpm_data.diffusion.timesteps import UniformTimesteps

_ROWS = 3  # images that are shown being noised
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
    processes, timesteps, images = {}, {}, None
    for name, overrides in expand_sweep(args.overrides).items():
        args.overrides = overrides
        node = find_datamodule_config(args)
        label = name or str(node.schedule._target_).rpartition(".")[2]
        processes[label] = make_process(instantiate(node.schedule))
        timesteps[label] = instantiate(node.timesteps) or UniformTimesteps()
        images = _load_images(args) if images is None else images
    print(markdown_table([_HEADER, *(table_row(name, process) for name, process in processes.items())]))
    path = args.output_dir / "report.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if problem := explain_missing_picture(path.name):
        raise SystemExit(problem)
    from ddpm_data.plots import schedule_sheet

    schedule_sheet(processes, path, timesteps, images)
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
        f"{process.signal[-1].square():.3g} of the variance",
        f"{last_snr:.1f} dB",
        "never" if equal is None else f"from t = {equal} ({equal / process.num_timesteps:.0%})",
    ]


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
