"""A density of ``t`` that follows the training loss, as a table of whole numbers that can be stored and replayed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_data._checks import check_float, check_int
from ddpm_data._keys import name_arguments
from ddpm_data.diffusion.densities import uniform
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.timestep_bins import TimestepBins
from ddpm_data.diffusion.timesteps import DensityTimesteps

BINS = 64


class LossAwareTimesteps(DensityTimesteps):
    """A draw of ``t`` in proportion to the root of the loss' second moment (Nichol & Dhariwal 2021, Eq. 18).

    A Trainer with a :class:`~ddpm_data.datamodule.DDPMDataModule` measures the second moment of the weighted loss in 64
    ranges of ``t``, over all processes, and replaces the table every ``every`` optimizer steps. (The paper keeps the
    last ten losses of each step.) Until each range has been seen often enough, ``t`` is uniform. Between two tables
    ``t`` is a function of the seed, the position and the table. Checkpoints hold the table, so a resumed run draws what
    the whole run would have drawn.

    The loss weight makes up for the density by ``1 / (T p_t)``, so the objective stays that of uniform ``t``. Your
    ``training_step`` multiplies each loss by ``datamodule.loss_weight(t)``, and returns the mean and the losses before
    the weight: ``{"loss": loss, "losses": losses}``. Validation, test and predict draw ``t`` uniformly. Without a
    Trainer ``t`` stays uniform.

    Args:
        every: Optimizer steps from one table to the next, at least 1.
        sightings: Examples that every range must have had before the first table, at least 1.
        floor: Share of uniform ``t`` in every table, in ``(0, 1]``, so that no step is left out.
        decay: Share of the sums of losses that a new table keeps for the next one, in ``[0, 1)``.
        low_discrepancy: See :class:`~ddpm_data.diffusion.timesteps.UniformTimesteps`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
    """

    @name_arguments
    def __init__(
        self,
        every: int = 100,
        sightings: int = 100,
        floor: float = 0.1,
        decay: float = 0.9,
        low_discrepancy: bool = False,
    ) -> None:
        super().__init__(uniform, low_discrepancy, importance=True)
        self.every = check_int("LossAwareTimesteps", "timesteps.every", every, 1)
        self.sightings = check_int("LossAwareTimesteps", "timesteps.sightings", sightings, 1)
        self.floor = check_float("LossAwareTimesteps", "timesteps.floor", floor)
        if not 0 < self.floor <= 1:
            raise ValueError(
                f"LossAwareTimesteps(floor={floor}): a share in (0, 1], so that every step is drawn and its weight is "
                "finite. Change `timesteps.floor`."
            )
        self.decay = check_float("LossAwareTimesteps", "timesteps.decay", decay)
        if not 0 <= self.decay < 1:
            raise ValueError(f"LossAwareTimesteps(decay={decay}): a share in [0, 1). Change `timesteps.decay`.")

    def find_shares(self, bins: TimestepBins, sums: Tensor) -> list[int] | None:
        """Turn sums of squared losses into a table.

        The root of the second moment is rounded to a 64th of an octave, since sums of floats depend on the order of
        adding, and so on the number of processes, in their last digits.

        Args:
            bins: The ranges of ``t``.
            sums: Sums of the squares of weighted losses, then numbers of examples: shape ``(2, bins.count)``.

        Returns:
            The share of each range in ``2**32``; ``None`` before each range has been seen often enough.
        """
        squares, counts = sums.to("cpu", torch.float64)
        if bool((counts < self.sightings).any()):
            return None
        roots = torch.exp2(torch.round((squares / counts).log2() * 32) / 64)
        widths = torch.tensor(bins.last, dtype=torch.float64) - torch.tensor(bins.first) + 1
        total = (roots * widths).sum()
        even = widths / widths.sum()
        probabilities = even if float(total) == 0 else self.floor * even + (1 - self.floor) * roots * widths / total
        edges = (probabilities.cumsum(0) * 2.0**32).round().long()
        edges[-1] = 2**32
        shares: list[int] = edges.diff(prepend=edges.new_zeros(1)).tolist()
        return shares


def spread_shares(process: GaussianProcess, shares: Sequence[int]) -> Tensor:
    """Divide each range's share evenly among its steps, by whole numbers.

    Args:
        process: The forward process.
        shares: From :meth:`LossAwareTimesteps.find_shares`.

    Returns:
        Thresholds as of :func:`~ddpm_data.diffusion.densities.compute_thresholds`: int64, shape ``(num_timesteps,)``.
    """
    bins, thresholds, before = TimestepBins(process.num_timesteps, BINS), [], 0
    for first, last, share in zip(bins.first, bins.last, shares, strict=True):
        width = last - first + 1
        thresholds += [before + share * (step + 1) // width for step in range(width)]
        before += share
    return torch.tensor(thresholds, dtype=torch.int64)
