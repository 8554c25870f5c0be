"""What a noise schedule does, on one page: ``python -m ddpm_data.report schedule=cosine``.

``report.png`` has beta, the signal that is left, log-SNR, how often each step is drawn, what weight the loss gives it,
and images of your dataset on their way into noise; a table has the numbers. Several schedules are laid over each other:
``schedule=linear,cosine``, or any other key with values separated by commas.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddpm_data.cli._config import add_config_options, compose_datamodule, find_datamodule_config
from ddpm_data.cli._table import markdown
from ddpm_data.diffusion.process import ForwardProcess
from ddpm_data.diffusion.timesteps import UniformTimesteps

_ROWS = 3  # images on their way into noise
_HEAD = ("schedule", "steps", "beta, first", "beta, last", "signal left", "SNR at the end", "as much noise as signal")


def main(arguments: list[str] | None = None) -> int:
    """Compose, draw, print; returns 0."""
    from hydra.utils import instantiate

    parser = argparse.ArgumentParser(prog="python -m ddpm_data.report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for what is written (default report)")
    add_config_options(parser)
    args = parser.parse_args(arguments)
    processes, timesteps, images = {}, {}, None
    for name, overrides in expand_sweep(args.overrides).items():
        args.overrides = overrides
        node = find_datamodule_config(args)
        label = name or str(node.schedule._target_).rpartition(".")[2]
        processes[label] = ForwardProcess(instantiate(node.schedule))
        timesteps[label] = instantiate(node.timesteps) or UniformTimesteps()
        images = _images(args) if images is None else images
    print(markdown([_HEAD, *(table_row(name, process) for name, process in processes.items())]))
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        from ddpm_data.plots.curves import schedule_sheet
    except ImportError as error:
        raise SystemExit(f"no report.png: {error}") from error
    schedule_sheet(processes, args.out / "report.png", timesteps, images)
    print(f"\nwrote {args.out / 'report.png'}")
    return 0


def expand_sweep(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each of several schedules, by what tells them apart: one for each combination of values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices: list[list[tuple[str, str]]] = []  # for each override, what may stand there, and what that is called
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        short = f"{key.rpartition('.')[2]}=" if "." in key.rpartition("/")[2] else ""
        choices.append([(f"{key}={value}", f"{short}{value}") for value in values] or [(str(override.input_line), "")])
    combinations = itertools.product(*choices)
    return {" ".join(name for _, name in some if name): [text for text, _ in some] for some in combinations}


def table_row(name: str, process: ForwardProcess) -> list[str]:
    """A schedule's line of the table."""
    ratio = process.snr(torch.arange(process.num_timesteps))
    end = 10 * math.log10(ratio[-1]) if ratio[-1] > 0 else -math.inf
    equal = int((ratio < 1).nonzero()[0]) if (ratio < 1).any() else None
    return [
        name,
        f"{process.num_timesteps:,}",
        f"{process.betas[0]:.3g}",
        f"{process.betas[-1]:.3g}",
        f"{process.alphas_cumprod[-1]:.3g} of the variance",
        f"{end:.1f} dB",
        "never" if equal is None else f"from t = {equal} ({equal / process.num_timesteps:.0%})",
    ]


def _images(args: argparse.Namespace) -> Tensor | None:
    """The first training images as the model will see them; where there are none, say why."""
    from hydra.utils import instantiate

    plain = {"num_workers": 0, "prefetch_factor": None, "multiprocessing_context": None, "cache_dir": None}
    try:
        module = instantiate(compose_datamodule(args) | plain | {"batch_size": _ROWS})
        if module.transform.latents is not None:
            print("latents cannot be looked at: the sheet has no images")
            return None
        module.setup("fit")
        images: Tensor = next(iter(module.train_dataloader())).images
    except Exception as error:  # whatever a dataset raises: a schedule can be looked at without one
        print(f"the sheet has no images: {error}", file=sys.stderr)
        return None
    return images
