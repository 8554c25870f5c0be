"""The command line of every command. Nothing slow is imported here, so ``--help`` and a wrong option answer at once."""

import argparse
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

OUTPUTS = Path("outputs")  # where Hydra keeps runs too
ROOT_CONFIGS = ("train", "config")  # names that root configs usually have
DATAMODULE_KEYS = ("datamodule", "ddpm_data.datamodule")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, the option that was probably meant, and how to get help; exit with status 2."""
        known = [option for action in self._actions for option in action.option_strings]
        wrong = re.search(r"unrecognized arguments: (-[^\s=]+)", message)
        near = difflib.get_close_matches(wrong[1], known, 1) if wrong else []
        hint = f" Did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: {message}.{hint} See {self.prog} --help.\n")


def parse(command: str, arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command's arguments; overrides and options may stand in any order.

    Args:
        command: The word after ``ddpm-data``.
        arguments: Command-line arguments; ``None`` takes those of the process.

    Raises:
        SystemExit: An argument is wrong, or help was asked for.
    """
    parser = Parser(
        f"ddpm-data {command}",
        description=_DESCRIPTIONS[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _ADD_OPTIONS[command](parser)
    args = parser.parse_intermixed_args(arguments)
    for name, minimum in {"num_workers": 0, "max_items": 1, "processes": 2, "steps": 2}.items():
        value = getattr(args, name, None)
        if value is not None and value < minimum:
            parser.error(f"--{name.replace('_', '-')} is at least {minimum}, not {value}")
    if (folder := getattr(args, "output_dir", None)) is not None and folder.exists() and not folder.is_dir():
        parser.error(f"--output-dir is a folder, and {folder} is a file")
    return args


def add_option(parser: argparse.ArgumentParser, name: str, old_name: str, **options: Any) -> None:  # noqa: ANN401  # argparse's
    """Add an option that also has an older spelling, which ``--help`` does not show.

    Args:
        parser: The parser to add it to.
        name: The spelling that ``--help`` shows.
        old_name: The older spelling, which keeps working.
        options: See :meth:`argparse.ArgumentParser.add_argument`.
    """
    action = parser.add_argument(name, old_name, **options)
    action.option_strings = [name]  # for help and errors; the parser already knows both spellings


def add_output_option(parser: argparse.ArgumentParser, default: Path | None, default_text: str) -> None:
    """Add ``--output-dir``, the folder that a command writes to.

    Args:
        parser: The parser to add it to.
        default: The folder if none is given; ``None`` leaves the choice to the command.
        default_text: The default in words, for ``--help``.
    """
    text = f"folder for the files written (default: {default_text})"
    add_option(parser, "--output-dir", "--out", type=Path, default=default, metavar="DIR", help=text)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a command finds the configuration that training would use."""
    text = "folder of your configs (default: conf, or ours if there is no folder conf)"
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help=text)
    text = f"name of the root config (default: {' or '.join(ROOT_CONFIGS)})"
    parser.add_argument("--config-name", metavar="NAME", help=text)
    text = f"key of the DataModule in the root config (default: {' or '.join(DATAMODULE_KEYS)})"
    parser.add_argument("--key", help=text)
    text = "overrides as in training: dataset=digits loader.batch_size=32"
    parser.add_argument("overrides", nargs="*", help=text)


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    text = "worker processes that read (default: one per core)"
    add_option(parser, "--num-workers", "--workers", type=int, metavar="N", help=text)
    text = "items to read of a dataset with its own order (default: 10000)"
    add_option(parser, "--max-items", "--most", type=int, default=10_000, metavar="N", help=text)
    add_output_option(parser, OUTPUTS / "check", "outputs/check")
    add_config_options(parser)


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    text = "config of a scheduler of diffusers (scheduler_config.json) to show beside; may be repeated"
    parser.add_argument("--diffusers", type=Path, action="append", default=[], metavar="FILE", help=text)
    add_output_option(parser, OUTPUTS / "report", "outputs/report")
    add_config_options(parser)


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    text = "number of processes to compare with one (default: 2)"
    parser.add_argument("--processes", type=int, default=2, metavar="N", help=text)
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="optimizer steps (default: 20)")
    add_config_options(parser)


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the sweep's folder, which holds the folders of its jobs")
    text = "column of metrics.csv; less is better (default: val_loss)"
    parser.add_argument("--metric", default="val_loss", help=text)
    add_output_option(parser, None, "the sweep's folder")


_ADD_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "check": _add_check_options,
    "report": _add_report_options,
    "verify": _add_verify_options,
    "compare": _add_compare_options,
}
_DESCRIPTIONS = {
    "check": """\
Look at every item of a dataset before you train on it.

The command reads every item of every split in your configuration, in worker
processes, and continues after bad items. It reports the kinds of images, the
bad items and their errors, duplicates (also between training and validation),
the images per class, the speed of reading, and the memory that images take.
check.json has all results, and check.png shows some images as the model will
see them. An iterable dataset is read from its beginning, in one process.
The exit status is 1 if anything is bad.""",
    "report": """\
Show on one page what a training objective does: ddpm-data report preset=sd3

report.png shows signal and noise at each step, how often it is drawn, its
weight in the loss, the same over the signal-to-noise ratio, where objectives
compare, and images of your dataset at several steps. The printed table has the
numbers. To compare objectives in one picture, separate the values of any key
by commas: preset=sd3,flux,edm or schedule=linear,cosine""",
    "verify": """\
Check that one process and several see the same stream with your configuration.

The command trains a dummy model for a few steps, with real processes (gloo,
CPU) and real Lightning Trainers: in one process, in several, and in several
from a checkpoint that the first run wrote halfway. Then it compares every
example that reached the model. If a run fails here, your training would fail
too. It writes no files. The exit status is 1 if anything differs.""",
    "compare": """\
Make one table and one picture of a sweep.

The table (compare.csv, compare.md) has a line per job: the values that were
varied, how the job ended, and the lowest and the last value of a metric. The
picture (compare.png) shows the jobs' schedules in one panel, and their
validation losses by timestep if callbacks.TimestepLoss wrote them.""",
}
