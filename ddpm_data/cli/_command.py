"""Set up a command: the console, the parser, renamed options, and a check for matplotlib."""

import argparse
from pathlib import Path
from typing import Any

from ddpm_data.cli._console import escape_unprintable


def start_command(command: str, doc: str | None) -> argparse.ArgumentParser:
    """Prepare the console for any text that a command prints, and make the command's parser.

    Args:
        command: The word after ``ddpm-data``.
        doc: The docstring of the command's module. ``--help`` shows the text after the first colon.
    """
    escape_unprintable()
    description = (doc or "").partition(": ")[2].replace("``", "")
    return argparse.ArgumentParser(f"ddpm-data {command}", description=description[:1].upper() + description[1:])


def add_option(parser: argparse.ArgumentParser, name: str, old_name: str, **options: Any) -> None:  # noqa: ANN401  # argparse's
    """Add an option that also has an older spelling, which ``--help`` does not show.

    Args:
        parser: The parser to add it to.
        name: The spelling that ``--help`` shows.
        old_name: The older spelling, which keeps working.
        options: See :meth:`argparse.ArgumentParser.add_argument`.
    """
    action = parser.add_argument(name, old_name, **options)
    action.option_strings = [name]  # for help and errors; the parser already knows both spellings


def add_output_option(parser: argparse.ArgumentParser, default: Path | None, default_text: str) -> None:
    """Add ``--output-dir``, the folder that a command writes to.

    Args:
        parser: The parser to add it to.
        default: The folder if none is given; ``None`` leaves the choice to the command.
        default_text: The default in words, for ``--help``.
    """
    text = f"folder for the files written (default: {default_text})"
    add_option(parser, "--output-dir", "--out", type=Path, default=default, metavar="DIR", help=text)


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
