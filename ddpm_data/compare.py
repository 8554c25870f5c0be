"""The command ``ddpm-data compare``, also as ``python -m ddpm_data.compare``."""

import sys
from functools import partial

from ddpm_data.cli._command import run_command

main = partial(run_command, "compare")

if __name__ == "__main__":
    sys.exit(main())
