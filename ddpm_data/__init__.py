"""Any image dataset in; ``(x_t, t, noise)`` out, on the training device; the same triples on one GPU or a thousand.

The names below are imported when they are first used, so that ``import ddpm_data`` takes no time.
"""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_data import schedules
    from ddpm_data.datamodule import DDPMDataModule, triples
    from ddpm_data.diffusion import densities, noises, processes, weights
    from ddpm_data.diffusion.augment import PerExample
    from ddpm_data.diffusion.loss_aware import LossAwareTimesteps
    from ddpm_data.diffusion.process import ForwardProcess, GaussianProcess
    from ddpm_data.diffusion.timesteps import DensityTimesteps, UniformTimesteps
    from ddpm_data.diffusion.transform import ForwardDiffusion
    from ddpm_data.latents import Latents
    from ddpm_data.types import (
        ConditionedTargetTriple,
        ConditionedTriple,
        Examples,
        ImageBatch,
        TargetTriple,
        Triple,
    )

__version__ = "0.1.0"
__all__ = [
    "ConditionedTargetTriple",
    "ConditionedTriple",
    "DDPMDataModule",
    "DensityTimesteps",
    "Examples",
    "ForwardDiffusion",
    "ForwardProcess",
    "GaussianProcess",
    "ImageBatch",
    "Latents",
    "LossAwareTimesteps",
    "PerExample",
    "TargetTriple",
    "Triple",
    "UniformTimesteps",
    "densities",
    "noises",
    "processes",
    "schedules",
    "triples",
    "weights",
]
_MODULES = {  # the module that has a name; the others are modules of this package
    "ConditionedTargetTriple": "types",
    "ConditionedTriple": "types",
    "DDPMDataModule": "datamodule",
    "DensityTimesteps": "diffusion.timesteps",
    "Examples": "types",
    "ForwardDiffusion": "diffusion.transform",
    "ForwardProcess": "diffusion.process",
    "GaussianProcess": "diffusion.process",
    "ImageBatch": "types",
    "Latents": "latents",
    "LossAwareTimesteps": "diffusion.loss_aware",
    "PerExample": "diffusion.augment",
    "TargetTriple": "types",
    "Triple": "types",
    "UniformTimesteps": "diffusion.timesteps",
    "densities": "diffusion",
    "noises": "diffusion",
    "processes": "diffusion",
    "triples": "datamodule",
    "weights": "diffusion",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # type checkers read the imports above
    """Import a public name, or a module of this package, when it is first used."""
    if name in _MODULES:
        value = resolve_name(f"{__name__}.{_MODULES[name]}.{name}")
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what the package offers, whether it has been imported or not."""
    return sorted({*globals(), *__all__})
