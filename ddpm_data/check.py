"""The command ``ddpm-data check``, also as ``python -m ddpm_data.check``."""

import sys
from functools import partial

from ddpm_data.cli._command import run_command

main = partial(run_command, "check")

if __name__ == "__main__":
    sys.exit(main())
