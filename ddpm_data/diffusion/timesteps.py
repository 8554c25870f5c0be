"""Draws of ``t`` for each example: integer arithmetic on keyed bits, so the same on every device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_data.rng.philox import MASK, Key, Purpose, words
from ddpm_data.types import Stage

# The step of the Weyl sequence, as a fraction of 2**32. Not the golden ratio: its multiples by 8, 24, 48 and 72 lie so
# close to whole numbers that at such world sizes each rank's steps would bunch up. tests/diffusion/test_timesteps.py
# tries those strides.
WEYL_STEP = 0x9D22D7FD


class UniformTimesteps:
    """A draw of ``t`` that is uniform over ``0 .. num_timesteps - 1`` (DDPM, Algorithm 1).

    Validation, test and predict always use the low-discrepancy draw, so that an evaluation covers the steps evenly.

    Args:
        low_discrepancy: False draws each ``t`` independently. True follows a Weyl sequence along the positions, whose
            start the key sets. Each ``t`` is still uniform. But any run of consecutive positions, or every k-th of
            them, covers the steps evenly, which lowers the variance of the loss. (Kingma et al. 2021, "Variational
            diffusion models", App. I.1, do this within a batch.)

    Raises:
        TypeError: ``low_discrepancy`` is not a bool.
    """

    def __init__(self, low_discrepancy: bool = False) -> None:
        if not isinstance(low_discrepancy, bool):
            raise TypeError(
                f"UniformTimesteps(low_discrepancy={low_discrepancy!r}): expected true or false. Change "
                "`timesteps.low_discrepancy`."
            )
        self.low_discrepancy = low_discrepancy

    def __call__(self, position: Tensor, num_timesteps: int, key: Key, stage: Stage) -> Tensor:
        """Draw the steps.

        Args:
            position: Positions in the stage's stream, int64, shape ``(batch,)``.
            num_timesteps: T, at most ``2**31``.
            key: The seed's key, from :func:`~ddpm_data.rng.philox.key_from`.
            stage: The stage whose stream the positions belong to.

        Returns:
            int64 in ``[0, num_timesteps)``, shape ``(batch,)``.
        """
        if self.low_discrepancy or stage != "train":
            start = words(key, Purpose.TIMESTEP_OFFSET, stage, torch.zeros_like(position[:1]))[0][:, 0]
            word = (start + (position & MASK) * WEYL_STEP) & MASK
        else:
            word = words(key, Purpose.TIMESTEP, stage, position)[0][:, 0]
        # The high half of an integer product is exact. floor(u * T) in float32 can round up to T.
        return (word * num_timesteps) >> 32


# Not -> Tensor: LightningCLI (jsonargparse) would take a class_path in YAML for a kind of Tensor.
Timesteps = Callable[[Tensor, int, Key, Stage], Any]
