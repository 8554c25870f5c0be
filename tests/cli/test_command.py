"""What all commands share: how they are listed, started and helped with."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_data.cli._command import add_option, add_output_option, start_command
from tests.conftest import ROOT
from tests.groups import PATIENCE


@pytest.mark.parametrize("command", ["check", "report", "verify", "compare"])
def test_help_names_the_command_and_only_the_new_spellings(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module(f"ddpm_data.{command}").main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ddpm-data {command} ")
    assert ("--output-dir DIR " in shown) == (command != "verify")
    assert ("--num-workers N " in shown) == ("--max-items N " in shown) == (command == "check")
    assert not re.search(r"--(out|workers|most)\b(?!-)", shown)


def test_old_spellings_of_options_set_the_same_values() -> None:
    parser = start_command("check", None)
    add_option(parser, "--max-items", "--most", type=int, default=1)
    add_output_option(parser, Path("a"), "a")
    assert vars(parser.parse_args([])) == {"max_items": 1, "output_dir": Path("a")}
    given = {"max_items": 2, "output_dir": Path("b")}
    assert vars(parser.parse_args(["--most", "2", "--out", "b"])) == given
    assert vars(parser.parse_args(["--max-items", "2", "--output-dir", "b"])) == given


@pytest.mark.slow
def test_the_commands_are_listed_and_run() -> None:
    def run(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "ddpm_data", *arguments]
        result = subprocess.run(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE
        )
        assert result.returncode == status
        return result.stdout

    listed = run()
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("  ddpm-data ") and "=" not in line] == [
        "check",
        "report",
        "verify",
        "compare",
    ]
    assert "usage: ddpm-data compare" in run("compare", "--help")
    assert "no command nope" in run("nope", status=1)
