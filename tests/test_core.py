"""The package without any extra: everything but pictures works. CI runs this file also where none is installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.groups import PATIENCE


@pytest.mark.slow
def test_everything_but_pictures_works_without_extras(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.core_job", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    errors = {name: why for name, why in re.findall(r"^error (\S+) (.*)$", result.stdout, re.MULTILINE)}
    assert {name.split(".")[1] for name in errors} == {"plots"}
    assert set(errors.values()) == {"pictures need matplotlib: pip install 'ddpm-data[plots]'"}
    assert int(lines[0].removeprefix("imported ")) > 50
    assert "trained on 18 validated on 6" in lines
    assert "the same noise True" in lines
    assert any(line.startswith("no check.png: ") and "ddpm-data[plots]" in line for line in lines)
    assert (tmp_path / "check.json").is_file()
