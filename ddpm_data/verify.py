"""The command ``ddpm-data verify``, also as ``python -m ddpm_data.verify``."""

import sys

from ddpm_data.cli.verify import main as main

if __name__ == "__main__":
    sys.exit(main())
