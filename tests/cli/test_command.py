"""What all commands share: how they are listed, started and helped with, and that this takes no time."""

import os
import re
import shlex
import subprocess
import sys

import pytest

import ddpm_data
from ddpm_data.cli._parsers import parse
from tests.conftest import ROOT
from tests.warm import python

COMMANDS = ["check", "report", "verify", "compare"]
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("slow:", sorted({"torch", "lightning", "hydra", "numpy", "PIL"} & set(sys.modules)))
"""


def run(*words: str) -> tuple[int, str]:
    """Run a module as a program; its status, and what it printed, with the slow packages that it imported."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("module", ["ddpm_data", "ddpm_data.{}"])
def test_help_names_the_command_and_only_the_new_spellings_and_imports_nothing_slow(command: str, module: str) -> None:
    words = [module.format(command)] if "{" in module else [module, command]
    status, shown = run(*words, "--help")
    assert status == 0
    assert shown.startswith(f"usage: ddpm-data {command} ")
    assert ("--output-dir DIR " in shown) == (command != "verify")
    assert ("--num-workers N " in shown) == ("--max-items N " in shown) == (command == "check")
    assert not re.search(r"--(out|workers|most)\b(?!-)", shown)
    assert shown.endswith("slow: []\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its shell has no true")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_ended_ends_the_command_in_silence(unbuffered: str) -> None:
    for words in (
        "ddpm_data --help",
        "ddpm_data check --help",
        "ddpm_data.report --help",
        "ddpm_data check dataset=digits --max-items 9",
    ):
        command = f"{shlex.join([python(), '-m', *words.split()])} | true; exit ${{PIPESTATUS[0]}}"
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 141
        assert "Error" not in done.stderr


def test_old_spellings_of_options_set_the_same_values() -> None:
    old = parse("check", ["--most", "2", "--out", "b", "--workers", "3", "dataset=fake"])
    assert old == parse("check", ["dataset=fake", "--max-items", "2", "--output-dir", "b", "--num-workers", "3"])
    assert old != parse("check", ["dataset=fake"])


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--version"], 0, re.escape(f"ddpm-data {ddpm_data.__version__}\n")),
        (["nope"], 1, r"ddpm-data has no command nope\. Its commands are check, report, verify, compare\.\n"),
        (["vrify"], 1, r"ddpm-data has no command vrify\. Did you mean verify\?\n"),
        (["check", "--confg-dir", "x"], 2, r"ddpm-data check: .*--confg-dir\. Did you mean --config-dir\? .*\n"),
        (["verify", "--steps", "many"], 2, r"ddpm-data verify: argument --steps: invalid int value: 'many'\. .*\n"),
        (["verify", "--processes", "1"], 2, r"ddpm-data verify: --processes is at least 2, not 1\. .*\n"),
        (["check", "--num-workers", "-1"], 2, r"ddpm-data check: --num-workers is at least 0, not -1\. .*\n"),
        (["check", "--output-dir", __file__], 2, r"ddpm-data check: --output-dir is a folder, and .* is a file\. .*\n"),
        (["compare"], 2, r"ddpm-data compare: the following arguments are required: folder\. .*\n"),
    ],
)
def test_what_needs_no_configuration_is_answered_in_a_line_without_slow_imports(
    words: list[str], status: int, says: str
) -> None:
    returned, printed = run("ddpm_data", *words)
    assert returned == status
    said = printed.replace("slow: []\n", "")
    assert said != printed
    assert re.fullmatch(says, said)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_commands_are_listed(words: list[str]) -> None:
    status, printed = run("ddpm_data", *words)
    assert status == 0
    assert re.findall(r"^  ddpm-data (\w+) +(?!.*=)", printed, re.MULTILINE) == COMMANDS
    assert printed.endswith("slow: []\n")


@pytest.mark.slow
def test_the_package_imports_what_is_used_when_it_is_used() -> None:
    code = """
import sys, ddpm_data
assert not {"torch", "lightning", "hydra"} & set(sys.modules)
assert set(ddpm_data.__all__) <= set(dir(ddpm_data))
from ddpm_data import *
assert all(globals()[name] is getattr(ddpm_data, name) for name in ddpm_data.__all__)
assert ddpm_data.sources.ImageFiles.__name__ == "ImageFiles"  # also modules that nobody imported by name
for name in ("nope", "_nope"):
    assert not hasattr(ddpm_data, name)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
