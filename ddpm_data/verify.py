"""``python -m ddpm_data.verify``, which is ``ddpm-data verify``."""

import sys

from ddpm_data.cli.verify import main as main

if __name__ == "__main__":
    sys.exit(main())
