"""The program ``ddpm-data``, also as ``python -m ddpm_data``: it lists the commands and runs them."""

import difflib
import os
import sys

import ddpm_data
from ddpm_data._console import allow_closed_output
from ddpm_data.cli._command import run_command

_COMMANDS = {
    "check": "look at every item of a dataset before you train on it",
    "report": "draw schedules: beta, signal left, SNR, density of t, loss weights, noised images",
    "verify": "train in one process, in several and from a checkpoint, and compare the streams",
    "compare": "make one table and one picture of a sweep",
}
_HELP = f"""\
usage: ddpm-data [--help] [--version] COMMAND ...

Any image dataset in; (x_t, t, noise) out, on the training device.

{chr(10).join(f"  ddpm-data {name:8} {purpose}" for name, purpose in _COMMANDS.items())}

Each command has --help, and also runs as python -m ddpm_data.<command>. All but compare take the same config overrides
as your training:

  ddpm-data report schedule=linear,cosine
  ddpm-data check dataset=image_folder dataset.root=/path/to/images dataset.image_size=64

In your own Hydra app the config groups are ddpm_data/schedule, ddpm_data/datamodule and so on."""


@allow_closed_output()
def main() -> int:
    """Run the command in the first argument, or print the help if there is none; returns the exit status.

    Raises:
        SystemExit: There is no such command.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help", "help"):
        print(_HELP)
        return 0
    if command in ("-V", "--version"):
        print(f"ddpm-data {ddpm_data.__version__}")
        return 0
    if command not in _COMMANDS:
        near = difflib.get_close_matches(command, _COMMANDS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Its commands are {', '.join(_COMMANDS)}."
        raise SystemExit(f"ddpm-data has no command {command}. {hint}")
    sys.path.insert(0, os.getcwd())  # as python -m does: configs name modules of the project
    return run_command(command, sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
