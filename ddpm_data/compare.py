"""The command ``ddpm-data compare``, also as ``python -m ddpm_data.compare``."""

import sys

from ddpm_data.cli.compare import main as main

if __name__ == "__main__":
    sys.exit(main())
