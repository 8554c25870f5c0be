"""The command ``ddpm-data report``, also as ``python -m ddpm_data.report``."""

import sys

from ddpm_data.cli.report import main as main

if __name__ == "__main__":
    sys.exit(main())
