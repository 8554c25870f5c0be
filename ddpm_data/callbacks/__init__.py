"""Lightning callbacks that log numbers and pictures while you train, show progress, and keep a run resumable."""

from ddpm_data.callbacks.latest_checkpoint import LatestCheckpoint
from ddpm_data.callbacks.metrics_file import MetricsFile
from ddpm_data.callbacks.noising_strip import NoisingStrip
from ddpm_data.callbacks.progress import Progress
from ddpm_data.callbacks.throughput import Throughput
from ddpm_data.callbacks.timestep_loss import TimestepLoss

__all__ = ["LatestCheckpoint", "MetricsFile", "NoisingStrip", "Progress", "Throughput", "TimestepLoss"]
