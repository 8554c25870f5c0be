"""``python -m ddpm_data`` or ``ddpm-data``: which commands there are, and a way to run them."""

import os
import sys
from importlib import import_module

import ddpm_data

_COMMANDS = {
    "check": "look at every item of a dataset before training on it",
    "report": "draw schedules: beta, signal left, log-SNR, density of t, loss weights, noised images",
    "verify": "train twice, on one process and several, whole and resumed, and compare the streams",
    "compare": "make one table and one picture of a sweep",
}
_HELP = f"""ddpm_data {ddpm_data.__version__}: any image dataset in; (x_t, t, noise) out, on the training device.

{chr(10).join(f"  ddpm-data {name:8} {what}" for name, what in _COMMANDS.items())}

Each is python -m ddpm_data.<command> too, and says more with --help. All but compare take your configs and overrides:

  ddpm-data report schedule=linear,cosine
  ddpm-data check dataset=image_folder dataset.root=/path/to/images dataset.image_size=64

In a Hydra app of your own the configs are ddpm_data/schedule, ddpm_data/datamodule and so on."""


def main() -> int:
    """Run the command that is named first; without one, print the help. Returns its status.

    Raises:
        SystemExit: There is no such command.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    if command not in _COMMANDS:
        raise SystemExit(f"ddpm-data has no command {command}; there are {', '.join(_COMMANDS)}.")
    sys.path.insert(0, os.getcwd())  # as python -m does: configs name modules of the project
    status: int = import_module(f"ddpm_data.cli.{command}").main(sys.argv[2:])
    return status


if __name__ == "__main__":
    sys.exit(main())
