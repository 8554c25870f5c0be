"""A deprecated path, kept for 0.1: import ``TarShards`` from :mod:`ddpm_data.sources`."""

from ddpm_data.sources import TarShards as TarShards
