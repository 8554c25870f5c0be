"""Checks of what a user gave, made once at construction; every message ends with the config key to change."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor


def check_int(call: str, key: str, value: object, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``.

    Args:
        call: What was called, for errors.
        key: The config key the value comes from; its last part is the argument's name.
        value: What arrived.
        minimum: The least it may be.

    Raises:
        TypeError: It is no whole number (a bool is none).
        ValueError: It is below ``minimum``.
    """
    name = key.rpartition(".")[2]
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{call}({name}={value!r}): a whole number is needed, not a {type(value).__name__}. Change `{key}`."
        )
    if value < minimum:
        raise ValueError(f"{call}({name}={value}): it must be at least {minimum}. Change `{key}`.")
    return int(value)


def check_float(call: str, key: str, value: object) -> float:
    """``value`` as a finite float; ``call`` and ``key`` as in :func:`check_int`.

    Raises:
        TypeError: It is no number.
        ValueError: It is NaN or infinite.
    """
    name = key.rpartition(".")[2]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{call}({name}={value!r}): a number is needed, not a {type(value).__name__}. Change `{key}`.")
    if not math.isfinite(value):
        raise ValueError(f"{call}({name}={value}): a finite number is needed. Change `{key}`.")
    return float(value)


def check_betas(call: str, betas: Tensor) -> Tensor:
    """``betas`` as float64, shape ``(num_timesteps,)``, every one in ``[0, 1]``.

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Not one-dimensional, empty, or with a value that is NaN or outside ``[0, 1]``.
    """
    if not isinstance(betas, Tensor) or not betas.is_floating_point():
        what = f"a tensor of {betas.dtype}" if isinstance(betas, Tensor) else f"a {type(betas).__name__}"
        raise TypeError(
            f"{call}: betas must be a floating-point tensor, not {what}. Let `schedule` be what a function returns, "
            "such as ddpm_data.schedules.cosine(num_timesteps=1000), called."
        )
    betas = betas.detach().to(torch.float64)
    if betas.dim() != 1 or betas.numel() == 0:
        raise ValueError(
            f"{call}: betas have shape {tuple(betas.shape)}; one a step is needed, shape (num_timesteps,). "
            "Change `schedule`."
        )
    wrong = ~((betas >= 0) & (betas <= 1))  # so that NaN is wrong too
    if bool(wrong.any()):
        step = int(wrong.nonzero()[0])
        raise ValueError(
            f"{call}: beta is {betas[step]:.6g} at t={step} of {len(betas)} steps. Beta is the share of the variance "
            "that a step replaces by noise and lies in [0, 1]. Change `schedule`."
        )
    return betas
