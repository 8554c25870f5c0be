"""Checks of the user's arguments, run once at construction. Every message ends with the config key to change."""

import inspect
import math
import operator
import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor


def check_int(call: str, key: str, value: object, minimum: int) -> int:
    """Return ``value`` as an int, or refuse it if it is no whole number of at least ``minimum``.

    NumPy's integers of every width, and all other types that Python accepts as an index, are whole numbers too.

    Args:
        call: The class or function that the user called, for error messages.
        key: The config key that sets the value; its last part is the argument's name.
        value: The user's value.
        minimum: The smallest valid value.

    Raises:
        TypeError: ``value`` is not a whole number (a bool does not count as one).
        ValueError: ``value`` is below ``minimum``.
    """
    name = key.rpartition(".")[2]
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # tried for that
    except TypeError:
        number = None
    if number is None:
        raise TypeError(
            f"{call}({name}={value!r}): expected a whole number, got {type(value).__name__}. Change `{key}`."
        )
    if number < minimum:
        raise ValueError(f"{call}({name}={value}): it must be at least {minimum}. Change `{key}`.")
    return number


def check_float(call: str, key: str, value: object) -> float:
    """Return ``value`` as a float, or refuse it if it is no finite number.

    Args:
        call: The class or function that the user called, for error messages.
        key: The config key that sets the value; its last part is the argument's name.
        value: The user's value.

    Raises:
        TypeError: ``value`` is not a number (a bool does not count as one).
        ValueError: ``value`` is NaN or infinite.
    """
    name = key.rpartition(".")[2]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{call}({name}={value!r}): expected a number, got {type(value).__name__}. Change `{key}`.")
    if not math.isfinite(value):
        raise ValueError(f"{call}({name}={value}): expected a finite number. Change `{key}`.")
    return float(value)


def check_key(key: str, value: object) -> int | str | None:
    """Return ``value`` if it is an index into a tuple, the key of a dict or ``None``; refuse anything else.

    Args:
        key: The config key that sets the value; its last part is the argument's name.
        value: The user's value.

    Raises:
        TypeError: ``value`` is neither a whole number nor a string.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return check_int("DDPMDataModule", key, value, -(2**63))
    except TypeError as error:
        name = key.rpartition(".")[2]
        raise TypeError(
            f"DDPMDataModule({name}={value!r}): expected an index into a tuple, the key of a dict or null. Change "
            f"`{key}`."
        ) from error


def check_path(call: str, key: str, value: object) -> Path:
    """Return ``value`` as a path, with ``~`` expanded, or refuse it.

    Args:
        call: The class or function that the user called, for error messages.
        key: The config key that sets the value; its last part is the argument's name.
        value: The user's value.

    Raises:
        TypeError: ``value`` is no path.
        ValueError: It is empty. Python would take that for the current folder.
    """
    name = key.rpartition(".")[2]
    if not isinstance(value, str | os.PathLike):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        hint = f" For a name that is a number write ./{value}." if is_number else ""
        raise TypeError(f"{call}({name}={value!r}): expected a path, got {type(value).__name__}.{hint} Change `{key}`.")
    if not os.fspath(value):
        raise ValueError(
            f"{call}({name}=''): the path is empty; is a shell variable not set? The current folder is `.`. Change "
            f"`{key}`."
        )
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # of a user that there is not
        raise ValueError(f"{call}({name}={str(value)!r}): {error} Change `{key}`.") from error


def explain_call(function: Callable[..., object], *arguments: object) -> str | None:
    """Return why a function cannot be called with arguments by their place; ``None`` if it can, or is no Python."""
    if hasattr(function, "__signature__") or hasattr(getattr(function, "func", None), "__signature__"):
        return None  # which somebody has written, perhaps for readers
    try:
        parameters = inspect.signature(function, follow_wrapped=False)  # a decorator may add arguments
    except (TypeError, ValueError):  # a builtin
        return None
    try:
        parameters.bind(*arguments)
    except TypeError as error:
        return str(error)
    return None


def check_table(
    call: str, name: str, key: str, values: object, length: int | None = None, may_be_negative: bool = False
) -> Tensor:
    """Return a table with one value per step as float64 on the CPU, or refuse it.

    Args:
        call: The class or function that the user called, for error messages.
        name: What the table is, likewise.
        key: The config key that sets it.
        values: The user's table, floating point, shape ``(num_timesteps,)``, finite in float32.
        length: The number of steps, if it is known.
        may_be_negative: Whether a value may lie below 0.

    Returns:
        float64, shape ``(num_timesteps,)``, on the CPU, detached from any graph.

    Raises:
        TypeError: ``values`` is not a floating-point tensor.
        ValueError: It has another shape, or a value that is not finite or is negative.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise TypeError(
            f"{call}: {name} must be a floating-point tensor with one value per step, not {kind}. Change `{key}`."
        )
    if values.dim() != 1 or values.numel() == 0 or (length is not None and len(values) != length):
        wanted = "(num_timesteps,)" if length is None else f"({length},), since there are {length} steps"
        raise ValueError(
            f"{call}: {name} has shape {tuple(values.shape)}, but one value per step is needed: shape {wanted}. "
            f"Change `{key}`."
        )
    values = values.detach().to("cpu", torch.float64)
    largest = torch.finfo(torch.float32).max
    is_valid = values.abs() <= largest if may_be_negative else (values >= 0) & (values <= largest)  # NaN is neither
    if not bool(is_valid.all()):
        step = int((~is_valid).nonzero()[0])
        wanted = "finite in float32" if may_be_negative else "finite in float32 and at least 0"
        raise ValueError(f"{call}: {name} is {values[step]:.6g} at t={step}, but it must be {wanted}. Change `{key}`.")
    return values


def check_betas(call: str, betas: Tensor) -> Tensor:
    """Return ``betas`` as float64, or refuse them if they are not one variance in ``[0, 1]`` per step.

    Args:
        call: The class or function that the user called, for error messages.
        betas: Variance of the noise that each step adds, floating point, shape ``(num_timesteps,)``.

    Returns:
        float64, shape ``(num_timesteps,)``, detached from any graph.

    Raises:
        TypeError: ``betas`` is not a floating-point tensor.
        ValueError: ``betas`` is empty or not one-dimensional, or a value is NaN or outside ``[0, 1]``.
    """
    if not isinstance(betas, Tensor) or not betas.is_floating_point():
        kind = f"a tensor of {betas.dtype}" if isinstance(betas, Tensor) else f"a {type(betas).__name__}"
        raise TypeError(
            f"{call}: betas must be a floating-point tensor, not {kind}. Set `schedule` to what a schedule function "
            "returns, such as ddpm_data.schedules.cosine(num_timesteps=1000)."
        )
    betas = betas.detach().to(torch.float64)
    if betas.dim() != 1 or betas.numel() == 0:
        raise ValueError(
            f"{call}: betas have shape {tuple(betas.shape)}, but one value per step is needed: shape (num_timesteps,). "
            "Change `schedule`."
        )
    is_invalid = ~((betas >= 0) & (betas <= 1))  # negated, so that NaN counts as invalid
    if bool(is_invalid.any()):
        step = int(is_invalid.nonzero()[0])
        raise ValueError(
            f"{call}: beta is {betas[step]:.6g} at t={step} of {len(betas)} steps. Beta is the fraction of the "
            "variance that a step replaces by noise, so it lies in [0, 1]. Change `schedule`."
        )
    return betas
