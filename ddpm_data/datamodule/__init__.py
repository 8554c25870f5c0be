"""The Lightning side: datasets in, training triples out, in every stage."""

from ddpm_data.datamodule.loops import triples
from ddpm_data.datamodule.module import DDPMDataModule

__all__ = ["DDPMDataModule", "triples"]
