"""Which ``t`` each example gets: integer arithmetic on keyed bits, so the same on every device."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_data.rng.philox import MASK, Key, Purpose, words
from ddpm_data.types import Stage

# The step of the Weyl sequence, as a fraction of 2**32. Multiples of the golden ratio by 8, 24, 48 or 72 lie so close
# to whole numbers that every such rank's share would bunch up; tests/diffusion/test_timesteps.py tries those strides.
WEYL_STEP = 0x9D22D7FD


class UniformTimesteps:
    """``t`` uniform over ``0 .. num_timesteps - 1`` (DDPM, Algorithm 1).

    Validation, test and predict always take the low-discrepancy draw: an evaluation should cover the steps evenly.

    Args:
        low_discrepancy: False draws each ``t`` independently. True walks a Weyl sequence with a keyed start along the
            positions: each ``t`` is still uniform, and any run of consecutive positions, or every k-th of them, covers
            the steps evenly, which lowers the variance of the loss (Kingma et al. 2021, "Variational diffusion
            models", App. I.1, has the idea within a batch).
    """

    def __init__(self, low_discrepancy: bool = False) -> None:
        if not isinstance(low_discrepancy, bool):
            raise TypeError(
                f"UniformTimesteps(low_discrepancy={low_discrepancy!r}): true or false is needed. "
                "Change `timesteps.low_discrepancy`."
            )
        self.low_discrepancy = low_discrepancy

    def __call__(self, position: Tensor, num_timesteps: int, key: Key, stage: Stage) -> Tensor:
        """Draw the steps.

        Args:
            position: Places in the stage's stream, int64, shape ``(batch,)``.
            num_timesteps: T, at most ``2**31``.
            key: The seed's key.
            stage: The stream the positions belong to.

        Returns:
            int64 in ``[0, num_timesteps)``, shape ``(batch,)``.
        """
        if self.low_discrepancy or stage != "train":
            start = words(key, Purpose.TIMESTEP_OFFSET, stage, torch.zeros_like(position[:1]))[0][:, 0]
            word = (start + (position & MASK) * WEYL_STEP) & MASK
        else:
            word = words(key, Purpose.TIMESTEP, stage, position)[0][:, 0]
        # The high half of a product: exact, where floor(u * T) in float32 can round up to T.
        return (word * num_timesteps) >> 32


Timesteps = Callable[[Tensor, int, Key, Stage], Tensor]
