"""Forward processes: how much image and how much noise ``x_t`` holds, on buffers computed once in float64.

:class:`GaussianProcess` is the general one, :class:`ForwardProcess` is DDPM's chain with its formulas (Ho et al. 2020).
Training batches do not call :meth:`GaussianProcess.q_sample`. The batch transform reads the buffers and computes
``x_t`` itself, in ``diffusion/_kernels.py``, because one compiled pass draws the noise and adds it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_data._checks import check_betas, check_table
from ddpm_data._keys import name_arguments


class Gaussian(NamedTuple):
    """A diagonal normal distribution.

    Attributes:
        mean: Mean of each value, shape of the images.
        variance: Variance of each value, shape of the images.
    """

    mean: Tensor
    variance: Tensor


class ExactTables(NamedTuple):
    """A process's factors before they are rounded to float32: float64, on the CPU, shape ``(num_timesteps,)``.

    Attributes:
        signal: Factor of ``x_0`` in ``x_t``.
        sigma: Factor of the noise in ``x_t``.
    """

    signal: Tensor
    sigma: Tensor

    @property
    def log_snr(self) -> Tensor:
        """``ln(signal**2 / sigma**2)``: infinite at a step without noise, minus infinite at one without signal."""
        return 2 * (self.signal.log() - self.sigma.log())


class GaussianProcess(nn.Module):
    """A forward process ``q(x_t | x_0)`` that adds normal noise: ``x_t = signal[t] x_0 + sigma[t] noise``.

    DDPM's chain, variance exploding (EDM) and straight paths (rectified flow) are of this form.
    :mod:`ddpm_data.processes` makes them.

    All methods take images and noise as floating point, shape ``(batch, ...)``, with any number of trailing dimensions.
    ``t`` is int64, shape ``(batch,)``, zero-based, in ``[0, num_timesteps)``. Results have the images' shape and dtype.
    bfloat16 and float16 images are noised in float32 and cast last. Otherwise the first steps would add no noise. Only
    ``predict_x_0`` and ``predict_noise`` refuse an ``x_t`` of these dtypes: they divide, which enlarges its rounding.

    The buffers are float32, shape ``(num_timesteps,)``:

    - ``signal``, ``sigma``: the factors of ``x_0`` and of the noise in ``x_t``
    - ``condition``: what the network is told about the step, such as ``t``, ``1000 s`` or ``ln(sigma) / 4``

    They follow the module's device. They keep float32 under ``.half()`` and the like. They stay out of ``state_dict``,
    since the constructor's arguments determine them. ``exact`` has the first two in float64, on the CPU.

    Args:
        signal: Factor of ``x_0`` at each step, floating point (best float64), at least 0, shape ``(num_timesteps,)``.
        sigma: Factor of the noise at each step, likewise.
        condition: What the network is told at each step, floating point, same shape. Default: ``t``.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: An argument is empty, not one-dimensional, negative or not finite, the shapes differ, or signal and
            sigma are both 0 at a step.
    """

    signal: Tensor
    sigma: Tensor
    condition: Tensor

    @name_arguments
    def __init__(self, signal: Tensor, sigma: Tensor, condition: Tensor | None = None) -> None:
        super().__init__()
        signal = check_table("GaussianProcess", "signal", "schedule", signal)
        sigma = check_table("GaussianProcess", "sigma", "schedule", sigma, len(signal))
        if bool(((signal == 0) & (sigma == 0)).any()):
            step = int(((signal == 0) & (sigma == 0)).nonzero()[0])
            raise ValueError(
                f"GaussianProcess: signal and sigma are both 0 at t={step}, so x_t would be 0 whatever the image. "
                "Change `schedule`."
            )
        self.num_timesteps = len(signal)
        self.exact = ExactTables(signal, sigma)
        if condition is None:
            condition = torch.arange(self.num_timesteps, dtype=torch.float64)
        condition = check_table(
            "GaussianProcess", "condition", "schedule", condition, len(signal), may_be_negative=True
        )
        tables = {"signal": signal, "sigma": sigma, "condition": condition}
        for name, values in tables.items():
            self.register_buffer(name, values.float(), persistent=False)
        # Computed once, on the CPU: an ordinary schedule never has to check its steps on the device.
        self._has_no_signal = bool((self.signal == 0).any())
        self._has_no_noise = bool((self.sigma == 0).any())
        #: Whether ``signal ** 2 + sigma ** 2`` is 1 at every step.
        self.is_variance_preserving = bool(((signal.square() + sigma.square() - 1).abs() < 1e-6).all())

    def check_steps(self, t: Tensor) -> None:
        """Refuse steps that this process does not have.

        Args:
            t: Zero-based steps, any shape.

        Raises:
            TypeError: ``t`` is not int64.
            ValueError: A step lies outside ``[0, num_timesteps)``. Only checked on the CPU.
        """
        _check_steps(t, self.num_timesteps)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Jump from clean images straight to step ``t`` (DDPM, Eq. 4).

        Args:
            x_0: Clean images, in ``[-1, 1]`` for pixels.
            t: Steps, int64, shape ``(batch,)``.
            noise: Standard normal noise, shape of ``x_0``.

        Returns:
            ``signal[t] * x_0 + sigma[t] * noise``, shape and dtype of ``x_0``.
        """
        return combine(self.signal, x_0, self.sigma, noise, t)

    def q_mean_variance(self, x_0: Tensor, t: Tensor) -> Gaussian:
        """Compute mean and variance of ``q(x_t | x_0)`` (DDPM, Eq. 4).

        Args:
            x_0: Clean images.
            t: Steps, int64, shape ``(batch,)``.
        """
        mean = _scale(self.signal, x_0, t)
        # The square of the root, not 1 - abar: near t = 0 that difference would lose half of float32's digits.
        return Gaussian(mean, _broadcast(self.sigma.square(), x_0, t))

    def predict_x_0(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Predict the ``x_0`` that ``noise`` turns into ``x_t`` (DDPM, Eq. 4 solved for x_0).

        Args:
            x_t: Noised images.
            t: Steps, int64, shape ``(batch,)``.
            noise: The noise in ``x_t``, or a model's prediction of it, shape of ``x_t``.

        Raises:
            TypeError: ``x_t`` is bfloat16 or float16: at the last steps its rounding would grow a hundredfold.
            ValueError: A step in ``t`` has zero signal-to-noise ratio.
        """
        _refuse_half(x_t, "predict_x_0", "x_0", "signal[t], 0.006 at DDPM's last step")
        if self._has_no_signal:
            self._refuse_zeros(t, self.signal, "predict_x_0", "x_t is pure noise and contains nothing of x_0")
        return combine(1 / self.signal, x_t, -self.sigma / self.signal, noise, t)

    def predict_noise(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """Predict the noise that turns ``x_0`` into ``x_t`` (DDPM, Eq. 4 solved for the noise).

        Args:
            x_t: Noised images.
            t: Steps, int64, shape ``(batch,)``.
            x_0: Clean images, or a model's prediction of them, shape of ``x_t``.

        Raises:
            TypeError: ``x_t`` is bfloat16 or float16: at the first steps its rounding would grow a hundredfold.
            ValueError: A step in ``t`` has no noise yet (every beta up to it is 0).
        """
        _refuse_half(x_t, "predict_noise", "the noise", "sigma[t], 0.01 at DDPM's first step")
        if self._has_no_noise:
            self._refuse_zeros(t, self.sigma, "predict_noise", "x_t equals x_0 and contains no noise")
        return combine(1 / self.sigma, x_t, -self.signal / self.sigma, x_0, t)

    def velocity(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Compute the velocity of v-prediction (Salimans & Ho 2022, "Progressive distillation").

        Args:
            x_0: Clean images.
            t: Steps, int64, shape ``(batch,)``.
            noise: The noise in ``x_t``, shape of ``x_0``.

        Returns:
            ``signal[t] * noise - sigma[t] * x_0``, shape and dtype of ``x_0``.

        Raises:
            ValueError: The process does not preserve the variance.
        """
        self._check_velocity("velocity")
        return combine(self.signal, noise, -self.sigma, x_0, t)

    def predict_x_0_from_velocity(self, x_t: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
        """Predict the ``x_0`` that ``velocity`` implies at ``x_t``; defined at every step, zero terminal SNR included.

        Args:
            x_t: Noised images.
            t: Steps, int64, shape ``(batch,)``.
            velocity: The velocity, or a model's prediction of it, shape of ``x_t``.

        Returns:
            ``signal[t] * x_t - sigma[t] * velocity``, shape and dtype of ``x_t``.

        Raises:
            ValueError: The process does not preserve the variance.
        """
        self._check_velocity("predict_x_0_from_velocity")
        return combine(self.signal, x_t, -self.sigma, velocity, t)

    def snr(self, t: Tensor) -> Tensor:
        """Compute the signal-to-noise ratio ``signal[t]**2 / sigma[t]**2``; infinite at a step without noise.

        Args:
            t: Steps, int64, any shape.

        Returns:
            float32, shape of ``t``.
        """
        return (gather(self.signal, t) / gather(self.sigma, t)).square()

    def _check_velocity(self, method: str) -> None:
        if not self.is_variance_preserving:
            raise ValueError(
                f"{method}: the velocity signal * noise - sigma * x_0 is defined where signal^2 + sigma^2 = 1, which "
                "does not hold for this process. On a straight path predict the flow, noise - x_0 (`target: flow`)."
            )

    def _refuse_zeros(self, t: Tensor, table: Tensor, method: str, reason: str) -> None:
        bad_steps = t[gather(table, t) == 0]
        if bad_steps.numel():
            raise ValueError(
                f"{method}: called at t={int(bad_steps[0])}, but {reason}. Leave that step out, or let the model "
                "predict the velocity and use predict_x_0_from_velocity."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GaussianProcess":
        """Move the buffers with a parent module to another device, but keep their dtype."""
        super()._apply(keep_dtypes(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self


class ForwardProcess(GaussianProcess):
    """DDPM's forward process: a Markov chain that preserves the variance, made of one noise schedule (Ho et al. 2020).

    ``signal`` is ``sqrt(abar_t)`` and ``sigma`` is ``sqrt(1 - abar_t)``. Steps of the chain and its posterior come on
    top of what every :class:`GaussianProcess` has. So do these buffers, float32, shape ``(num_timesteps,)``:

    - forward: ``betas``, ``alphas``, ``alphas_cumprod``, ``alphas_cumprod_prev`` (shifted by one step, 1 in front),
      ``sqrt_alphas_cumprod``, ``sqrt_one_minus_alphas_cumprod``
    - reverse: ``sqrt_recip_alphas``, ``sqrt_recip_alphas_cumprod``, ``sqrt_recipm1_alphas_cumprod``,
      ``posterior_variance``, ``posterior_log_variance_clipped``, ``posterior_mean_coef1`` (the factor of ``x_0``),
      ``posterior_mean_coef2`` (the factor of ``x_t``)

    All are finite: at a step without signal (zero terminal SNR) the three reciprocals hold 0.

    Args:
        betas: Variance of the noise that each step adds, floating point (best float64), in ``[0, 1]``, shape
            ``(num_timesteps,)``; see :mod:`ddpm_data.schedules`.
        condition: What the network is told at each step, floating point, same shape. Default: ``t``.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: ``betas`` is empty, not one-dimensional, or has a value outside ``[0, 1]``, or ``condition`` has
            another shape or is not finite.
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

    @name_arguments
    def __init__(self, betas: Tensor, condition: Tensor | None = None) -> None:
        buffers = _compute_buffers(check_betas("ForwardProcess", betas).cpu())
        super().__init__(buffers["sqrt_alphas_cumprod"], buffers["sqrt_one_minus_alphas_cumprod"], condition)
        for name, values in buffers.items():
            self.register_buffer(name, values.float(), persistent=False)

    def q_step(self, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Take one Markov step from ``x_{t-1}`` to ``x_t`` (DDPM, Eq. 2).

        Args:
            x_prev: ``x_{t-1}``; the clean images at ``t = 0``.
            t: Steps, int64, shape ``(batch,)``.
            noise: Standard normal noise, shape of ``x_prev``.

        Returns:
            ``sqrt(1 - beta_t) * x_prev + sqrt(beta_t) * noise``, shape and dtype of ``x_prev``.
        """
        return combine(self.alphas.sqrt(), x_prev, self.betas.sqrt(), noise, t)

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Gaussian:
        """Compute mean and variance of ``q(x_{t-1} | x_t, x_0)``, which ancestral sampling draws from (Eqs. 6 and 7).

        Args:
            x_0: Clean images.
            x_t: Noised images, shape of ``x_0``.
            t: Steps, int64, shape ``(batch,)``.
        """
        mean = combine(self.posterior_mean_coef1, x_0, self.posterior_mean_coef2, x_t, t)
        return Gaussian(mean, _broadcast(self.posterior_variance, x_0, t))


def make_process(schedule: Any) -> GaussianProcess:  # noqa: ANN401  # what is no process is for ForwardProcess to judge
    """Return the process that a schedule stands for.

    Args:
        schedule: A process, betas, or a function without arguments that returns one of them.

    Raises:
        TypeError: It is none of these.
        ValueError: The betas are no variances.
    """
    if callable(schedule) and not isinstance(schedule, nn.Module):
        schedule = schedule()
    return schedule if isinstance(schedule, GaussianProcess) else ForwardProcess(schedule)


def keep_dtypes(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that moves a buffer where ``fn`` does, but keeps its dtype."""

    def move(buffer: Tensor) -> Tensor:
        result = fn(buffer)
        return result if result.dtype == buffer.dtype else buffer.to(result.device)

    return move


def _compute_buffers(betas: Tensor) -> dict[str, Tensor]:
    alphas = 1 - betas
    alphas_cumprod = torch.cumprod(alphas, 0)
    alphas_cumprod_prev = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    noise = 1 - alphas_cumprod
    # At a step without noise x_{t-1} = x_t = x_0. The posterior is that one point, with variance 0, as at t = 0.
    has_noise = noise > 0
    variance = torch.where(has_noise, betas * (1 - alphas_cumprod_prev) / noise, 0.0)
    return {
        "betas": betas,
        "alphas": alphas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": alphas_cumprod_prev,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
        "sqrt_recip_alphas": _invert(alphas).sqrt(),
        "sqrt_recip_alphas_cumprod": _invert(alphas_cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (noise * _invert(alphas_cumprod)).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": _clip_log(variance),
        "posterior_mean_coef1": torch.where(has_noise, betas * alphas_cumprod_prev.sqrt() / noise, 1.0),
        "posterior_mean_coef2": torch.where(has_noise, (1 - alphas_cumprod_prev) * alphas.sqrt() / noise, 0.0),
    }


def _invert(values: Tensor) -> Tensor:
    """Return reciprocals; the result for a value of 0 is 0."""
    return torch.where(values > 0, 1 / values, 0.0)


def _clip_log(variance: Tensor) -> Tensor:
    """Take the log of the variance, with zeros (t = 0) replaced by the first positive value (as in the DDPM code)."""
    positive = variance[variance > 0]
    floor = positive[0] if len(positive) else variance.new_tensor(1e-20)
    return torch.where(variance > 0, variance, floor).log()


def combine(a: Tensor, x: Tensor, b: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Compute ``a[t] * x + b[t] * y`` in float32 or better, and cast to the dtype of ``x``."""
    if y.shape != x.shape:
        raise ValueError(
            f"images and noise have shapes {tuple(x.shape)} and {tuple(y.shape)}, but two tensors of one shape are "
            "needed."
        )
    return (_gather_factors(a, t, x) * _to_float32(x) + _gather_factors(b, t, y) * _to_float32(y)).to(x.dtype)


def _scale(a: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return (_gather_factors(a, t, x) * _to_float32(x)).to(x.dtype)


def _broadcast(table: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return _gather_factors(table, t, x).to(x.dtype).expand(x.shape)


def _to_float32(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(
            f"images and noise must be floating point here, not {x.dtype}. ForwardDiffusion scales uint8 images."
        )
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _refuse_half(x_t: Tensor, method: str, result: str, divisor: str) -> None:
    if x_t.dtype in (torch.bfloat16, torch.float16):
        kind = str(x_t.dtype).removeprefix("torch.")
        raise TypeError(
            f"{method}: x_t is {kind}. {result} is found by a division by {divisor}, which enlarges what x_t and the "
            f"noise were rounded by: {result} would be off by up to 2. To train, take float32 batches, "
            "Trainer(precision='bf16-mixed') instead of 'bf16-true'; to sample, keep x_t in float32. (x_t.float() of a "
            "rounded batch does not bring its digits back.)"
        )


def _gather_factors(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Gather ``table[t]``, in a shape that scales each image of ``x``."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}, but one step per image is needed: shape ({x.shape[0]},).")
    return gather(table, t).view(-1, *[1] * (x.dim() - 1))


def gather(table: Tensor, t: Tensor) -> Tensor:
    """Gather ``table[t]``, after a check of the steps."""
    _check_steps(t, len(table))
    return table[t]


def _check_steps(t: Tensor, num_timesteps: int) -> None:
    if t.dtype != torch.int64:
        raise TypeError(f"t must be int64, not {t.dtype}: steps are whole numbers that index tables.")
    # Only on the CPU, because a check on a device would force a sync. Indexing on a device refuses t >= num_timesteps.
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and t.numel():
        low, high = t.aminmax()
        if low < 0 or high >= num_timesteps:
            raise ValueError(f"t spans {int(low)} to {int(high)}, but steps are zero-based, in [0, {num_timesteps}).")
