"""The README's blocks run, its commands compose, its tables are those of the repository."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import blocks
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = [block.text for block in blocks.blocks(README) if block.language == "python"]
COMMANDS = blocks.commands(README)
JOBS = [line.partition("python train_stub.py")[2] for line in COMMANDS if "train_stub.py" in line]


def test_the_two_set_up_commands_stand_verbatim() -> None:
    assert COMMANDS.count("pip install -e '.[demo]' && python train_stub.py") == 1
    assert COMMANDS.count("pip install -e '.[test]' && pytest") == 1
    assert len(JOBS) == 7
    assert len(PYTHON) == 4


@pytest.mark.parametrize("block", PYTHON, ids=["lightning", "by hand", "conditions", "plain"])
def test_python_blocks_run_from_anywhere(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", JOBS)
def test_commands_compose(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks.compose(arguments, monkeypatch, capfd)


def test_the_table_of_groups_lists_every_config() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+) \|", README, re.MULTILINE))
    folders = {path.name: path for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert set(rows) == set(folders)
    for group, choices in rows.items():
        files = {path.stem for path in folders[group].glob("*.yaml")} - {"base"}
        assert set(re.findall(r"`(\w+)`", choices)) == files


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target
