"""Noise schedules: functions that return ``betas``, float64, shape ``(num_timesteps,)``.

``betas[t]`` is the variance of the noise that step ``t`` adds:
``q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)`` (Ho et al. 2020, "Denoising diffusion probabilistic
models", Eq. 2). Steps are zero-based. ``alphas_cumprod`` is the running product of ``1 - betas``: the signal variance
left after each step. Every function raises ``TypeError`` or ``ValueError`` if no schedule fits its arguments.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_data._checks import check_betas, check_float, check_int
from ddpm_data._keys import name_arguments


@name_arguments
def linear(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02, rescale: bool = False) -> Tensor:
    """Return betas on a straight line (Ho et al. 2020, Section 4).

    Args:
        num_timesteps: T, number of steps.
        start: First beta, in ``[0, 1]``.
        end: Last beta, in ``[0, 1]``.
        rescale: Read ``start`` and ``end`` as the ends of 1000 steps and multiply both by ``1000 / num_timesteps``. A
            shorter chain then ends at about the same noise (guided-diffusion's convention).
    """
    steps = _check_num_timesteps("linear", num_timesteps)
    start, end = _check_ends("linear", start, end)
    if not isinstance(rescale, bool):
        raise TypeError(f"linear(rescale={rescale!r}): expected true or false. Change `schedule.rescale`.")
    scale = 1000 / steps if rescale else 1.0
    if end * scale > 1:
        raise ValueError(
            f"linear(num_timesteps={steps}, end={end}, rescale={rescale}): beta reaches {end * scale:.3g} > 1 at the "
            "last step, which would ask for a negative signal variance. Use more steps or a smaller `schedule.end`."
        )
    return check_betas("linear", torch.linspace(start * scale, end * scale, steps, dtype=torch.float64))


@name_arguments
def quadratic(num_timesteps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Return betas whose square roots lie on a straight line, between DDPM's end points ("quad" in the DDPM code).

    Args:
        num_timesteps: T, number of steps.
        start: First beta, in ``[0, 1]``.
        end: Last beta, in ``[0, 1]``.
    """
    return _square_a_line("quadratic", num_timesteps, start, end)


@name_arguments
def scaled_linear(num_timesteps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Return betas whose square roots lie on a straight line, between Stable Diffusion's end points.

    Stable Diffusion's and LDM's own configs call this schedule "linear" (Rombach et al. 2022); diffusers calls it
    "scaled_linear". Our :func:`linear` is linear in beta itself.

    Args:
        num_timesteps: T, number of steps.
        start: First beta, in ``[0, 1]``.
        end: Last beta, in ``[0, 1]``.
    """
    return _square_a_line("scaled_linear", num_timesteps, start, end)


@name_arguments
def constant(num_timesteps: int = 1000, beta: float = 0.02) -> Tensor:
    """Return the same beta for every step ("const" in the DDPM code).

    Args:
        num_timesteps: T, number of steps.
        beta: The beta, in ``[0, 1]``.
    """
    steps = _check_num_timesteps("constant", num_timesteps)
    check_float("constant", "schedule.beta", beta)
    return check_betas("constant", torch.full((steps,), beta, dtype=torch.float64))


@name_arguments
def jsd(num_timesteps: int = 1000) -> Tensor:
    """Return betas ``1 / (T - t)``, which let the signal fall in a straight line to exactly 0.

    The signal is ``alphas_cumprod`` (Sohl-Dickstein et al. 2015, Section 2.4.1).

    Args:
        num_timesteps: T, number of steps.
    """
    steps = _check_num_timesteps("jsd", num_timesteps)
    return 1 / torch.arange(steps, 0, -1, dtype=torch.float64)


@name_arguments
def cosine(num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """Return betas whose ``alphas_cumprod`` follows a squared cosine (Nichol & Dhariwal 2021, Eq. 17).

    Args:
        num_timesteps: T, number of steps.
        offset: s, fraction of T, at least 0; keeps the first beta away from 0.
        max_beta: Betas are clipped to this value, in ``(0, 1]``; the paper's 0.999 clips only the last.
    """
    steps = _check_num_timesteps("cosine", num_timesteps)
    check_float("cosine", "schedule.offset", offset)
    if offset < 0:
        raise ValueError(
            f"cosine(offset={offset}): with a negative offset alphas_cumprod rises at first, so a beta would be "
            "negative. Use `schedule.offset` >= 0 (0.008 in the paper)."
        )
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    signal = torch.cos((time + offset) / (1 + offset) * (math.pi / 2)) ** 2
    return _derive_betas("cosine", signal, max_beta)


@name_arguments
def sigmoid(
    num_timesteps: int = 1000, start: float = -3, end: float = 3, tau: float = 1, max_beta: float = 0.999
) -> Tensor:
    """Return betas whose ``alphas_cumprod`` follows a falling sigmoid.

    Jabri et al. 2022, "Scalable adaptive computation for iterative generation", Appendix.

    Args:
        num_timesteps: T, number of steps.
        start: Point of the logistic curve at which step 0 begins, before division by ``tau``; below ``end``.
        end: Point of the logistic curve at which the last step ends, before division by ``tau``.
        tau: Temperature, above 0; a larger one makes the curve straighter.
        max_beta: Betas are clipped to this value, in ``(0, 1]``.
    """
    steps = _check_num_timesteps("sigmoid", num_timesteps)
    for name, value in (("start", start), ("end", end), ("tau", tau)):
        check_float("sigmoid", f"schedule.{name}", value)
    if start >= end:
        raise ValueError(
            f"sigmoid(start={start}, end={end}): start must lie below end, or the signal would not fall with t. "
            "Swap `schedule.start` and `schedule.end`."
        )
    if tau <= 0:
        raise ValueError(
            f"sigmoid(tau={tau}): the temperature divides the curve, so it must be above 0. Change `schedule.tau`."
        )
    time = torch.linspace(start / tau, end / tau, steps + 1, dtype=torch.float64)
    # sigmoid(-x) rather than 1 - sigmoid(x): the difference of two numbers near 1 would lose the last steps' digits.
    curve = torch.sigmoid(-time)
    signal = (curve - curve[-1]) / (curve[0] - curve[-1])
    return _derive_betas("sigmoid", signal, max_beta)


@name_arguments
def from_alphas_cumprod(alphas_cumprod: Tensor | Sequence[float], max_beta: float = 1.0) -> Tensor:
    """Return the betas whose running product of ``1 - beta`` is ``alphas_cumprod``.

    Args:
        alphas_cumprod: Signal variance left after each step, in ``[0, 1]``, never rising, shape ``(num_timesteps,)``;
            only the last may be exactly 0.
        max_beta: Betas are clipped to this value, in ``(0, 1]``; 1 clips nothing.
    """
    if not isinstance(alphas_cumprod, Tensor | Sequence) or isinstance(alphas_cumprod, str):
        raise TypeError(
            f"from_alphas_cumprod: expected a tensor or a list of numbers, got {type(alphas_cumprod).__name__}. Change "
            "`schedule.alphas_cumprod`."
        )
    signal = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
    if signal.dim() != 1 or signal.numel() == 0:
        raise ValueError(
            f"from_alphas_cumprod: alphas_cumprod has shape {tuple(signal.shape)}, but one value per step is needed: "
            "shape (num_timesteps,), at least one. Change `schedule.alphas_cumprod`."
        )
    return _derive_betas("from_alphas_cumprod", torch.cat([signal.new_ones(1), signal]), max_beta)


@name_arguments
def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Rescale betas so that ``alphas_cumprod`` ends in exactly 0 and keeps its first value.

    Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", Algorithm 1:
    ``sqrt(alphas_cumprod)`` is shifted and stretched. At the last step ``x_t`` is then pure noise, from which no
    ``x_0`` can be predicted. Train for the velocity, or leave the last step out of sampling.

    Args:
        betas: Shape ``(num_timesteps,)``, at least two steps.
    """
    betas = check_betas("zero_terminal_snr", betas)
    root = torch.cumprod(1 - betas, 0).sqrt()
    first_root, last_root = root[0], root[-1]
    if not first_root > last_root:
        raise ValueError(
            f"zero_terminal_snr: sqrt(alphas_cumprod) goes from {first_root:.6g} to {last_root:.6g} over {len(betas)} "
            "step(s), and no stretch can keep its first value and end in 0. Give a `schedule` of at least two steps "
            "that adds noise."
        )
    root = (root - last_root) / (first_root - last_root) * first_root
    stretched_betas = _derive_betas("zero_terminal_snr", torch.cat([root.new_ones(1), root]).square(), 1.0)
    return torch.cat([betas[:1], stretched_betas[1:]])


@name_arguments
def shift_snr(betas: Tensor, shift: float) -> Tensor:
    """Multiply the signal-to-noise ratio at every step by ``shift ** 2``.

    Hoogeboom et al. 2023, "simple diffusion", Section 3.1: at the same noise, a larger image keeps more of its signal.
    So a schedule tuned at one image size is noised more at a larger one: ``log SNR`` is shifted by ``2 log(shift)``
    with ``shift = reference size / image size``. For example, ``64 / 256`` takes a schedule tuned at 64 pixels to 256.

    Args:
        betas: Shape ``(num_timesteps,)``.
        shift: Ratio of image sizes, above 0; below 1 adds noise, 1 changes nothing.
    """
    betas = check_betas("shift_snr", betas)
    check_float("shift_snr", "schedule.shift", shift)
    if not 0 < shift < 1e6:
        raise ValueError(
            f"shift_snr(shift={shift}): the shift is a ratio of image sizes (reference / yours), above 0 and below "
            "1e6. Change `schedule.shift`."
        )
    signal = torch.cumprod(1 - betas, 0)
    shifted_signal = signal * shift**2
    ratio = shifted_signal / (1 - signal + shifted_signal)
    return _derive_betas("shift_snr", torch.cat([signal.new_ones(1), ratio]), 1.0)


def _square_a_line(name: str, num_timesteps: int, start: float, end: float) -> Tensor:
    steps = _check_num_timesteps(name, num_timesteps)
    start, end = _check_ends(name, start, end)
    return check_betas(name, torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square())


def _derive_betas(name: str, signal: Tensor, max_beta: float) -> Tensor:
    """Derive betas, shape ``(T,)``, from the signal variance before the first and after each step, ``(T + 1,)``."""
    check_float(name, "schedule.max_beta", max_beta)
    if not 0 < max_beta <= 1:
        raise ValueError(
            f"{name}(max_beta={max_beta}): betas are clipped to a variance in (0, 1]. Change `schedule.max_beta`."
        )
    is_invalid = ~((signal >= 0) & (signal <= 1))  # negated, so that NaN counts as invalid
    if bool(is_invalid.any()):
        step = int(is_invalid.nonzero()[0]) - 1
        raise ValueError(
            f"{name}: alphas_cumprod is {signal[step + 1]:.6g} at t={step}, but it is a variance and lies in [0, 1]. "
            "Change `schedule`."
        )
    rises = signal[1:] > signal[:-1]
    if bool(rises.any()):
        step = int(rises.nonzero()[0])
        raise ValueError(
            f"{name}: alphas_cumprod rises from {signal[step]:.6g} to {signal[step + 1]:.6g} at t={step}, which would "
            "ask for a negative beta. Signal can only be lost: set `schedule` to values in [0, 1] that never rise."
        )
    if bool((signal[:-1] <= 0).any()):
        step = int((signal <= 0).nonzero()[0]) - 1
        raise ValueError(
            f"{name}: alphas_cumprod is {signal[step + 1]:.6g} at t={step}, before the last step t={len(signal) - 2}. "
            "The later steps would have no signal left to noise. Change `schedule` so that only the last value is 0."
        )
    return check_betas(name, (1 - signal[1:] / signal[:-1]).clamp(max=max_beta))


def _check_ends(name: str, start: float, end: float) -> tuple[float, float]:
    start, end = check_float(name, "schedule.start", start), check_float(name, "schedule.end", end)
    for key, value in (("start", start), ("end", end)):
        if value < 0:
            raise ValueError(f"{name}({key}={value}): beta is a variance, never negative. Change `schedule.{key}`.")
    if start > end:
        raise ValueError(
            f"{name}(start={start}, end={end}): the first beta is larger than the last, so clean images would be "
            "noised fastest. Swap `schedule.start` and `schedule.end`."
        )
    return start, end


def _check_num_timesteps(name: str, num_timesteps: int) -> int:
    return check_int(name, "schedule.num_timesteps", num_timesteps, 1)
