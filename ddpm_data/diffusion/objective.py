"""The training objective as rows of a table: what the network predicts, and how its error is weighed, at each step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_data._checks import check_table
from ddpm_data.diffusion.process import GaussianProcess, combine, gather, keep_dtypes
from ddpm_data.diffusion.targets import Solution, Target, error_ratio, make_table, solve
from ddpm_data.diffusion.weights import Weight

_LARGEST_NORMAL = 6.8  # sqrt(-2 ln 2**-33): uniform numbers of 32 bits give no larger one


class Objective(nn.Module):
    """The target and the loss weight of each step, and the way back from a prediction to ``x_0`` and the noise.

    The buffers are float32, shape ``(num_timesteps,)``: ``target_x`` and ``target_n``, the factors of ``x_0`` and of
    the noise in the target; ``weight``; ``base_weight``, without what makes up for the density; and the way back,
    ``x_0 = x_0_from_x_t x_t + x_0_from_target target``, likewise for the noise, infinite at a step where there is none.
    They follow the module's device, keep float32, and stay out of ``state_dict``.

    Args:
        process: The forward process.
        target: The name of the target, see :func:`ddpm_data.diffusion.targets.make_table`.
        weight: A function ``(process, target) -> float64, shape (num_timesteps,)``, see :mod:`ddpm_data.weights`.
            ``None`` weighs the target's squared error the same at every step.
        probabilities: The probabilities with which steps are drawn, if the weight is to make up for them by
            ``1 / (T p_t)``: float64, shape ``(num_timesteps,)``.

    Raises:
        TypeError: ``weight`` is not a function that returns a floating-point tensor.
        ValueError: There is no such target, the process does not have it, or the weight is not finite or negative.
    """

    target_x: Tensor
    target_n: Tensor
    weight: Tensor
    base_weight: Tensor
    x_0_from_x_t: Tensor
    x_0_from_target: Tensor
    noise_from_x_t: Tensor
    noise_from_target: Tensor

    def __init__(
        self,
        process: GaussianProcess,
        target: Target = "noise",
        weight: Weight | None = None,
        probabilities: Tensor | None = None,
    ) -> None:
        super().__init__()
        table = make_table(process, target)
        self.target = target
        weights = _compute_weight(process, target, weight)
        self._exact_weight = weights
        if probabilities is not None:
            weights = self.divide_by_density(probabilities)
        for name, values in (("target_x", table.x_0), ("target_n", table.noise), ("weight", weights)):
            self.register_buffer(name, values.float(), persistent=False)
        self.register_buffer("base_weight", self._exact_weight.float(), persistent=False)
        for name, solution in zip(("x_0", "noise"), solve(process, target), strict=True):
            self._register_solution(name, solution)

    def divide_by_density(self, probabilities: Tensor) -> Tensor:
        """Return the weight that makes up for a density: ``weight / (T p_t)``; 0 for a step that is never drawn.

        Args:
            probabilities: float64, on the CPU, shape ``(num_timesteps,)``.
        """
        share = len(probabilities) * probabilities
        return torch.where(share > 0, self._exact_weight / share, 0.0)

    def make_target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Make the target, as the batch transform does.

        Args:
            x_0: Clean images.
            t: Steps, int64, shape ``(batch,)``.
            noise: The noise in ``x_t``, shape of ``x_0``.

        Returns:
            Shape and dtype of ``x_0``.
        """
        return combine(self.target_x, x_0, self.target_n, noise, t)

    def to_x_0(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """Turn a prediction of the target into one of ``x_0``.

        Args:
            x_t: Noised images, float32 or float64.
            t: Steps, int64, shape ``(batch,)``.
            prediction: The target, or a model's prediction of it, shape of ``x_t``.

        Returns:
            Shape and dtype of ``x_t``.

        Raises:
            TypeError: ``x_t`` is bfloat16 or float16, whose rounding a division would enlarge.
            ValueError: ``x_0`` does not follow from the target at a step in ``t``.
        """
        return self._solve("x_0", x_t, t, prediction)

    def to_noise(self, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """Turn a prediction of the target into one of the noise; see :meth:`to_x_0`."""
        return self._solve("noise", x_t, t, prediction)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Look the weight of the target's squared error up.

        Args:
            t: Steps, int64, any shape.

        Returns:
            float32, shape of ``t``.
        """
        return gather(self.weight, t)

    def check_range(self, process: GaussianProcess, dtype: torch.dtype) -> None:
        """Refuse a process or a target whose numbers would be infinite in a dtype.

        Args:
            process: The forward process.
            dtype: The dtype of batches; float16 ends at 65504.

        Raises:
            ValueError: For an image in ``[-1, 1]`` and the largest normal number that is drawn, ``x_t`` or the target
                is infinite at a step.
        """
        tables = {"x_t": (process.signal, process.sigma), f"target={self.target!r}": (self.target_x, self.target_n)}
        for name, (of_x, of_n) in tables.items():
            largest = of_x.abs() + _LARGEST_NORMAL * of_n.abs()
            too_large = largest > torch.finfo(dtype).max
            if bool(too_large.any()):
                step = int(too_large.nonzero()[0])
                raise ValueError(
                    f"{name} reaches {float(largest[step]):.3g} at t={step}, but {str(dtype).removeprefix('torch.')} "
                    f"ends at {torch.finfo(dtype).max:.0f}: training would see infinity. Change `trainer.precision` "
                    "('bf16-true', or '16-mixed' with float32 batches), `target` or `schedule`."
                )

    def _register_solution(self, name: str, solution: Solution) -> None:
        for part, values in solution._asdict().items():
            self.register_buffer(f"{name}_from_{part}", values.float(), persistent=False)
        has_none = not all(bool(values.isfinite().all()) for values in solution)
        setattr(self, f"_{name}_is_undefined_somewhere", has_none)

    def _solve(self, name: str, x_t: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        if x_t.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(
                f"to_{name}: x_t is {str(x_t.dtype).removeprefix('torch.')}, whose rounding would grow up to a "
                "hundredfold. Keep x_t in float32 while you sample."
            )
        of_x_t, of_target = getattr(self, f"{name}_from_x_t"), getattr(self, f"{name}_from_target")
        if getattr(self, f"_{name}_is_undefined_somewhere"):
            is_undefined = ~(gather(of_x_t, t).isfinite() & gather(of_target, t).isfinite())
            if bool(is_undefined.any()):
                raise ValueError(
                    f"to_{name}: at t={int(t[is_undefined][0])} {name} does not follow from x_t and target="
                    f"{self.target!r}. Leave that step out, or let the model predict another target."
                )
        return combine(of_x_t, x_t, of_target, prediction, t)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Objective":
        """Move the buffers with a parent module to another device, but keep their dtype."""
        super()._apply(keep_dtypes(fn), recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self


class LogSnrView(NamedTuple):
    """An objective on the axis that all objectives share: the log of the signal-to-noise ratio.

    The first and the last step are left out. All are float64, shape ``(num_timesteps - 2,)``.

    Attributes:
        log_snr: ``ln(signal**2 / sigma**2)``, falling.
        density: How often a unit of it is trained on: the probability of a step, over the part of the axis that is its.
        weight: The factor of the squared error of ``x_0`` in the expected loss, per unit; 1 at a log SNR of 0, so that
            objectives of any scale compare. NaN where the steps do not reach 0.
    """

    log_snr: Tensor
    density: Tensor
    weight: Tensor


def view_on_log_snr(process: GaussianProcess, objective: Objective, probabilities: Tensor) -> LogSnrView:
    """Show an objective on the axis of log SNR, where two that look different may turn out to be the same.

    (Kingma & Gao 2023, "Understanding diffusion objectives as the ELBO with simple data augmentation", Eq. 10.)

    Args:
        process: The forward process.
        objective: Its target and weight.
        probabilities: The probability of each step, float64, shape ``(num_timesteps,)``.
    """
    log_snr, inner = process.exact.log_snr, slice(1, -1)
    density = probabilities[inner] / ((log_snr[:-2] - log_snr[2:]) / 2)
    on_x_0 = objective.weight.cpu().double() * error_ratio(process, objective.target)
    weight = density * on_x_0[inner]
    log_snr = log_snr[inner]
    after = int((log_snr > 0).sum())  # the first step at or below 0
    if not 0 < after < len(log_snr):
        return LogSnrView(log_snr, density, torch.full_like(weight, torch.nan))
    share = log_snr[after - 1] / (log_snr[after - 1] - log_snr[after])
    at_0 = torch.lerp(weight[after - 1].log(), weight[after].log(), share).exp()
    return LogSnrView(log_snr, density, weight / at_0)


def _compute_weight(process: GaussianProcess, target: Target, weight: Any) -> Tensor:  # noqa: ANN401  # the user's
    if weight is None:
        return torch.ones(process.num_timesteps, dtype=torch.float64)
    if not callable(weight):
        raise TypeError(
            f"ForwardDiffusion: weight is a {type(weight).__name__}, but a function (process, target) -> weights is "
            "needed, such as ddpm_data.weights.min_snr. Change `weight`."
        )
    return check_table("ForwardDiffusion", "the weight", "weight", weight(process, target), process.num_timesteps)
