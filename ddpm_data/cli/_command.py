"""Run a command: parse its arguments before anything slow is imported, and turn the user's mistakes into one line."""

import argparse
import os
import sys
from importlib import import_module

from ddpm_data._console import allow_closed_output, escape_unprintable
from ddpm_data.cli._parsers import parse


@allow_closed_output()
def run_command(command: str, arguments: list[str] | None = None) -> int:
    """Run a command, and return its exit status.

    Args:
        command: The word after ``ddpm-data``.
        arguments: Command-line arguments; ``None`` takes those of the process.

    Raises:
        SystemExit: An argument, or a value in the configuration, is wrong. The message says which.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parse(command, arguments)  # answers --help and wrong options before the imports, which take seconds
    from ddpm_data._errors import FULL_ERROR, explain

    try:
        status: int = import_module(f"ddpm_data.cli.{command}").main(arguments)
    except Exception as error:
        message = None if os.environ.get(FULL_ERROR) == "1" else explain(error)
        if message is None:
            raise
        raise SystemExit(message) from error
    return status


def start_command(command: str, arguments: list[str] | None) -> argparse.Namespace:
    """Prepare the console for any text that a command prints, and parse the command's arguments.

    Args:
        command: The word after ``ddpm-data``.
        arguments: Command-line arguments; ``None`` takes those of the process.

    Raises:
        SystemExit: An argument is wrong, or help was asked for.
    """
    escape_unprintable()
    return parse(command, arguments)


def explain_missing_picture(name: str) -> str | None:
    """Return the reason why a picture cannot be drawn, or ``None`` if it can.

    Args:
        name: The picture's file name.
    """
    try:
        import ddpm_data.plots  # noqa: F401  # raises where there is no matplotlib
    except ImportError as error:
        return f"no {name}: {error}"
    return None
