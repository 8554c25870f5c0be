"""The forward process: DDPM's formulas (Ho et al. 2020) on buffers computed once in float64."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm_data._checks import check_betas


class Gaussian(NamedTuple):
    """Mean and variance of a diagonal normal distribution, both of the images' shape."""

    mean: Tensor
    variance: Tensor


class ForwardProcess(nn.Module):
    """q(x_t | x_0) and what belongs to it, for one noise schedule.

    Tensor arguments of the methods: images and noise are floating point, shape ``(batch, ...)``, any number of trailing
    dimensions; ``t`` is int64, shape ``(batch,)``, zero-based, in ``[0, num_timesteps)``. Results have the images'
    shape and dtype; bfloat16 and float16 are computed in float32 and cast last, or the first steps would get no noise.

    The buffers are float32, shape ``(num_timesteps,)``: ``betas``, ``alphas``, ``alphas_cumprod``,
    ``alphas_cumprod_prev`` (1 in front), ``sqrt_alphas_cumprod``, ``sqrt_one_minus_alphas_cumprod``, and for the
    reverse process ``sqrt_recip_alphas``, ``sqrt_recip_alphas_cumprod``, ``sqrt_recipm1_alphas_cumprod``,
    ``posterior_variance``, ``posterior_log_variance_clipped``, ``posterior_mean_coef1`` (of ``x_0``) and
    ``posterior_mean_coef2`` (of ``x_t``). They follow the module's device but keep float32 under ``.half()`` and the
    like, and stay out of ``state_dict``: the schedule is what the constructor was given. All are finite: where no
    signal is left (zero terminal SNR) the three reciprocals hold 0, and the methods that need them refuse.

    Args:
        betas: Variance of the noise each step adds, floating point (best float64), in ``[0, 1]``, shape
            ``(num_timesteps,)``; see :mod:`ddpm_data.schedules`.

    Raises:
        TypeError: ``betas`` is not a floating-point tensor.
        ValueError: ``betas`` is empty, not one-dimensional, or has a value outside ``[0, 1]``.
    """

    betas: Tensor
    alphas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        betas = check_betas("ForwardProcess", betas).cpu()
        self.num_timesteps = len(betas)
        for name, values in _tables(betas).items():
            self.register_buffer(name, values.float(), persistent=False)
        # Known once, on the CPU, so that ordinary schedules never pay for the question on the device.
        self._has_no_signal = bool((self.alphas_cumprod == 0).any())
        self._has_no_noise = bool((self.sqrt_one_minus_alphas_cumprod == 0).any())

    def check_steps(self, t: Tensor) -> None:
        """Refuse steps that are none of this process's.

        Raises:
            TypeError: ``t`` is not int64.
            ValueError: On the CPU: a step lies outside ``[0, num_timesteps)``.
        """
        _check_steps(t, self.num_timesteps)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Jump from clean images straight to step ``t``: sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, Eq. 4)."""
        return _combine(self.sqrt_alphas_cumprod, x_0, self.sqrt_one_minus_alphas_cumprod, noise, t)

    def q_step(self, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """One Markov step from ``x_{t-1}`` to ``x_t``: sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise (DDPM, Eq. 2)."""
        return _combine(self.alphas.sqrt(), x_prev, self.betas.sqrt(), noise, t)

    def q_mean_variance(self, x_0: Tensor, t: Tensor) -> Gaussian:
        """Mean and variance of q(x_t | x_0) (DDPM, Eq. 4)."""
        mean = _scale(self.sqrt_alphas_cumprod, x_0, t)
        # Squared root rather than 1 - abar: near t = 0 the difference has lost half of float32's digits.
        return Gaussian(mean, _broadcast(self.sqrt_one_minus_alphas_cumprod.square(), x_0, t))

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Gaussian:
        """Mean and variance of q(x_{t-1} | x_t, x_0), which ancestral sampling draws from (DDPM, Eqs. 6 and 7)."""
        mean = _combine(self.posterior_mean_coef1, x_0, self.posterior_mean_coef2, x_t, t)
        return Gaussian(mean, _broadcast(self.posterior_variance, x_0, t))

    def predict_x_0(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The ``x_0`` that ``noise`` would have taken to ``x_t`` (DDPM, Eq. 4 solved for x_0).

        Raises:
            ValueError: Some ``t`` has zero signal-to-noise ratio.
        """
        if self._has_no_signal:
            self._refuse(t, self.alphas_cumprod, "predict_x_0", "x_t is pure noise there and says nothing of x_0")
        return _combine(self.sqrt_recip_alphas_cumprod, x_t, -self.sqrt_recipm1_alphas_cumprod, noise, t)

    def predict_noise(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """The noise that takes ``x_0`` to ``x_t`` (DDPM, Eq. 4 solved for the noise).

        Raises:
            ValueError: Some ``t`` has no noise yet (every beta so far is 0).
        """
        if self._has_no_noise:
            self._refuse(t, self.sqrt_one_minus_alphas_cumprod, "predict_noise", "x_t equals x_0 there, without noise")
        sigma = self.sqrt_one_minus_alphas_cumprod
        return _combine(1 / sigma, x_t, -self.sqrt_alphas_cumprod / sigma, x_0, t)

    def velocity(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Velocity sqrt(abar_t) noise - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, "Progressive distillation")."""
        return _combine(self.sqrt_alphas_cumprod, noise, -self.sqrt_one_minus_alphas_cumprod, x_0, t)

    def predict_x_0_from_velocity(self, x_t: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
        """The ``x_0`` that ``velocity`` implies at ``x_t``; defined at every step, zero terminal SNR included."""
        return _combine(self.sqrt_alphas_cumprod, x_t, -self.sqrt_one_minus_alphas_cumprod, velocity, t)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t), float32, shape of ``t``; infinite where nothing is noised."""
        return (_gather(self.sqrt_alphas_cumprod, t) / _gather(self.sqrt_one_minus_alphas_cumprod, t)).square()

    def _refuse(self, t: Tensor, quantity: Tensor, method: str, why: str) -> None:
        wrong = t[_gather(quantity, t) == 0]
        if wrong.numel():
            raise ValueError(
                f"{method}: asked at t={int(wrong[0])}, but {why}. Leave that step out, or let the model predict the "
                "velocity and use predict_x_0_from_velocity."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ForwardProcess":
        """Follow a parent module to another device, but never to another precision."""

        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self


def _tables(betas: Tensor) -> dict[str, Tensor]:
    alphas = 1 - betas
    alphas_cumprod = torch.cumprod(alphas, 0)
    alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    noise = 1 - alphas_cumprod
    # Before any noise x_{t-1} = x_t = x_0: the posterior is that point, as it is at t = 0 with its variance of 0.
    some = noise > 0
    variance = torch.where(some, betas * (1 - alphas_cumprod_prev) / noise, 0.0)
    return {
        "betas": betas,
        "alphas": alphas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": alphas_cumprod_prev,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
        "sqrt_recip_alphas": _reciprocal(alphas).sqrt(),
        "sqrt_recip_alphas_cumprod": _reciprocal(alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (noise * _reciprocal(alphas_cumprod)).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": _clipped_log(variance),
        "posterior_mean_coef1": torch.where(some, betas * alphas_cumprod_prev.sqrt() / noise, 1.0),
        "posterior_mean_coef2": torch.where(some, (1 - alphas_cumprod_prev) * alphas.sqrt() / noise, 0.0),
    }


def _reciprocal(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0.0)


def _clipped_log(variance: Tensor) -> Tensor:
    """Log of the variance, its zeros (t = 0) replaced by the first that is not one (as in the DDPM code)."""
    positive = variance[variance > 0]
    floor = positive[0] if len(positive) else variance.new_tensor(1e-20)
    return torch.where(variance > 0, variance, floor).log()


def _combine(a: Tensor, x: Tensor, b: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """``a[t] * x + b[t] * y`` in at least float32, in the dtype of ``x``."""
    if y.shape != x.shape:
        raise ValueError(f"two tensors of one shape are needed, not {tuple(x.shape)} and {tuple(y.shape)}.")
    return (_column(a, t, x) * _to_float32(x) + _column(b, t, y) * _to_float32(y)).to(x.dtype)


def _scale(a: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return (_column(a, t, x) * _to_float32(x)).to(x.dtype)


def _broadcast(table: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return _column(table, t, x).to(x.dtype).expand(x.shape)


def _to_float32(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(
            f"images and noise are floating point here, not {x.dtype}; ForwardDiffusion scales uint8 images."
        )
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _column(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """``table[t]``, shaped to scale each image of ``x``."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; one step an image is needed, shape ({x.shape[0]},).")
    return _gather(table, t).view(-1, *[1] * (x.dim() - 1))


def _gather(table: Tensor, t: Tensor) -> Tensor:
    _check_steps(t, len(table))
    return table[t]


def _check_steps(t: Tensor, num_timesteps: int) -> None:
    if t.dtype != torch.int64:
        raise TypeError(f"t must be int64, not {t.dtype}: steps are whole and index the tables.")
    # On the CPU only: elsewhere the look would stop the device, which refuses t >= num_timesteps itself.
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and t.numel():
        low, high = t.aminmax()
        if low < 0 or high >= num_timesteps:
            raise ValueError(f"t spans {int(low)} to {int(high)}; steps are zero-based, in [0, {num_timesteps}).")
