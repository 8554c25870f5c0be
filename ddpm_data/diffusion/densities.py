"""Densities of t: how often training draws each step.

Each function returns the probability of every step of a process: float64, shape ``(num_timesteps,)``, sum 1. Give its
other arguments with :func:`functools.partial`, in the configs with ``_partial_: true``, and the result to
:class:`~ddpm_data.diffusion.timesteps.DensityTimesteps`.

Densities over time have a distribution function F over ``s`` in ``[0, 1]``, where ``s = 1`` is the most noise. Step
``k`` of T has the probability ``F((k + 1) / T) - F(k / T)``. They know nothing of the process but its number of steps.
Densities over the noise level (``log_normal_sigma``, ``laplace``) draw a level and take the step nearest to it on a
logarithmic scale, so what lies beyond the first or the last step falls on that step.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddpm_data._checks import check_float, check_int, check_table
from ddpm_data._keys import name_arguments
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.processes import check_positive

Density = Callable[[GaussianProcess], Tensor]


@name_arguments
def uniform(process: GaussianProcess, shift: float = 1.0) -> Tensor:
    """Draw ``s`` uniformly, then shift it (Ho et al. 2020, Algorithm 1).

    Args:
        process: The forward process.
        shift: Above 0; see :func:`logit_normal`.
    """
    return _differences(_unshift(_edges(process), check_positive("uniform", "timesteps.density.shift", shift)))


@name_arguments
def logit_normal(process: GaussianProcess, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> Tensor:
    """Draw ``s = sigmoid(normal)``, then shift it (Esser et al. 2024, "Scaling rectified flow transformers", Eq. 19).

    A positive mean favours noise, as in the paper. (``logit_mean`` of diffusers' scripts has the opposite sign, since
    they index a table that begins at most noise.)

    Args:
        process: The forward process.
        mean: Mean of ``logit(s)``.
        std: Its standard deviation, above 0.
        shift: ``s`` becomes ``shift s / (1 + (shift - 1) s)``; above 1 it moves towards noise, for larger images (Eq.
            23). A process that is shifted already wants 1 here.
    """
    mean = check_float("logit_normal", "timesteps.density.mean", mean)
    std = check_positive("logit_normal", "timesteps.density.std", std)
    s = _unshift(_edges(process), check_positive("logit_normal", "timesteps.density.shift", shift))
    return _differences(torch.special.ndtr((torch.logit(s) - mean) / std))


@name_arguments
def mode(process: GaussianProcess, scale: float = 1.29) -> Tensor:
    """Draw ``s = 1 - u - scale (cos(pi u / 2)**2 - 1 + u)`` for uniform ``u`` (Esser et al. 2024, Eq. 20).

    Args:
        process: The forward process.
        scale: In ``[-1, 2 / (pi - 2)]``; above 0 it favours the middle, below 0 the ends.
    """
    scale = check_float("mode", "timesteps.density.scale", scale)
    most = 2 / (math.pi - 2)
    if not -1 <= scale <= most:
        raise ValueError(
            f"mode(scale={scale}): the curve is monotone for scales in [-1, {most:.5f}]. Change "
            "`timesteps.density.scale`."
        )
    s = _edges(process)
    low, high = torch.zeros_like(s), torch.ones_like(s)  # s falls from 1 to 0 while u rises: bisect
    for _ in range(60):
        u = (low + high) / 2
        is_above = 1 - u - scale * ((math.pi * u / 2).cos().square() - 1 + u) > s
        low, high = torch.where(is_above, u, low), torch.where(is_above, high, u)
    return _differences(1 - (low + high) / 2)


@name_arguments
def cosmap(process: GaussianProcess) -> Tensor:
    """Draw ``s`` so that ``log SNR`` of a straight path follows the cosine schedule (Esser et al. 2024, Eq. 21).

    Its density is ``2 / (pi - 2 pi s + 2 pi s**2)``.

    Args:
        process: The forward process.
    """
    s = _edges(process)
    return _differences(torch.atan2(s, 1 - s) * (2 / math.pi))


@name_arguments
def beta(process: GaussianProcess, a: float, b: float, start: float = 0.0) -> Tensor:
    """Draw ``s = start + (1 - start) x`` with ``x`` from the beta distribution (pi0: a 1.5, b 1, start 0.001).

    Args:
        process: The forward process.
        a: Above 0; larger ones favour noise.
        b: Above 0; larger ones favour the image.
        start: Smallest ``s``, in ``[0, 1)``.
    """
    a, b = check_positive("beta", "timesteps.density.a", a), check_positive("beta", "timesteps.density.b", b)
    start = check_float("beta", "timesteps.density.start", start)
    if not 0 <= start < 1:
        raise ValueError(f"beta(start={start}): the smallest s lies in [0, 1). Change `timesteps.density.start`.")
    x = ((_edges(process) - start) / (1 - start)).clamp(0, 1)
    return _differences(_beta_distribution(x, a, b))


@name_arguments
def log_normal_sigma(process: GaussianProcess, mean: float, std: float) -> Tensor:
    """Draw ``ln(sigma / signal)`` from a normal distribution, and take the nearest step (Karras et al. 2022, Table 1).

    :func:`ddpm_data.processes.edm` makes a process whose steps follow this density by themselves.

    Args:
        process: The forward process; its noise rises with t.
        mean: Mean of the logarithm: EDM -1.2.
        std: Its standard deviation, above 0: EDM 1.2.
    """
    mean = check_float("log_normal_sigma", "timesteps.density.mean", mean)
    std = check_positive("log_normal_sigma", "timesteps.density.std", std)
    return _differences(torch.special.ndtr((_log_sigma_edges("log_normal_sigma", process) - mean) / std))


@name_arguments
def laplace(process: GaussianProcess, mean: float = 0.0, scale: float = 0.5) -> Tensor:
    """Draw ``log SNR`` from a Laplace distribution, and take the nearest step (Hang et al. 2024, Eq. 13).

    Args:
        process: The forward process; its noise rises with t.
        mean: The ``log SNR`` drawn most often.
        scale: Above 0; the mean distance from it.
    """
    mean = check_float("laplace", "timesteps.density.mean", mean)
    scale = check_positive("laplace", "timesteps.density.scale", scale)
    z = (2 * _log_sigma_edges("laplace", process) + mean) / scale  # -log SNR = 2 ln(sigma / signal), so z rises with t
    tail = (-z.abs()).exp() / 2
    return _differences(torch.where(z < 0, tail, 1 - tail))


@name_arguments
def table(process: GaussianProcess, weights: Sequence[float] | Tensor) -> Tensor:
    """Draw from a table of your own: straight lines between its values, spread evenly over ``s`` in ``[0, 1]``.

    Args:
        process: The forward process.
        weights: At least 0 and one of them above 0; their scale does not matter. As many as steps are taken as they
            are; otherwise at least two, the first at ``s = 0`` and the last at ``s = 1``.
    """
    try:
        values = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if values.dim() != 1 or len(values) < min(2, process.num_timesteps):
        raise ValueError(
            f"table(weights={weights!r}): a list of at least two numbers is needed. Change `timesteps.density.weights`."
        )
    if not bool((values >= 0).all() and values.isfinite().all() and values.sum() > 0):
        raise ValueError(
            "table: weights are shares, so none is negative and they are not all 0. Change `timesteps.density.weights`."
        )
    if len(values) != process.num_timesteps:
        place = (torch.arange(process.num_timesteps, dtype=torch.float64) + 0.5) / process.num_timesteps
        place = place * (len(values) - 1)
        left = place.floor().long().clamp(max=len(values) - 2)
        values = torch.lerp(values[left], values[left + 1], place - left)
    return values / values.sum()


@name_arguments
def sd3_shift(size: int | Sequence[int], reference: int | Sequence[int] = 256) -> float:
    """Return the shift that keeps SD3's density right at another size: ``sqrt(m / n)`` (Esser et al. 2024, Eq. 23).

    An image of more pixels shows more through the same noise. The paper itself settled for 3 at 1024 x 1024, where this
    is 4. For a dataset of several sizes give it to ``DensityTimesteps(shift_by_size=...)``.

    Args:
        size: Your images' height and width in pixels, one number for squares. They have ``m`` pixels.
        reference: Size for which a shift of 1 is right, likewise; its images have ``n`` pixels.
    """
    ours = _count_pixels("sd3_shift", "timesteps.density.shift.size", size)
    return math.sqrt(ours / _count_pixels("sd3_shift", "timesteps.density.shift.reference", reference))


@name_arguments
def flux_shift(sequence: float, low: float = 0.5, high: float = 1.15) -> float:
    """Return Flux's shift for a sequence of patches: ``exp`` of a line through ``low`` at 256 and ``high`` at 4096.

    The line goes on beyond 4096: at 16,384 patches (2048 x 2048 pixels) the shift is 25.

    Args:
        sequence: Patches per image, above 0; see :func:`count_patches`.
        low: Logarithm of the shift at 256 patches.
        high: Logarithm of the shift at 4096 patches.
    """
    sequence = check_positive("flux_shift", "timesteps.density.shift.sequence", sequence)
    low = check_float("flux_shift", "timesteps.density.shift.low", low)
    high = check_float("flux_shift", "timesteps.density.shift.high", high)
    return math.exp(low + (high - low) * (sequence - 256) / (4096 - 256))


@name_arguments
def count_patches(size: int | Sequence[int], patch: int = 16) -> float:
    """Return the length of a transformer's sequence: how many patches an image has.

    Args:
        size: The images' height and width in pixels, one number for squares.
        patch: Height and width of a patch in pixels: for Flux 16, an autoencoder's 8 times 2.
    """
    pixels = _count_pixels("count_patches", "timesteps.density.shift.sequence.size", size)
    return pixels / check_int("count_patches", "timesteps.density.shift.sequence.patch", patch, 1) ** 2


@name_arguments
def flux_shift_by_size(size: int | Sequence[int], patch: int = 16, low: float = 0.5, high: float = 1.15) -> float:
    """Return :func:`flux_shift` for the patches of an image, for ``DensityTimesteps(shift_by_size=...)``.

    Args:
        size: The images' height and width, one number for squares.
        patch: Height and width of a patch: for Flux 16 pixels of an image, or 2 of a latent.
        low: See :func:`flux_shift`.
        high: Likewise.
    """
    return flux_shift(count_patches(size, patch), low, high)


def check_density(process: GaussianProcess, density: Density | Tensor) -> Tensor:
    """Return the probabilities of a density as float64, or refuse them.

    Args:
        process: The forward process.
        density: A function of the process, or the probabilities themselves.

    Raises:
        TypeError: It is no tensor of floats, or the function wants other arguments.
        ValueError: There is not one probability per step, one is negative, or their sum is not 1.
    """
    probabilities = density if isinstance(density, Tensor) else density(process)
    steps = process.num_timesteps
    probabilities = check_table("DensityTimesteps", "the density", "timesteps.density", probabilities, steps)
    total = float(probabilities.sum())
    if abs(total - 1) >= 1e-6:
        raise ValueError(
            f"DensityTimesteps: the density's sum is {total:.6g}, but probabilities sum to 1. Change "
            "`timesteps.density`."
        )
    return probabilities


def compute_thresholds(probabilities: Tensor) -> Tensor:
    """Return the thresholds ``round(2**32 F_k)`` with which a random word of 32 bits becomes a step.

    The step is the number of thresholds that are at most the word. A step of a probability below ``2**-33`` may never
    be drawn.

    Args:
        probabilities: float64, shape ``(num_timesteps,)``, sum 1.

    Returns:
        int64 in ``[0, 2**32]``, ascending, shape ``(num_timesteps,)``; the last is ``2**32``.
    """
    edges = (probabilities.cumsum(0) * 2.0**32).round().long().clamp(0, 2**32)
    last = int(probabilities.nonzero()[-1])
    return torch.where(torch.arange(len(edges)) >= last, 2**32, edges)  # whatever the sum was rounded to


def _count_pixels(call: str, key: str, size: object) -> int:
    sides = size if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"{call}: {size!r} is no height and width. Change `{key}`.")
    height, width = (check_int(call, key, side, 1) for side in sides)
    return height * width


def _edges(process: GaussianProcess) -> Tensor:
    """Return ``0, 1 / T, ..., 1``, float64."""
    return torch.arange(process.num_timesteps + 1, dtype=torch.float64) / process.num_timesteps


def _unshift(s: Tensor, shift: float) -> Tensor:
    return s / (shift - (shift - 1) * s)


def _differences(distribution: Tensor) -> Tensor:
    """Return the probabilities between the values of a distribution function, of which the last is 1."""
    return (distribution[1:] - distribution[:-1]).clamp(min=0)


def _log_sigma_edges(name: str, process: GaussianProcess) -> Tensor:
    """Return the middles between the steps' ``ln(sigma / signal)``, with minus infinity and infinity at the ends."""
    levels = -process.exact.log_snr / 2
    if not bool((levels[1:] >= levels[:-1]).all()):
        step = int((levels[1:] < levels[:-1]).nonzero()[0]) + 1
        raise ValueError(
            f"{name}: there is less noise at t={step} than at the step before, but this density draws a noise level "
            "and wants steps in its order. Change `timesteps.density` or `schedule`."
        )
    infinity = levels.new_tensor([math.inf])
    middles = torch.where(levels[1:].isfinite() & levels[:-1].isfinite(), (levels[1:] + levels[:-1]) / 2, math.nan)
    middles = torch.where(levels[:-1] == -math.inf, -math.inf, middles)  # what has no noise, or no signal, is at the
    middles = torch.where(levels[1:] == math.inf, math.inf, middles)  # end of the scale, and nothing is nearest to it
    return torch.cat([-infinity, middles, infinity])


def _beta_distribution(x: Tensor, a: float, b: float) -> Tensor:
    """Return the regularised incomplete beta function, by Lentz's method for its continued fraction (DLMF 8.17.22)."""
    is_high = x > (a + 1) / (a + b + 2)
    y = torch.where(is_high, 1 - x, x)
    first, second = (torch.where(is_high, x.new_tensor(high), low) for high, low in ((b, a), (a, b)))
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = (front + torch.xlogy(first, y) + torch.special.xlog1py(second, -y)).exp() / first
    c, d = torch.ones_like(y), 1 / (1 - (first + second) * y / (first + 1))
    fraction = d
    for m in range(1, 300):
        for numerator in (
            m * (second - m) * y / ((first + 2 * m - 1) * (first + 2 * m)),
            -(first + m) * (first + second + m) * y / ((first + 2 * m) * (first + 2 * m + 1)),
        ):
            d, c = 1 / (1 + numerator * d), 1 + numerator / c
            fraction = fraction * c * d
        if bool(((c * d - 1).abs() < 1e-15).all()):
            break
    values = front * fraction
    return torch.where(is_high, 1 - values, values)
