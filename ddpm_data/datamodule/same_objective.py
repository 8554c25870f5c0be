"""Tell whether two runs train the same objective, by a summary of a few kilobytes that checkpoints keep.

The summary holds means of the tables, not their hashes: another machine computes the same table with other last digits.
"""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass

import torch
from torch import Tensor

from ddpm_data.diffusion.loss_aware import LossAwareTimesteps
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.timestep_bins import TimestepBins
from ddpm_data.diffusion.timesteps import DensityTimesteps, UniformTimesteps
from ddpm_data.diffusion.transform import ForwardDiffusion

Summary = dict[str, dict[str, str | list[float]]]
_BINS = 64
_SIZES = ((32, 32), (256, 256), (512, 1024))  # at which shifts by size are compared


def summarise(transform: ForwardDiffusion) -> Summary:
    """Return what identifies an objective, by config key: names, and means of tables over 64 ranges of t."""
    process, objective, timesteps = transform.process, transform.objective, transform.timesteps
    draw: dict[str, str | list[float]] = {"name": _name(timesteps)}
    if isinstance(timesteps, DensityTimesteps) and not isinstance(timesteps, LossAwareTimesteps):
        draw["probabilities"] = _means(process, timesteps.probabilities(process))
        if timesteps.shift_by_size is not None:
            shifts = (float(timesteps.shift_by_size(size)) for size in _SIZES)
            draw["shift_by_size"] = ", ".join(f"{shift:.4g}" for shift in shifts)
    if isinstance(timesteps, DensityTimesteps | UniformTimesteps):
        draw["low_discrepancy"] = str(timesteps.low_discrepancy)
    return {
        "schedule": {name: _means(process, getattr(process, name)) for name in ("signal", "sigma", "condition")},
        "timesteps": draw,
        "target": {"name": objective.target},
        "weight": {"weight": _means(process, objective.base_weight)},
        "noise": {"name": "gaussian" if transform.noise is None else _name(transform.noise)},
    }


def find_differences(saved: Mapping[str, Mapping[str, str | list[float]]], now: Summary) -> dict[str, str]:
    """Compare two summaries.

    Args:
        saved: That of a checkpoint.
        now: That of this run, with as many steps.

    Returns:
        A description of each difference, by config key.
    """
    differences: dict[str, str] = {}
    for key, parts in now.items():
        others = saved.get(key, {})
        for name in {**others, **parts}:
            description = _compare(name, others.get(name), parts.get(name))
            if description is not None:
                differences.setdefault(key, description)
    return differences


def _compare(name: str, saved: str | list[float] | None, now: str | list[float] | None) -> str | None:
    if not (isinstance(saved, list) and isinstance(now, list)):
        if saved == now or isinstance(saved, list) or isinstance(now, list):  # beside another name
            return None
        return f"{saved} there, {now} here" if name == "name" else f"{name}={saved} there, {now} here"
    then, here = (torch.tensor(values, dtype=torch.float64, device="cpu") for values in (saved, now))
    if then.shape != here.shape:
        return f"{name} of {len(then)} ranges of t there, {len(here)} here"
    is_other = (then - here).abs() > 1e-3 * torch.maximum(then.abs(), here.abs())
    if not bool(is_other.any()):
        return None
    place = int(((then - here).abs() * is_other).argmax())
    return f"{name} {then[place]:.4g} there, {here[place]:.4g} here, in range {place + 1} of {len(then)} of t"


def _means(process: GaussianProcess, table: Tensor) -> list[float]:
    bins = TimestepBins(process.num_timesteps, _BINS)
    sums = bins.sum_losses(torch.arange(process.num_timesteps, device="cpu"), table.detach().cpu())
    return [float(mean) for mean in sums[0] / sums[1]]


def _name(setting: object) -> str:
    """Name a setting by its values, if it has some; an address would differ from run to run."""
    if is_dataclass(setting):
        return re.sub(" at 0x[0-9a-fA-F]+", "", repr(setting)).lstrip("_")
    return getattr(setting, "__qualname__", type(setting).__qualname__)
