"""Draws of ``t`` for each example: integer arithmetic on keyed bits, so the same on every device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ddpm_data._keys import name_arguments
from ddpm_data.diffusion.densities import Density, check_density, compute_thresholds
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.processes import check_positive
from ddpm_data.rng.philox import MASK, Key, Purpose, key_from, words
from ddpm_data.types import Stage

# The step of the Weyl sequence, as a fraction of 2**32. Not the golden ratio: its multiples by 8, 24, 48 and 72 lie so
# close to whole numbers that at such world sizes each rank's steps would bunch up. tests/diffusion/test_timesteps.py
# tries those strides.
WEYL_STEP = 0x9D22D7FD
_COUNTED = 2**20  # draws of a custom function, to find its density


class UniformTimesteps:
    """A draw of ``t`` that is uniform over ``0 .. num_timesteps - 1`` (DDPM, Algorithm 1).

    Validation, test and predict always use the low-discrepancy draw, so that an evaluation covers the steps evenly.

    Args:
        low_discrepancy: False draws each ``t`` independently. True spreads the ``t`` of any consecutive positions
            evenly over the steps, which lowers the variance of the loss; each ``t`` is still uniform. See
            :func:`draw_word`. (Kingma et al. 2021, "Variational diffusion models", App. I.1, do this within a batch.)

    Raises:
        TypeError: ``low_discrepancy`` is not a bool.
    """

    @name_arguments
    def __init__(self, low_discrepancy: bool = False) -> None:
        self.low_discrepancy = _check_bool("UniformTimesteps", "low_discrepancy", low_discrepancy)

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
        # The high half of an integer product is exact. floor(u * T) in float32 can round up to T.
        return (draw_word(position, key, stage, self.low_discrepancy) * num_timesteps) >> 32


class DensityTimesteps:
    """A draw of ``t`` from a density: each step has a probability of its own.

    A random word of 32 bits is compared with thresholds, so ``t`` is the same on every device. A step of a probability
    below ``2**-33`` may never be drawn. As with :class:`UniformTimesteps`, validation, test and predict draw with low
    discrepancy, from the same density.

    Args:
        density: A function of the process that returns the probabilities of its steps, see :mod:`ddpm_data.densities`;
            or these themselves: floating point, shape ``(num_timesteps,)``, sum 1.
        low_discrepancy: See :class:`UniformTimesteps`.
        importance: Whether the loss weight makes up for the density by ``1 / (T p_t)``. The density then changes
            only the variance of the loss. The objective is that of uniform ``t``. Otherwise the density is part of the
            objective. Your loss has to use ``datamodule.loss_weight(t)``.
        shift_by_size: For batches of several sizes: a function of the images' ``(height, width)``, such as
            ``ddpm_data.densities.sd3_shift``. It returns the ``shift`` that ``density`` is given for a batch of such
            images, or of such latents.

    Raises:
        TypeError: ``density`` is no function or tensor, or another argument has the wrong type.
        ValueError: ``shift_by_size`` is given beside ``importance``, or beside another ``shift``.
    """

    @name_arguments
    def __init__(
        self,
        density: Density | Tensor,
        low_discrepancy: bool = False,
        importance: bool = False,
        shift_by_size: Callable[[tuple[int, int]], float] | None = None,
    ) -> None:
        if isinstance(density, type) or not (isinstance(density, Tensor) or callable(density)):
            raise TypeError(
                f"DensityTimesteps(density={density!r}): expected a function of the process that returns "
                "probabilities, such as ddpm_data.densities.logit_normal, or a tensor of them. Change "
                "`timesteps.density` (a function from a config needs `_partial_: true`)."
            )
        self.density = density
        self.low_discrepancy = _check_bool("DensityTimesteps", "low_discrepancy", low_discrepancy)
        self.importance = _check_bool("DensityTimesteps", "importance", importance)
        self.shift_by_size = shift_by_size
        if shift_by_size is not None:
            self._check_shift_by_size()

    def _check_shift_by_size(self) -> None:
        if not callable(self.shift_by_size) or isinstance(self.density, Tensor):
            raise TypeError(
                f"DensityTimesteps(shift_by_size={self.shift_by_size!r}): expected a function of (height, width), "
                "beside a density that takes a shift. Change `timesteps.shift_by_size` (a function from a config needs "
                "`_partial_: true`)."
            )
        if self.importance:
            raise ValueError(
                "DensityTimesteps: importance=True divides the loss weight by one density, but with shift_by_size "
                "there is one for each size of image. Leave out `timesteps.importance` or `timesteps.shift_by_size`."
            )
        shift = getattr(self.density, "keywords", {}).get("shift", 1)
        if shift != 1:
            raise ValueError(
                f"DensityTimesteps: the density has shift={shift}, but shift_by_size gives each size its own. Leave "
                "out `timesteps.density.shift` or `timesteps.shift_by_size`."
            )

    def probabilities(self, process: GaussianProcess, size: tuple[int, int] | None = None) -> Tensor:
        """Return the probability of each step of a process: float64, shape ``(num_timesteps,)``, sum 1.

        Args:
            process: The forward process.
            size: Height and width of the images, for ``shift_by_size``; ``None`` is a shift of 1.

        Raises:
            TypeError: The density is no tensor of floats, or no function of a process that returns one.
            ValueError: It does not fit the process, or its values are no probabilities.
        """
        density = self.density
        if self.shift_by_size is not None and not isinstance(density, Tensor):
            shift = 1.0 if size is None else self.shift_by_size(size)
            shift = check_positive("DensityTimesteps", "timesteps.shift_by_size", shift)
            density = partial(density, shift=shift)  # type: ignore[call-arg]  # of those that take one
        return check_density(process, density)

    def thresholds(self, process: GaussianProcess, size: tuple[int, int] | None = None) -> Tensor:
        """Return the thresholds that words are compared with: int64 in ``[0, 2**32]``, shape ``(num_timesteps,)``.

        See :meth:`probabilities`.
        """
        return compute_thresholds(self.probabilities(process, size))


def draw_word(position: Tensor, key: Key, stage: Stage, low_discrepancy: bool, strided: bool = False) -> Tensor:
    """Draw the uniform word of 32 bits that decides ``t``: int64 in ``[0, 2**32)``, shape ``(batch,)``.

    With low discrepancy, any ``2**k`` consecutive positions have one word in each of ``2**k`` equal parts of the range:
    an Owen-scrambled van der Corput sequence (Owen 1995, "Randomly permuted (t,m,s)-nets and (t,s)-sequences"). So has
    the part of a batch that one process gets, since it is consecutive. A run across a multiple of ``2**32`` is an
    exception: the sequence begins anew there, with another scrambling, so only its two parts are even.

    Args:
        position: Positions in the stage's stream, int64, shape ``(batch,)``.
        key: The seed's key, from :func:`~ddpm_data.rng.philox.key_from`.
        stage: The stage whose stream the positions belong to; all but training draw with low discrepancy.
        low_discrepancy: Whether training does, too.
        strided: Whether a batch has every k-th position, as those of an iterable dataset have. Every second position of
            the sequence above lies in one half of the range, so low discrepancy then follows a Weyl sequence, which is
            even for every k, but less so.
    """
    if not low_discrepancy and stage == "train":
        return words(key, Purpose.TIMESTEP, stage, position)[0][:, 0]
    if strided:
        start = words(key, Purpose.TIMESTEP_OFFSET, stage, torch.zeros_like(position[:1]))[0][:, 0]
        return (start + (position & MASK) * WEYL_STEP) & MASK
    # Each 2**32 positions are scrambled by words of their own.
    first, second, factor, _ = words(key, Purpose.TIMESTEP_SCRAMBLE, stage, position >> 32)
    return reverse_bits(_scramble(position & MASK, first[:, 0], second[:, 0], factor[:, 0]))


def reverse_bits(word: Tensor) -> Tensor:
    """Reverse the order of the 32 bits of words; int64 in ``[0, 2**32)``, as the words."""
    for bits, mask in ((16, 0xFFFF), (8, 0xFF00FF), (4, 0xF0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        word = ((word & mask) << bits) | ((word >> bits) & mask)
    return word


def _scramble(word: Tensor, first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """Change each bit of words by what a hash of the lower bits says: Owen's scrambling of the reversed words.

    Sums, odd factors, and exclusive-or with an even multiple let no bit act on a lower one (Laine & Karras 2011,
    "Stratified sampling for stochastic transparency"). The multipliers: Vegdahl 2021, "Building a better LK hash".
    """
    word = (word + first) & MASK
    word ^= (word * 0x3D20ADEA) & MASK
    word = (word + second) & MASK
    word = (word * (factor | 1)) & MASK
    word ^= (word * 0x05526C56) & MASK
    return word ^ ((word * 0x53A22864) & MASK)


def find_steps(thresholds: Tensor, word: Tensor) -> Tensor:
    """Return how many thresholds are at most each word: int64, shape of ``word``.

    Args:
        thresholds: From :meth:`DensityTimesteps.thresholds`; the last is greater than every word.
        word: Words, int64 in ``[0, 2**32)``.
    """
    return torch.searchsorted(thresholds, word, right=True)


def find_probabilities(timesteps: "Timesteps", process: GaussianProcess) -> Tensor:
    """Return the probability of each step, of a custom draw by its share of a million draws.

    Args:
        timesteps: How ``t`` is drawn.
        process: The forward process.

    Returns:
        float64, shape ``(num_timesteps,)``.
    """
    steps = process.num_timesteps
    if isinstance(timesteps, DensityTimesteps):
        return timesteps.probabilities(process)
    if isinstance(timesteps, UniformTimesteps):
        return torch.full((steps,), 1 / steps, dtype=torch.float64)
    t = timesteps(torch.arange(_COUNTED), steps, key_from(0), "train")
    return torch.bincount(t, minlength=steps).double() / len(t)


def _check_bool(call: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{call}({name}={value!r}): expected true or false. Change `timesteps.{name}`.")
    return value


# Not -> Tensor: LightningCLI (jsonargparse) would take a class_path in YAML for a kind of Tensor.
Timesteps = DensityTimesteps | Callable[[Tensor, int, Key, Stage], Any]
