"""The command ``ddpm-data check``, also as ``python -m ddpm_data.check``."""

import sys

from ddpm_data.cli.check import main as main

if __name__ == "__main__":
    sys.exit(main())
