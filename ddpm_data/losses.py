"""A deprecated path, kept for 0.1: import ``read_losses`` from :mod:`ddpm_data.diffusion.timestep_bins`."""

from ddpm_data.diffusion.timestep_bins import read_losses as read_losses
