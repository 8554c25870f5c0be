"""Variants of the noise: offset, generalised offset, pyramid, input perturbation, nearest of several.

Each function returns a setting for ``ForwardDiffusion(noise=...)``. What is random in it belongs to the example, as
everything in the stream does: it depends on the seed and the position, never on the batch.

Offset, generalised offset and pyramid noise are not white: their pixels are correlated. Then ``x_t`` at the last step
is not N(0, I), from which samplers start, and DDPM's posterior and the signal-to-noise ratio hold for a single pixel
but not for an image's mean. Methods that want the whole batch are not supported (immiscible assignment by batch,
optimal-transport pairing): an example's noise would depend on its neighbours, and so on the batch size and the number
of GPUs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_data._checks import check_float, check_int
from ddpm_data._keys import name_arguments
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.rng.philox import Key, Purpose, normal_quarters, normals
from ddpm_data.types import Stage

Quarters = Sequence[Tensor]  # four tensors, float32, shape (batch, quarter): the quarters of flattened images


class Steps(NamedTuple):
    """The steps of a batch's examples, with the tables of all steps.

    Attributes:
        t: Steps, int64, shape ``(batch,)``.
        signal: The factor of ``x_0`` in ``x_t`` at each step, float32, shape ``(num_timesteps,)``.
        sigma: The factor of the noise in ``x_t`` at each step, likewise.
    """

    t: Tensor
    signal: Tensor
    sigma: Tensor


class Noise(Protocol):
    """A variant of the noise."""

    def for_cpp(self, stage: Stage) -> tuple[int, float] | None:
        """Return its number in ``triple.cpp`` and its strength; ``None`` if it is not part of that pass."""
        ...

    def __call__(
        self,
        noise: Quarters,
        x_0: Quarters,
        key: Key,
        stage: Stage,
        position: Tensor,
        shape: Sequence[int],
        steps: Steps,
    ) -> tuple[Quarters, Quarters]:
        """Return the noise that is added to the images, and the noise that the target is made of.

        Args:
            noise: Standard normal noise.
            x_0: Clean images.
            key: The seed's key.
            stage: The stage whose stream the positions belong to.
            position: Positions of the examples, int64, shape ``(batch,)``.
            shape: Shape of the images, ``(batch, channels, height, width)``.
            steps: The examples' steps.
        """
        ...


def gaussian() -> None:
    """Return ``None``: standard normal noise (Ho et al. 2020), for configs."""
    return


@name_arguments
def offset(strength: float = 0.1) -> Noise:
    """Add to all pixels of a channel the same normal number (Guttenberg 2023, "Diffusion with offset noise").

    The network then learns to change an image's mean. The target is made of the sum.

    Args:
        strength: Standard deviation of the number, at least 0; 0.05 to 0.1 are usual.
    """
    return _Offset(_check_strength("offset", strength))


@name_arguments
def generalised_offset(strength: float = 0.1) -> Noise:
    """Add :func:`offset`'s number, by a factor that rises with ``t`` (Kutsuna 2024, arXiv 2412.03134, Alg. 1).

    The last step gets all of it, and the steps with little noise almost none. The factor is ``psi``, proportional to
    ``sigma / signal**2`` and 1 at the last step. (The algorithm's sum telescopes to that.) It makes the offset part of
    the diffusion: a sampler starts from offset noise, :func:`offset`'s at the last step. The target is made of the sum.

    It is for processes that preserve the variance and have signal left at the last step. Others are refused.

    Args:
        strength: Standard deviation of the number at the last step, at least 0.
    """
    return _Offset(_check_strength("generalised_offset", strength), rises=True)


@name_arguments
def input_perturbation(strength: float = 0.1) -> Noise:
    """Add to the image a little more noise than the target says (Ning et al. 2023, "Input perturbation").

    ``x_t = signal x_0 + sigma (noise + strength xi)``; the target is made of ``noise`` alone. Only training is
    perturbed, as in the paper: validation, test and predict get ordinary noise.

    Args:
        strength: gamma, at least 0; 0.1 in the paper.
    """
    return _InputPerturbation(_check_strength("input_perturbation", strength))


@name_arguments
def pyramid(discount: float = 0.35, levels: int = 6, ratio: float = 2.0) -> Noise:
    """Add coarser noise, level by level, and scale the sum to variance 1 (Whitaker 2023, "Multi-resolution noise").

    Level ``i`` has sides of ``1 / ratio**i`` and the factor ``discount**i``. It ends at one pixel. The target is made
    of the sum. It runs uncompiled.

    Args:
        discount: Factor from level to level, in ``[0, 1)``.
        levels: Coarser levels, at least 1.
        ratio: By how much a level's sides are shorter than those of the one before, above 1.
    """
    discount, ratio = check_float("pyramid", "noise.discount", discount), check_float("pyramid", "noise.ratio", ratio)
    if not 0 <= discount < 1:
        raise ValueError(f"pyramid(discount={discount}): the factor lies in [0, 1). Change `noise.discount`.")
    if ratio <= 1:
        raise ValueError(f"pyramid(ratio={ratio}): each level is coarser, so it lies above 1. Change `noise.ratio`.")
    return _Pyramid(discount, check_int("pyramid", "noise.levels", levels, 1), ratio)


@name_arguments
def nearest(candidates: int = 4) -> Noise:
    """Take, of several draws of the noise, the one nearest to the image (Li et al. 2024, "Immiscible diffusion").

    The draws belong to the example, so batches of any size give the same (Li et al. 2025, KNN). It runs uncompiled and
    takes ``candidates`` times as long.

    Args:
        candidates: Number of draws, from 1 to 128.
    """
    if check_int("nearest", "noise.candidates", candidates, 1) > 128:
        raise ValueError(
            f"nearest(candidates={candidates}): at most 128 draws are numbered. Change `noise.candidates`."
        )
    return _Nearest(int(candidates))


@dataclass(frozen=True)
class _Offset:
    strength: float
    rises: bool = False  # with t, see generalised_offset

    def for_cpp(self, stage: Stage) -> tuple[int, float]:
        """Return one of two kinds of offset."""
        return 2 if self.rises else 1, self.strength

    def __call__(
        self,
        noise: Quarters,
        x_0: Quarters,
        key: Key,
        stage: Stage,
        position: Tensor,
        shape: Sequence[int],
        steps: Steps,
    ) -> tuple[Quarters, Quarters]:
        """Add each channel's number."""
        channels, quarter = shape[1], noise[0].shape[1]
        numbers = self.strength * normals(key, Purpose.NOISE_OFFSET, stage, position, channels)
        if self.rises:
            psi = steps.sigma / steps.signal.square()
            numbers = numbers * (psi[steps.t] / psi[-1])[:, None]
        places = torch.arange(4 * quarter, device=position.device).view(4, quarter)
        channel = (places // math.prod(shape[2:])).clamp(max=channels - 1)  # the last quarter may be padded
        result = [values + numbers[:, channel[i]] for i, values in enumerate(noise)]
        return result, result


@dataclass(frozen=True)
class _InputPerturbation:
    strength: float

    def for_cpp(self, stage: Stage) -> tuple[int, float]:
        """Return the perturbation, in training."""
        return (3, self.strength) if stage == "train" else (0, 0.0)

    def __call__(
        self,
        noise: Quarters,
        x_0: Quarters,
        key: Key,
        stage: Stage,
        position: Tensor,
        shape: Sequence[int],
        steps: Steps,
    ) -> tuple[Quarters, Quarters]:
        """Add more noise to the image than to the target, in training."""
        if stage != "train":
            return noise, noise
        more = normal_quarters(key, Purpose.NOISE_PERTURBATION, stage, position, noise[0].shape[1])
        return [values + self.strength * extra for values, extra in zip(noise, more, strict=True)], noise


@dataclass(frozen=True)
class _Pyramid:
    discount: float
    levels: int
    ratio: float

    def for_cpp(self, stage: Stage) -> None:
        """Return nothing: it is made uncompiled."""

    def __call__(
        self,
        noise: Quarters,
        x_0: Quarters,
        key: Key,
        stage: Stage,
        position: Tensor,
        shape: Sequence[int],
        steps: Steps,
    ) -> tuple[Quarters, Quarters]:
        """Add the coarser levels."""
        batch, channels, height, width = shape
        numel = channels * height * width
        total = torch.cat(list(noise), dim=1)[:, :numel].view(batch, channels, height, width)
        variance = torch.ones(height, width, device=total.device, dtype=torch.float32)
        for level in range(1, self.levels + 1):
            rows, columns = (max(1, int(side / self.ratio**level)) for side in (height, width))
            # Each level has blocks of its own: its number stands where the position's upper bits would.
            coarse = normals(key, Purpose.NOISE_PYRAMID, stage, position + (level << 56), channels * rows * columns)
            down, across = _Stretch.make(rows, height, total.device), _Stretch.make(columns, width, total.device)
            factor = self.discount**level
            total = total + factor * down(across(coarse.view(batch, channels, rows, columns), -1), -2)
            variance = variance + factor**2 * down.squares()[:, None] * across.squares()[None, :]
            if rows == columns == 1:
                break
        flat = F.pad((total / variance.sqrt()).flatten(1), (0, 4 * noise[0].shape[1] - numel))
        result = list(flat.chunk(4, dim=1))
        return result, result


@dataclass(frozen=True)
class _Nearest:
    candidates: int

    def for_cpp(self, stage: Stage) -> None:
        """Return nothing: it is made uncompiled."""

    def __call__(
        self,
        noise: Quarters,
        x_0: Quarters,
        key: Key,
        stage: Stage,
        position: Tensor,
        shape: Sequence[int],
        steps: Steps,
    ) -> tuple[Quarters, Quarters]:
        """Choose the nearest draw; the first is the ordinary noise."""
        best = list(noise)
        numel = math.prod(shape[1:])
        least = _distance(best, x_0, numel)
        for candidate in range(1, self.candidates):
            place = position + (candidate << 56)  # a draw of its own, as in the pyramid
            other = normal_quarters(key, Purpose.NOISE_CANDIDATE, stage, place, noise[0].shape[1])
            distance = _distance(other, x_0, numel)
            is_nearer = (distance < least)[:, None]
            best = [torch.where(is_nearer, new, old) for new, old in zip(other, best, strict=True)]
            least = torch.minimum(least, distance)
        return best, best


def check_noise(process: GaussianProcess, noise: Noise | None) -> None:
    """Refuse a variant of the noise that is not defined for a process.

    Raises:
        ValueError: It is :func:`generalised_offset`, and the process does not preserve the variance, or its last step
            has no signal or less noise than another.
    """
    if not isinstance(noise, _Offset) or not noise.rises:
        return
    psi = process.sigma / process.signal.square()
    if not process.is_variance_preserving or not bool(psi[-1].isfinite()) or bool((psi > psi[-1]).any()):
        raise ValueError(
            f"generalised_offset: its factor is sigma / signal**2, relative to the last step, where this process has "
            f"signal {float(process.signal[-1]):.3g} and sigma {float(process.sigma[-1]):.3g}. It is defined for "
            "processes that preserve the variance, with noise that rises and some signal at the last step. Change "
            "`noise`, or `schedule` (zero_terminal_snr leaves no signal)."
        )


def _check_strength(name: str, strength: float) -> float:
    strength = check_float(name, "noise.strength", strength)
    if strength < 0:
        raise ValueError(f"{name}(strength={strength}): it must be at least 0. Change `noise.strength`.")
    return strength


def _distance(noise: Quarters, x_0: Quarters, numel: int) -> Tensor:
    """Return the squared distance of each example, in float64 so that the order of adding cannot change the nearest."""
    squares = [(n.double() - x.double()).square() for n, x in zip(noise, x_0, strict=True)]
    return torch.cat(squares, dim=1)[:, :numel].sum(1)  # the last quarter may be padded


class _Stretch(NamedTuple):
    """Linear interpolation of an axis to a longer one: every place there lies between two of here.

    No product of matrices, since autocast and TF32 give those fewer digits.

    Attributes:
        low: The first of the two, int64, shape ``(fine,)``.
        high: The second.
        share: The part of the second, float32.
    """

    low: Tensor
    high: Tensor
    share: Tensor

    @staticmethod
    @lru_cache(maxsize=256)  # so that no batch uploads it
    def make(coarse: int, fine: int, device: torch.device) -> "_Stretch":
        """Compute it for two lengths, as torch's ``interpolate`` does without ``align_corners``."""
        place = ((torch.arange(fine, dtype=torch.float64, device="cpu") + 0.5) * (coarse / fine) - 0.5).clamp(min=0)
        low = place.long()
        high = (low + 1).clamp(max=coarse - 1)
        share = torch.where(high > low, place - low, 0.0)
        return _Stretch(low.to(device), high.to(device), share.float().to(device))

    def __call__(self, values: Tensor, dim: int) -> Tensor:
        """Stretch one of the last two axes."""
        share = self.share if dim == -1 else self.share[:, None]
        return values.index_select(dim, self.low) * (1 - share) + values.index_select(dim, self.high) * share

    def squares(self) -> Tensor:
        """Return the variance that numbers of variance 1 have after it, shape ``(fine,)``."""
        return (1 - self.share).square() + self.share.square()
