"""Names in errors and warnings, as the user knows them: arguments in Python, and config keys as they are in the app.

Our code raises errors that name the keys of our own configs (`dataset.condition`). Where such an error leaves a
function that the user has called, the keys become arguments (`condition`). Where it leaves what a config has built,
they become the app's keys (`ddpm_data.dataset.condition`). The outermost of them decides. Warnings do not leave
functions, so :func:`warn` asks which function is the outermost at that moment.
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from inspect import signature
from typing import ParamSpec, TypeVar

NAMED = (TypeError, ValueError, RuntimeError, OSError, ImportError)  # kinds of errors whose messages name keys
GROUPS = ("dataset", "loader", "schedule", "timesteps", "target", "weight", "noise")
_KEY = re.compile(rf"`((?:{'|'.join(GROUPS)})(?:\.[^`]*)?)`")
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
Naming = tuple[Mapping[str, str] | None, tuple[str, ...]]  # the arguments of naming_keys
_NAMINGS: ContextVar[tuple[Naming, ...]] = ContextVar("_NAMINGS", default=())  # those at work, the outermost first


def name_arguments(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Have a function's errors name its arguments."""

    @wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with naming_keys(None, list_arguments(function)):
            return function(*args, **kwargs)

    return call


@cache
def list_arguments(function: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of a function's arguments; once for each, as it takes longer than much that is done by batch."""
    return tuple(signature(function).parameters)


@contextmanager
def naming_keys(names: Mapping[str, str] | None, arguments: tuple[str, ...] = ()) -> Iterator[None]:
    """Name the config keys as the user knows them, in errors that pass through and in warnings.

    Args:
        names: Where our groups, and arguments of the DataModule that are given directly, stand in the app's config.
            ``None`` is a user who wrote Python.
        arguments: The names of the arguments, in Python.
    """
    naming = (names, arguments)
    _NAMINGS.set((*_NAMINGS.get(), naming))
    try:
        yield
    except NAMED as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.keyed = keyed_text(error)  # type: ignore[union-attr]  # kept for whoever knows the names better
            error.args = (rename_keys(keyed_text(error), names, arguments),)
        raise
    finally:  # a loop over a loader may end after one that has begun later
        _NAMINGS.set(tuple(other for other in _NAMINGS.get() if other is not naming))


def find_naming() -> Naming | None:
    """Return how warnings name keys at this moment, for :func:`use_naming` in another process; it can be pickled."""
    return next(iter(_NAMINGS.get()), None)


def use_naming(naming: Naming | None) -> None:
    """Have this process's warnings name keys as :func:`find_naming` has found."""
    _NAMINGS.set(() if naming is None else (naming,))


def warn(message: str | Warning, stacklevel: int = 1) -> None:
    """Warn as ``warnings.warn`` does, and name the config keys in the message as the user knows them."""
    if type(message) is UserWarning:  # ours, from a worker
        message = str(message)
    if isinstance(message, str) and _NAMINGS.get():
        message = rename_keys(message, *_NAMINGS.get()[0])
    warnings.warn(message, stacklevel=stacklevel + 1)


def keyed_text(error: BaseException) -> str:
    """Return an error's message with the keys of our own configs."""
    return getattr(error, "keyed", str(error))


def rename_keys(text: str, names: Mapping[str, str] | None, arguments: Collection[str] = ()) -> str:
    """Rename the keys in a message, see :func:`naming_keys`."""

    def rename(match: re.Match[str]) -> str:
        group, _, rest = match[1].partition(".")
        if names is None:
            last = rest.rpartition(".")[2]
            return f"`{last if last in arguments else rest or group}`"
        first = re.match(r"\w*", rest)
        if first is not None and first[0] in names:
            return f"`{names[first[0]]}{rest[first.end() :]}`"
        return f"`{names.get(group, group)}{match[1][len(group) :]}`"

    return _KEY.sub(rename, text)
