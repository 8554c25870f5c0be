"""The command ``ddpm-data verify``, also as ``python -m ddpm_data.verify``."""

import sys
from functools import partial

from ddpm_data.cli._command import run_command

main = partial(run_command, "verify")

if __name__ == "__main__":
    sys.exit(main())
