"""Any image dataset in; ``(x_t, t, noise)`` out, on the training device; the same triples on one GPU or a thousand."""

from ddpm_data import schedules
from ddpm_data.datamodule import DDPMDataModule, triples
from ddpm_data.diffusion import densities, noises, processes, weights
from ddpm_data.diffusion.augment import PerExample
from ddpm_data.diffusion.process import ForwardProcess, GaussianProcess
from ddpm_data.diffusion.timesteps import DensityTimesteps, UniformTimesteps
from ddpm_data.diffusion.transform import ForwardDiffusion
from ddpm_data.latents import Latents
from ddpm_data.types import ConditionedTargetTriple, ConditionedTriple, Examples, ImageBatch, TargetTriple, Triple

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
