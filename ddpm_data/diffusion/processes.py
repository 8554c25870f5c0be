"""Forward processes besides DDPM's chain: straight paths, variance exploding, continuous time, and those of diffusers.

Each function returns a :class:`~ddpm_data.diffusion.process.GaussianProcess`, and raises ``TypeError`` or
``ValueError`` if none fits its arguments. Steps ascend from least to most noise, and ``t = 0`` has already been noised.

Continuous time is approximated by a table of 65,536 steps. Each stands for an equal share of the density from which the
noise level is drawn, and has the median level of its share. So uniform ``t`` draws that density, and ``t`` stays an
int64. The table cuts off the far tail: EDM's largest sigma is 54. That lowers the mean of sigma by 0.02%, and the mean
of its square by 1.1%.
"""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ddpm_data._checks import check_float, check_int, check_table
from ddpm_data._keys import name_arguments
from ddpm_data.diffusion.process import ForwardProcess, GaussianProcess

Condition = Literal[
    "t", "t + 1", "1000 t / T", "s", "1 - s", "1000 s", "ln(sigma) / 4", "ln(sigma / 2)", "log SNR", "-log SNR"
]

# Schedulers of diffusers that noise as DDPM's chain does. (Euler's and Heun's noise as variance exploding.)
_CHAINS = {"DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "PNDMScheduler"}
_CHAINS |= {"LCMScheduler", "TCDScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"}


@name_arguments
def chain(betas: Tensor, condition: Condition = "t") -> ForwardProcess:
    """Return DDPM's chain whose network is told something else than ``t``.

    Args:
        betas: As :class:`~ddpm_data.diffusion.process.ForwardProcess` takes them.
        condition: What the network is told: U-ViT ``"t + 1"``, improved DDPM ``"1000 t / T"``. See
            :func:`compute_condition`.
    """
    process = ForwardProcess(betas)
    return ForwardProcess(betas, compute_condition("chain", condition, *process.exact))


@name_arguments
def rectified_flow(num_timesteps: int = 1000, shift: float = 1.0, condition: Condition = "1000 s") -> GaussianProcess:
    """Return the straight path from image to noise: signal ``1 - s``, sigma ``s`` (Liu et al. 2022; Esser et al. 2024).

    ``s_k = shifted((k + 1) / T)`` with ``shifted(s) = shift s / (1 + (shift - 1) s)``. The last step is pure noise.

    Args:
        num_timesteps: T, number of steps.
        shift: Above 0; a larger one moves the steps towards noise, for larger images (Esser et al. 2024, Eq. 23).
        condition: What the network is told: Stable Diffusion 3 and Flux ``"1000 s"``, REPA and pi0 ``"s"``, SiT, whose
            time runs towards the image, ``"1 - s"``. See :func:`compute_condition`.
    """
    steps = check_int("rectified_flow", "schedule.num_timesteps", num_timesteps, 1)
    shift = check_positive("rectified_flow", "schedule.shift", shift)
    s = shift_time(torch.arange(1, steps + 1, dtype=torch.float64) / steps, shift)
    return GaussianProcess(1 - s, s, compute_condition("rectified_flow", condition, 1 - s, s))


@name_arguments
def variance_exploding(sigmas: Tensor) -> GaussianProcess:
    """Return the process ``x_t = x_0 + sigma noise``. The network is told ``ln(sigma) / 4`` (Karras et al. 2022).

    Args:
        sigmas: Standard deviations of the noise, floating point, above 0, ascending, shape ``(num_timesteps,)``.
    """
    sigmas = _check_ascending("variance_exploding", "sigmas", sigmas)
    if bool(sigmas[0] <= 0):
        raise ValueError(
            f"variance_exploding: sigma is {sigmas[0]:.6g} at t=0, but the network is told ln(sigma) / 4, so every "
            "sigma must be above 0. Change `schedule.sigmas`."
        )
    return _explode(sigmas, "ln(sigma) / 4")


@name_arguments
def edm(num_timesteps: int = 65536, log_mean: float = -1.2, log_std: float = 1.2) -> GaussianProcess:
    """Return EDM's process and density: ``ln sigma`` is normal (Karras et al. 2022, Table 1; 2024 for EDM2's numbers).

    Row ``k`` has the ``(k + 0.5) / T`` quantile, so uniform ``t`` draws sigma from EDM's density.

    Args:
        num_timesteps: T, number of rows.
        log_mean: Mean of ``ln sigma``: EDM -1.2, EDM2 -0.4 for 512 x 512 latents and -0.8 for 64 x 64 images.
        log_std: Its standard deviation, above 0: EDM 1.2, EDM2 1.0 and 1.6.
    """
    normal = _normal_quantiles("edm", num_timesteps)
    mean = check_float("edm", "schedule.log_mean", log_mean)
    return variance_exploding((mean + check_positive("edm", "schedule.log_std", log_std) * normal).exp())


@name_arguments
def karras(
    num_timesteps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> GaussianProcess:
    """Return variance exploding on EDM's sampling steps, a line in ``sigma ** (1 / rho)`` (Karras et al. 2022, Eq. 5).

    Uniform ``t`` does not draw EDM's training density here: the median sigma is 2.5 instead of 0.3. See :func:`edm`.

    Args:
        num_timesteps: T, number of steps, at least 2.
        sigma_min: Sigma at ``t = 0``, above 0.
        sigma_max: Sigma at the last step, above ``sigma_min``.
        rho: Above 0; a larger one spends more steps on little noise.
    """
    steps = check_int("karras", "schedule.num_timesteps", num_timesteps, 2)
    rho = check_positive("karras", "schedule.rho", rho)
    low = check_positive("karras", "schedule.sigma_min", sigma_min) ** (1 / rho)
    high = check_positive("karras", "schedule.sigma_max", sigma_max) ** (1 / rho)
    return variance_exploding(torch.linspace(low, high, steps, dtype=torch.float64) ** rho)


@name_arguments
def log_uniform(num_timesteps: int = 65536, sigma_min: float = 0.02, sigma_max: float = 100.0) -> GaussianProcess:
    """Return variance exploding with ``ln sigma`` uniform (Song et al. 2021, VE; end points of Karras et al. 2022).

    Row ``k`` has the ``(k + 0.5) / T`` quantile. The network is told ``ln(sigma / 2)`` (Karras et al. 2022, Table 1).

    Args:
        num_timesteps: T, number of rows.
        sigma_min: Least sigma, above 0.
        sigma_max: Largest sigma, above ``sigma_min``.
    """
    s = _midpoints("log_uniform", num_timesteps)
    low = check_positive("log_uniform", "schedule.sigma_min", sigma_min)
    high = check_positive("log_uniform", "schedule.sigma_max", sigma_max)
    return _explode(_check_ascending("log_uniform", "sigma_max", low * (high / low) ** s), "ln(sigma / 2)")


@name_arguments
def trig_flow(
    num_timesteps: int = 65536, log_mean: float = 0.2, log_std: float = 1.6, sigma_data: float = 0.5
) -> GaussianProcess:
    """Return TrigFlow's circle, ``cos(t) x_0 + sin(t) noise``, with ``sigma_data tan(t)`` lognormal (Lu & Song 2024).

    It preserves the variance. The paper's ``x_t`` is ``sigma_data`` times this one, for images of that standard
    deviation. The network is told the angle. Row ``k`` has the ``(k + 0.5) / T`` quantile.

    Args:
        num_timesteps: T, number of rows.
        log_mean: Mean of ``ln(sigma_data tan(t))``.
        log_std: Its standard deviation, above 0.
        sigma_data: Standard deviation of the images, above 0.
    """
    normal = _normal_quantiles("trig_flow", num_timesteps)
    mean = check_float("trig_flow", "schedule.log_mean", log_mean)
    log_sigma = mean + check_positive("trig_flow", "schedule.log_std", log_std) * normal
    angle = torch.atan(log_sigma.exp() / check_positive("trig_flow", "schedule.sigma_data", sigma_data))
    return GaussianProcess(angle.cos(), angle.sin(), angle)


@name_arguments
def from_log_snr(log_snr: Tensor, condition: Tensor | None = None) -> GaussianProcess:
    """Return the variance preserving process with these logarithms of the signal-to-noise ratio.

    ``signal**2 = sigmoid(log_snr)`` and ``sigma**2 = sigmoid(-log_snr)`` (Kingma et al. 2021, Section 3.1).

    Args:
        log_snr: ``ln(signal**2 / sigma**2)``, floating point, descending, shape ``(num_timesteps,)``.
        condition: What the network is told at each step, same shape. Default: ``1000 (t + 0.5) / T``.
    """
    log_snr = check_table("from_log_snr", "log_snr", "schedule.log_snr", log_snr, may_be_negative=True)
    _check_ascending("from_log_snr", "log_snr", -log_snr)
    if condition is None:
        condition = 1000 * _midpoints("from_log_snr", len(log_snr))
    return GaussianProcess(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt(), condition)


@name_arguments
def continuous_cosine(
    num_timesteps: int = 65536,
    image_size: float = 64,
    noise_size: float = 64,
    noise_size_high: float | None = None,
    limit: float = 15.0,
    condition: Condition = "log SNR",
) -> GaussianProcess:
    """Return the cosine schedule in continuous time, shifted or interpolated for larger images.

    Hoogeboom et al. 2023, "simple diffusion", Sections 3.1 and 3.2: ``log_snr(s) = -2 ln tan(pi s / 2)``, plus
    ``2 ln(noise_size / image_size)``. The angle's ends are drawn in a little, so that ``log_snr`` goes from ``limit``
    to ``-limit`` before the shift, as in the paper's code. With ``noise_size_high`` the shift goes from that of
    ``noise_size`` at much noise to that of ``noise_size_high`` at little noise:
    ``s * low(s) + (1 - s) * high(s)``. Row ``k`` stands for ``s = (k + 0.5) / T``.

    Args:
        num_timesteps: T, number of rows.
        image_size: Height or width of your images, above 0.
        noise_size: Size for which the plain cosine schedule is right, above 0.
        noise_size_high: The same at little noise, above 0; ``None`` shifts every step alike.
        limit: The unshifted ``log_snr`` at ``s = 0``, above 0.
        condition: What the network is told: simple diffusion ``"log SNR"``, k-diffusion ``"ln(sigma) / 4"``. See
            :func:`compute_condition`.
    """
    s = _midpoints("continuous_cosine", num_timesteps)
    size = check_positive("continuous_cosine", "schedule.image_size", image_size)
    limit = check_positive("continuous_cosine", "schedule.limit", limit)
    low = check_positive("continuous_cosine", "schedule.noise_size", noise_size)
    high = low
    if noise_size_high is not None:
        high = check_positive("continuous_cosine", "schedule.noise_size_high", noise_size_high)
    shift = 2 * (s * math.log(low / size) + (1 - s) * math.log(high / size))
    end = math.atan(math.exp(-limit / 2))
    return _from_log_snr(
        "continuous_cosine", -2 * torch.tan(end + s * (math.pi / 2 - 2 * end)).log() + shift, condition
    )


@name_arguments
def linear_log_snr(num_timesteps: int = 65536, start: float = 13.3, end: float = -5.0) -> GaussianProcess:
    """Return a straight line of ``log_snr`` over continuous time (Kingma et al. 2021, VDM: from 13.3 to -5).

    Row ``k`` stands for ``s = (k + 0.5) / T``. The network is told ``-log_snr``, the paper's gamma.

    Args:
        num_timesteps: T, number of rows.
        start: ``log_snr`` at ``s = 0``.
        end: ``log_snr`` at ``s = 1``, below ``start``.
    """
    s = _midpoints("linear_log_snr", num_timesteps)
    start = check_float("linear_log_snr", "schedule.start", start)
    end = check_float("linear_log_snr", "schedule.end", end)
    if start <= end:
        raise ValueError(
            f"linear_log_snr(start={start}, end={end}): the signal-to-noise ratio falls with t, so start lies above "
            "end. Swap `schedule.start` and `schedule.end`."
        )
    return _from_log_snr("linear_log_snr", start + (end - start) * s, "-log SNR")


@name_arguments
def continuous_linear(num_timesteps: int = 65536) -> GaussianProcess:
    """Return DDPM's linear schedule in continuous time, as Imagen's code has it.

    ``log_snr(s) = -ln(exp(1e-4 + 10 s**2) - 1)``; row ``k`` stands for ``s = (k + 0.5) / T``.

    Args:
        num_timesteps: T, number of rows.
    """
    s = _midpoints("continuous_linear", num_timesteps)
    return from_log_snr(-torch.expm1(1e-4 + 10 * s.square()).log())


@name_arguments
def vp_sde(
    num_timesteps: int = 65536, beta_min: float = 0.1, beta_max: float = 20.0, end: float = 1e-5
) -> GaussianProcess:
    """Return the variance preserving SDE in continuous time (Song et al. 2021, Eq. 33).

    ``abar(s) = exp(-(beta_max - beta_min) s**2 / 2 - beta_min s)``, with ``s`` uniform in ``[end, 1]``. The network is
    told ``999 s``.

    Args:
        num_timesteps: T, number of rows.
        beta_min: Rate of noise at ``s = 0``, above 0.
        beta_max: Rate of noise at ``s = 1``, above ``beta_min``.
        end: Smallest ``s``, in ``[0, 1)``.
    """
    end = check_float("vp_sde", "schedule.end", end)
    if not 0 <= end < 1:
        raise ValueError(f"vp_sde(end={end}): the smallest time lies in [0, 1). Change `schedule.end`.")
    s = end + (1 - end) * _midpoints("vp_sde", num_timesteps)
    low = check_positive("vp_sde", "schedule.beta_min", beta_min)
    high = check_positive("vp_sde", "schedule.beta_max", beta_max)
    if low >= high:
        raise ValueError(
            f"vp_sde(beta_min={low}, beta_max={high}): the rate of noise rises. Swap `schedule.beta_min` and "
            "`schedule.beta_max`."
        )
    exponent = (high - low) / 2 * s.square() + low * s
    return from_log_snr(-torch.expm1(exponent).log(), 999 * s)


def from_diffusers(scheduler: Any) -> GaussianProcess:  # noqa: ANN401  # diffusers is no dependency
    """Return the process that a scheduler of diffusers trains with, from its own table.

    DDPM, DDIM and their like give a :class:`~ddpm_data.diffusion.process.ForwardProcess`; FlowMatchEuler a straight
    path; EDMEuler and others of its kind variance exploding. Their tables for flow and EDM begin at most noise; ours
    are turned round, so ``t = 0`` has least noise.

    Args:
        scheduler: The scheduler, before ``set_timesteps`` is called for sampling.

    Raises:
        TypeError: The scheduler is of a kind whose training table is not known here.
        ValueError: It holds a table for sampling.
    """
    kinds = [kind.__name__ for kind in type(scheduler).__mro__]
    if getattr(scheduler, "num_inference_steps", None) is not None:
        raise ValueError(
            f"from_diffusers: this {kinds[0]} holds a table for sampling, since set_timesteps() was called. Give a "
            f"fresh one: {kinds[0]}.from_config(scheduler.config)."
        )
    if "FlowMatchEulerDiscreteScheduler" in kinds:
        sigmas = torch.as_tensor(scheduler.sigmas).double().flip(0)
        return GaussianProcess(1 - sigmas, sigmas, torch.as_tensor(scheduler.timesteps).double().flip(0))
    if kinds[0] in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        sigmas = torch.as_tensor(scheduler.sigmas).double()  # a 0 is appended for sampling
        return variance_exploding(sigmas[sigmas > 0].flip(0))
    is_flow = scheduler.config.get("use_flow_sigmas") if hasattr(scheduler, "config") else False
    if {*kinds} & _CHAINS and not is_flow:
        return ForwardProcess(scheduler.betas)
    raise TypeError(
        f"from_diffusers: a {kinds[0]} is of a kind whose training table is not known here. Give a DDPMScheduler, a "
        "DDIMScheduler, a FlowMatchEulerDiscreteScheduler or an EDMEulerScheduler, or build the "
        "process yourself with GaussianProcess(signal, sigma). Change `schedule`."
    )


def compute_condition(call: str, condition: str, signal: Tensor, sigma: Tensor) -> Tensor:
    """Compute what the network is told at each step.

    | condition         | value                                       | told by                     |
    |-------------------|---------------------------------------------|-----------------------------|
    | ``t``             | the step, from 0                            | DDPM, guided-diffusion, DiT |
    | ``t + 1``         | the step, from 1                            | U-ViT on latents            |
    | ``1000 t / T``    | the step, as if of 1000                     | improved-diffusion          |
    | ``s``             | ``sigma / (signal + sigma)``                | REPA, pi0                   |
    | ``1 - s``         | the same, time running towards the image    | SiT, LightningDiT, Lumina   |
    | ``1000 s``        | ``s``, times 1000                           | Stable Diffusion 3, Flux    |
    | ``ln(sigma) / 4`` | the logarithm of ``sigma / signal``, over 4 | EDM, k-diffusion            |
    | ``ln(sigma / 2)`` | the logarithm of half of that               | EDM's VE                    |
    | ``log SNR``       | ``ln(signal**2 / sigma**2)``                | simple diffusion            |
    | ``-log SNR``      | gamma                                       | VDM                         |

    Args:
        call: The function that the user called, for error messages.
        condition: One of these names.
        signal: Factor of ``x_0`` at each step, float64, shape ``(num_timesteps,)``.
        sigma: Factor of the noise, likewise.

    Returns:
        float64, shape ``(num_timesteps,)``; not finite where a logarithm is not.

    Raises:
        ValueError: There is no such condition.
    """
    t, s, log_sigma = torch.arange(len(signal), dtype=torch.float64), sigma / (signal + sigma), (sigma / signal).log()
    values = {
        "t": t,
        "t + 1": t + 1,
        "1000 t / T": 1000 * t / len(t),
        "s": s,
        "1 - s": signal / (signal + sigma),
        "1000 s": 1000 * s,
        "ln(sigma) / 4": log_sigma / 4,
        "ln(sigma / 2)": log_sigma - math.log(2),
        "log SNR": -2 * log_sigma,
        "-log SNR": 2 * log_sigma,
    }
    if condition not in values:
        raise ValueError(
            f"{call}(condition={condition!r}): the network can be told {', '.join(get_args(Condition))}. Change "
            "`schedule.condition`."
        )
    return values[condition]


def shift_time(s: Tensor, shift: float) -> Tensor:
    """Move times in ``[0, 1]`` towards noise: ``shift s / (1 + (shift - 1) s)`` (Esser et al. 2024, Eq. 23)."""
    return shift * s / (1 + (shift - 1) * s)


def check_positive(call: str, key: str, value: object) -> float:
    """Return ``value`` as a float above 0, or refuse it; see :func:`~ddpm_data._checks.check_float`."""
    number = check_float(call, key, value)
    if number <= 0:
        name = key.rpartition(".")[2]
        raise ValueError(f"{call}({name}={number}): it must lie above 0. Change `{key}`.")
    return number


def _explode(sigmas: Tensor, condition: Condition) -> GaussianProcess:
    signal = torch.ones_like(sigmas)
    return GaussianProcess(signal, sigmas, compute_condition("variance_exploding", condition, signal, sigmas))


def _from_log_snr(call: str, log_snr: Tensor, condition: str) -> GaussianProcess:
    process = from_log_snr(log_snr)
    return from_log_snr(log_snr, compute_condition(call, condition, *process.exact))


def _midpoints(call: str, num_timesteps: int) -> Tensor:
    """Return the middles of T equal shares of ``[0, 1]``, float64."""
    steps = check_int(call, "schedule.num_timesteps", num_timesteps, 1)
    return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps


def _normal_quantiles(call: str, num_timesteps: int) -> Tensor:
    quantiles: Tensor = torch.special.ndtri(_midpoints(call, num_timesteps))
    return quantiles


def _check_ascending(call: str, name: str, values: object) -> Tensor:
    table = check_table(call, name, f"schedule.{name}", values, may_be_negative=True)
    falls = table[1:] < table[:-1]
    if bool(falls.any()):
        raise ValueError(
            f"{call}: {name} is wrong at t={int(falls.nonzero()[0]) + 1}. Steps ascend from least to most noise. Turn "
            f"the table round, or change `schedule.{name}`."
        )
    return table
