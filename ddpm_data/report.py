"""``python -m ddpm_data.report``, which is ``ddpm-data report``."""

import sys

from ddpm_data.cli.report import main as main

if __name__ == "__main__":
    sys.exit(main())
