"""``python -m ddpm_data.compare``, which is ``ddpm-data compare``."""

import sys

from ddpm_data.cli.compare import main as main

if __name__ == "__main__":
    sys.exit(main())
