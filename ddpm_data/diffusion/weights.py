"""Loss weights by step, each defined once on the squared error of ``x_0`` and derived from it for every target.

A weight is a function ``(process, target) -> float64, shape (num_timesteps,)``. It multiplies the squared error of the
*target*. Two weights that are equal on ``x_0``'s error train the same, whatever the network predicts::

    losses = squared_error.flatten(1).mean(1)
    loss = (datamodule.loss_weight(t) * losses).mean()

All raise ``ValueError`` at a step without signal or without noise at which the weight has no finite limit. Give a
weight's other arguments with :func:`functools.partial`, in the configs with ``_partial_: true``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpm_data._checks import check_float
from ddpm_data._keys import name_arguments
from ddpm_data.diffusion.process import GaussianProcess
from ddpm_data.diffusion.processes import check_positive
from ddpm_data.diffusion.targets import Target, check_target, error_ratio, nearly_exact

Weight = Callable[[GaussianProcess, Target], Tensor]
_MOST = 1e12  # a weight beyond it (or below its inverse) tends to infinity (or 0) at a step without signal or noise


@name_arguments
def uniform(process: GaussianProcess, target: Target, of: Target = "noise") -> Tensor:
    """Weigh the error of ``of`` the same at every step (``of="noise"``: Ho et al. 2020, Eq. 14).

    Args:
        process: The forward process.
        target: What the network predicts.
        of: The target whose error has weight 1.
    """
    return _derive("uniform", process, target, error_ratio(process, check_target("uniform", of)))


@name_arguments
def min_snr(process: GaussianProcess, target: Target, gamma: float = 5.0) -> Tensor:
    """Weigh x_0's error by ``min(SNR, gamma)`` (Hang et al. 2023, "Efficient diffusion training via min-SNR").

    Args:
        process: The forward process.
        target: What the network predicts.
        gamma: Above 0.
    """
    gamma = check_positive("min_snr", "weight.gamma", gamma)
    return _derive("min_snr", process, target, _snr(process).clamp(max=gamma))


@name_arguments
def soft_min_snr(process: GaussianProcess, target: Target, gamma: float = 5.0) -> Tensor:
    """Weigh x_0's error by ``gamma SNR / (SNR + gamma)`` (Crowson et al. 2024, "Hourglass diffusion", Eq. 11).

    Args:
        process: The forward process.
        target: What the network predicts.
        gamma: Above 0.
    """
    gamma = check_positive("soft_min_snr", "weight.gamma", gamma)
    snr = _snr(process)
    return _derive("soft_min_snr", process, target, gamma / (1 + gamma / snr))


@name_arguments
def truncated_snr(process: GaussianProcess, target: Target) -> Tensor:
    """Weigh x_0's error by ``max(SNR, 1)`` (Salimans & Ho 2022, "Progressive distillation", Section 4).

    Args:
        process: The forward process.
        target: What the network predicts.
    """
    return _derive("truncated_snr", process, target, _snr(process).clamp(min=1))


@name_arguments
def debiased(process: GaussianProcess, target: Target) -> Tensor:
    """Weigh x_0's error by ``sqrt(SNR)`` (Yu et al. 2023, "Debias the training of diffusion models").

    Args:
        process: The forward process.
        target: What the network predicts.
    """
    return _derive("debiased", process, target, _snr(process).sqrt())


@name_arguments
def p2(process: GaussianProcess, target: Target, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Weigh x_0's error by ``SNR / (k + SNR)**gamma`` (Choi et al. 2022, "Perception prioritized training", Eq. 8).

    Args:
        process: The forward process.
        target: What the network predicts.
        k: Above 0.
        gamma: Power of the weight; 0 weighs the noise's error uniformly.
    """
    k, gamma = check_positive("p2", "weight.k", k), check_float("p2", "weight.gamma", gamma)
    snr = _snr(process)
    # At a step without noise only the side of 0 and 1 on which gamma lies decides: there 1e30, the stand-in for an
    # infinite SNR, to the power of a gamma near 0 would not be near 0 or infinity.
    at_limit = ((gamma >= 0) + (gamma > 0) + (gamma >= 1) + (gamma > 1) - 1) / 2  # -0.5, 0, 0.5, 1 or 1.5
    power = torch.full_like(snr, gamma).masked_fill(process.exact.sigma == 0, at_limit)
    return _derive("p2", process, target, snr / (k + snr) ** power)


@name_arguments
def edm(process: GaussianProcess, target: Target, sigma_data: float = 0.5) -> Tensor:
    """Weigh x_0's error by ``SNR + 1 / sigma_data**2``, which is 1 on EDM's output F (Karras et al. 2022, Table 1).

    Args:
        process: The forward process.
        target: What the network predicts.
        sigma_data: Standard deviation of the images, above 0.
    """
    deviation = check_positive("edm", "weight.sigma_data", sigma_data)
    return _derive("edm", process, target, _snr(process) + deviation**-2)


@name_arguments
def vlb(process: GaussianProcess, target: Target) -> Tensor:
    """Weigh x_0's error by ``(SNR(t-1) - SNR(t)) / 2``, as in the variational bound (Kingma et al. 2021, Eq. 14).

    The step ``t = 0`` stands for the reconstruction: ``SNR(0) / 2``, that of a normal decoder with that step's noise.

    Args:
        process: The forward process.
        target: What the network predicts.
    """
    snr = _snr(process)
    return _derive("vlb", process, target, torch.cat([snr[:1], snr[:-1] - snr[1:]]) / 2, looks_back=True)


@name_arguments
def sigmoid(process: GaussianProcess, target: Target, bias: float = 2.0) -> Tensor:
    """Weigh the noise's error by ``sigmoid(bias - log SNR)`` per unit of log SNR (Kingma & Gao 2023, Appendix).

    Steps draw ``log SNR`` unevenly, so the weight of a step is multiplied by how far ``log SNR`` falls from the step
    before it to this one. ``t = 0`` takes the fall to the next step. After a step without noise the fall is infinite.

    Args:
        process: The forward process.
        target: What the network predicts.
        bias: The ``log SNR`` at which the weight is a half; larger ones keep the weight of steps with less noise.
    """
    snr = _snr(process)
    log_snr = snr.log()
    falls = log_snr[:-1] - log_snr[1:]
    if not len(falls):
        raise ValueError("sigmoid: a process of one step has no fall of log SNR. Change `weight` or `schedule`.")
    falls = torch.where(_is_limit(process, looks_back=True), torch.inf, torch.cat([falls[:1], falls]))
    # Infinite, too, but times an SNR whose limit is 0 or infinite.
    falls = torch.where(_is_limit(process, looks_back=False), 1e15, falls)
    values = snr * torch.sigmoid(check_float("sigmoid", "weight.bias", bias) - log_snr) * falls
    return _derive("sigmoid", process, target, values, looks_back=True)


def _snr(process: GaussianProcess) -> Tensor:
    """Return the signal-to-noise ratio in float64; 1e-30 and 1e30 in place of 0 and infinity."""
    signal, sigma = nearly_exact(process)
    return (signal / sigma).square()


def _derive(
    name: str, process: GaussianProcess, target: Target, weight_of_x_0: Tensor, looks_back: bool = False
) -> Tensor:
    """Derive the weight of the target's error from that of x_0's: ``|d_target|**2 = ratio |d_x_0|**2``.

    Args:
        name: The weight's name, for errors.
        process: The forward process.
        target: What the network predicts.
        weight_of_x_0: float64, shape ``(num_timesteps,)``.
        looks_back: Whether a step's weight depends on the step before.
    """
    weight = weight_of_x_0 / error_ratio(process, check_target(name, target))
    is_limit = _is_limit(process, looks_back)
    diverges = is_limit & ~(weight < _MOST)
    if bool(diverges.any()):
        step = int(diverges.nonzero()[0])
        missing = "signal" if bool((process.exact.signal == 0).any()) else "noise"
        raise ValueError(
            f"weights.{name}: on the error of target={target!r} the weight is infinite at t={step}, because the "
            f"process has a step without {missing}. Let the network predict another target (the velocity, or on a "
            "straight path the flow), or change `weight` or `schedule`."
        )
    return torch.where(is_limit & (weight < 1 / _MOST), 0.0, weight)


def _is_limit(process: GaussianProcess, looks_back: bool) -> Tensor:
    """Tell at which steps a weight is a limit: those without signal or without noise.

    A weight that depends on the step before is one at the step after one without noise, too.
    """
    no_noise = process.exact.sigma == 0
    has_none = (process.exact.signal == 0) | no_noise
    return has_none | torch.cat([no_noise[:1], no_noise[:-1]]) if looks_back else has_none
