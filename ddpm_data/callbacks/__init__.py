"""Lightning callbacks that log numbers and pictures while you train."""

from ddpm_data.callbacks.noising_strip import NoisingStrip
from ddpm_data.callbacks.throughput import Throughput
from ddpm_data.callbacks.timestep_loss import TimestepLoss

__all__ = ["NoisingStrip", "Throughput", "TimestepLoss"]
