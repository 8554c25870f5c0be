"""The console that the commands print to."""

import io
import sys


def escape_unprintable() -> None:
    """Let ``print`` escape characters that the console's encoding lacks, instead of ending the command.

    A file name may hold any character. Windows gives output that is sent to a file a code page of 256 of them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
