"""The command ``ddpm-data report``, also as ``python -m ddpm_data.report``."""

import sys
from functools import partial

from ddpm_data.cli._command import run_command

main = partial(run_command, "report")

if __name__ == "__main__":
    sys.exit(main())
