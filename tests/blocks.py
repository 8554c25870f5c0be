"""The fenced blocks of a page: python is run, what it prints compared, commands and configs are composed.

A block with ``title="name"`` is first written to the file of that name, as a reader would do. A ``text`` block right
after a ``python`` block is what that prints.
"""

import importlib.util
import pkgutil
import re
import runpy
import shlex
import sys
import tomllib
from contextlib import redirect_stdout
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from ddpm_data.cli._config import find_datamodule_config
from ddpm_data.cli._parsers import parse
from tests.conftest import ROOT

_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
_FIRST = re.compile(r"choice\(([^,)]+).*\)|.*interval\(([^,)]+).*\)|([^,]*),.*")  # of what a sweep goes through


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: As the fence says.
        title: The file it is, if any.
        text: Its lines.
        line: The number of the first.
        adjoins: Whether only blank lines are between it and the block before it.
    """

    language: str
    title: str | None
    text: str
    line: int
    adjoins: bool


def blocks(page: str) -> list[Block]:
    """A page's blocks in order."""
    found, end = [], 0
    for match in _FENCE.finditer(page):
        line = page[: match.start(3)].count("\n") + 1
        found.append(Block(match[1], match[2], match[3], line, not page[end : match.start()].strip()))
        end = match.end()
    return found


def commands(page: str) -> list[str]:
    """The commands in a page's ``bash`` blocks, without comments."""
    text = "\n".join(block.text for block in blocks(page) if block.language == "bash").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def compose(job: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Hydra's ``--cfg job`` composes a command as it stands and prints the configuration; other tests run the jobs."""
    words = [_of_one_run(word) for word in shlex.split(job, comments=True) if word != "-m"]
    monkeypatch.setattr(sys, "argv", ["train_stub.py", *words, "--cfg", "job"])
    runpy.run_path(str(ROOT / "train_stub.py"), run_name="__main__")
    printed = OmegaConf.create(capfd.readouterr().out)
    for key, _, value in (word.partition("=") for word in words):
        if "." in key and not key.startswith(("hydra.", "+", "-")):
            assert OmegaConf.select(printed, key) == OmegaConf.create(f"value: {value}").value


def check_command(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Whether a command of a page could be run: its overrides are composed, its extras are there."""
    for part in command.split(" && "):
        words = shlex.split(part, comments=True)
        if "train_stub.py" in words:
            compose(part.partition("train_stub.py")[2], monkeypatch, capfd)
        elif words[:2] == ["pip", "install"]:
            for extras in re.findall(r"\[([\w,]+)\]", part):
                assert set(extras.split(",")) <= set(_EXTRAS), command
        elif words[:1] == ["ddpm-data"]:
            _check_tool(f"ddpm_data.{words[1]}", words[2:])
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            assert importlib.util.find_spec(words[2]), command
        elif words[:2] == ["python", "-m"] and words[2].startswith("ddpm_data."):
            _check_tool(words[2], words[3:])
        else:
            raise AssertionError(f"no test knows how to check this command: {command}")


def run(
    page: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> list[str]:
    """Do what a reader of a page would, from top to bottom: one folder, one Python session.

    Returns:
        Where a ``print`` is whose output the page does not show.
    """
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    session: dict[str, Any] = {"__name__": "page"}
    printed, hidden = "", []
    for block, next_block in zip_longest(blocks(page), blocks(page)[1:]):
        where = f"{name}:{block.line}"
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
        if block.language == "python":
            with redirect_stdout(StringIO()) as output:
                # Blank lines before it, so that a traceback has the page's line.
                exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), session)
            printed = output.getvalue()
            is_shown = next_block and next_block.language == "text" and next_block.adjoins
            if "print(" in block.text and not is_shown:  # a progress bar need not be shown
                hidden.append(where)
        elif block.language == "yaml":
            _check_targets(OmegaConf.create(block.text), where)
        elif block.language == "bash":
            for command in commands(f"```bash\n{block.text}```"):
                check_command(command, monkeypatch, capfd)
        elif block.language != "text":
            raise AssertionError(f"{where}: what is the language {block.language!r} of this block?")
        elif block.adjoins:
            assert block.text == printed, f"{where}: what is printed is\n{printed}"
    return hidden


def _of_one_run(word: str) -> str:
    key, equals, value = word.partition("=")
    match = _FIRST.fullmatch(value) if not value.startswith("[") else None
    return key + equals + (next(filter(None, match.groups())) if match else value)


def _check_tool(module: str, words: list[str]) -> None:
    """Compose what one of our own commands is asked to read."""
    assert callable(importlib.import_module(module).main)
    if module == "ddpm_data.compare":
        return  # it reads what runs have left
    args = parse(module.rpartition(".")[2], words)
    args.config_dir = args.config_dir or ROOT / "conf"
    args.overrides = [_of_one_run(word) for word in args.overrides]
    OmegaConf.to_container(find_datamodule_config(args), resolve=True)


def _check_targets(node: object, where: str) -> None:
    """What a config names by ``_target_`` can be imported."""
    if isinstance(node, DictConfig):
        target = OmegaConf.to_container(node).get("_target_")
        if target is not None:
            assert callable(pkgutil.resolve_name(target)), f"{where}: {target}"  # as Hydra finds it
        children = [node._get_node(key) for key in node]
    else:
        children = [node._get_node(index) for index in range(len(node))] if isinstance(node, ListConfig) else []
    for child in children:
        _check_targets(child, where)
