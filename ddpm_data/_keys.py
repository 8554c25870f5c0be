"""Config keys in error messages, named as the user knows them: those of our configs, of another app, or arguments."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from inspect import signature

NAMED = (TypeError, ValueError, RuntimeError, OSError, ImportError)  # kinds of errors whose messages name keys
_KEY = re.compile(r"`((?:dataset|loader|schedule|timesteps|target|weight|noise|sigma_data)(?:\.\w+)*)`")
_ARGUMENT = re.compile(r" \(the argument `\w+`\)")


@contextmanager
def naming_keys(prefix: str | None, function: Callable[..., object] | None = None) -> Iterator[None]:
    """Name the config keys in the messages of errors that pass through as the user knows them.

    Args:
        prefix: What stands before the names of our config groups in the user's app: ``""`` in ours, ``"ddpm_data."``
            in others. ``None`` is a user who wrote Python: keys of arguments are followed by the argument.
        function: What takes these arguments.
    """
    try:
        yield
    except NAMED as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            arguments = () if function is None else signature(function).parameters
            error.args = (_rename(error.args[0], prefix, arguments),)
        raise


def _rename(text: str, prefix: str | None, arguments: Collection[str]) -> str:
    plain = _ARGUMENT.sub("", text)
    if prefix is not None:
        return _KEY.sub(rf"`{prefix}\1`", plain)

    def follow(match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2]
        is_said = f"{name}=" in plain or name == match[1] or name not in arguments
        return match[0] if is_said else f"{match[0]} (the argument `{name}`)"

    return _KEY.sub(follow, plain)
