"""Training targets: what the network learns to predict, as factors of ``x_0`` and of the noise at each step.

Every target is ``target_x[t] x_0 + target_n[t] noise``. Together with ``x_t = signal[t] x_0 + sigma[t] noise`` that is
two equations for two unknowns, so from ``x_t`` and a prediction of the target follow ``x_0`` and the noise.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ddpm_data.diffusion.process import GaussianProcess

Target = Literal["noise", "x_0", "velocity", "flow", "flow_to_data", "score", "edm"]
TARGETS: tuple[str, ...] = get_args(Target)
SIGMA_DATA = 0.5  # the images' standard deviation in EDM's target (Karras et al. 2022, Table 1); scale latents to it


class TargetTable(NamedTuple):
    """The factors of a target at each step: float64, on the CPU, shape ``(num_timesteps,)``.

    Attributes:
        x_0: Factor of the clean image.
        noise: Factor of the noise.
    """

    x_0: Tensor
    noise: Tensor


class Solution(NamedTuple):
    """How ``x_0``, or the noise, follows from ``x_t`` and the target: ``x_t[t] * x_t + target[t] * target``.

    Both are float64, on the CPU, shape ``(num_timesteps,)``, and not finite at a step where it cannot be computed.

    Attributes:
        x_t: Factor of the noised image.
        target: Factor of the target.
    """

    x_t: Tensor
    target: Tensor


def check_target(call: str, target: object) -> Target:
    """Return ``target`` if there is one of this name, or refuse it.

    Args:
        call: The class or function that the user called, for error messages.
        target: The user's value.

    Raises:
        ValueError: There is no such target.
    """
    if target not in TARGETS:
        raise ValueError(f"{call}(target={target!r}): the targets are {', '.join(TARGETS)}. Change `target`.")
    return target  # type: ignore[return-value]  # it is one of them


def make_table(process: GaussianProcess, target: Target) -> TargetTable:
    """Return a target's factors.

    | target           | value                        | source                                                   |
    |------------------|------------------------------|----------------------------------------------------------|
    | ``noise``        | the noise                    | Ho et al. 2020, Eq. 14                                   |
    | ``x_0``          | the clean image              |                                                          |
    | ``velocity``     | ``signal noise - sigma x_0`` | Salimans & Ho 2022; only if the variance is preserved    |
    | ``flow``         | ``noise - x_0``              | Liu et al. 2022; Stable Diffusion 3, Flux                |
    | ``flow_to_data`` | ``x_0 - noise``              | the same, time running towards the image (SiT, Lumina)   |
    | ``score``        | ``-noise / sigma``           | Song et al. 2021                                         |
    | ``edm``          | the network's output F       | Karras et al. 2022, Eq. 8; its input is ``x_t / signal`` |

    Args:
        process: The forward process.
        target: The target.

    Raises:
        ValueError: There is no such target, or the process does not have it: ``velocity`` where the variance is not
            preserved, ``score`` at a step without noise, ``edm`` at one without signal or without noise.
    """
    a, b = process.exact
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    match check_target("ForwardDiffusion", target):
        case "noise":
            return TargetTable(zero, one)
        case "x_0":
            return TargetTable(one, zero)
        case "velocity":
            if not process.is_variance_preserving:
                raise ValueError(
                    "target='velocity': the velocity is defined where signal^2 + sigma^2 = 1, which does not hold for "
                    "this process. On a straight path take 'flow', for variance exploding 'edm'. Change `target` or "
                    "`schedule`."
                )
            return TargetTable(-b, a)
        case "flow":
            return TargetTable(-one, one)
        case "flow_to_data":
            return TargetTable(one, -one)
        case "score":
            _refuse_zero(b, target, "noise", "it divides by sigma")
            return TargetTable(zero, -1 / b)
        case "edm":
            _refuse_zero(b, target, "noise", "its output scale is 0 there")
            _refuse_zero(a, target, "signal", "it divides by the signal")
            sigma = b / a
            root = (sigma.square() + SIGMA_DATA**2).sqrt()
            return TargetTable(sigma / (SIGMA_DATA * root), -SIGMA_DATA / root)


def solve(process: GaussianProcess, target: Target) -> tuple[Solution, Solution]:
    """Return how ``x_0`` and how the noise follow from ``x_t`` and the target.

    Args:
        process: The forward process.
        target: The target.
    """
    a, b = process.exact
    p, q = make_table(process, target)
    determinant = a * q - b * p
    x_0, noise = Solution(q / determinant, -b / determinant), Solution(-p / determinant, a / determinant)
    # Where these divide 0 by 0, the target still says it: at steps without noise, and without signal.
    if target == "x_0":
        x_0 = Solution(torch.zeros_like(a), torch.ones_like(a))
    if target in ("noise", "score"):
        noise = Solution(torch.zeros_like(a), 1 / q)
    return x_0, noise


def error_ratio(process: GaussianProcess, target: Target) -> Tensor:
    """Return by what the squared error of ``x_0`` grows to that of the target: float64, shape ``(num_timesteps,)``.

    A prediction of the target that is off by ``d`` gives an ``x_0`` that is off by ``d`` times the second factor of
    the first :class:`Solution`. So ``|d_target|**2 = ratio |d_x_0|**2``: ``SNR`` for the noise, ``SNR + 1`` for the
    velocity, ``1 / sigma**2`` for the flow of a straight path, ``1 / c_out**2`` for EDM.

    At a step without signal or without noise the ratio is that of a step with 1e-15 of the other. This is near enough
    to the limit that a weight divided by it is the weight's limit to the last digit, where it has one.

    Args:
        process: The forward process.
        target: The target.
    """
    a, b = nearly_exact(process)
    p, q = make_table(process, target)
    return ((a * q - b * p) / b).square()


def nearly_exact(process: GaussianProcess) -> tuple[Tensor, Tensor]:
    """Return signal and sigma in float64, with 1e-15 of the other in place of 0."""
    a, b = process.exact
    return torch.where(a == 0, 1e-15 * b, a), torch.where(b == 0, 1e-15 * a, b)


def _refuse_zero(table: Tensor, target: str, kind: str, reason: str) -> None:
    if bool((table == 0).any()):
        step = int((table == 0).nonzero()[0])
        raise ValueError(
            f"target={target!r}: there is no {kind} at t={step}, and {reason}. Change `target`, or give a `schedule` "
            f"with {kind} at every step."
        )
