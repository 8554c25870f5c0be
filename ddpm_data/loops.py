"""A deprecated path, kept for 0.1: import ``triples`` from :mod:`ddpm_data`."""

from ddpm_data.datamodule import triples as triples
