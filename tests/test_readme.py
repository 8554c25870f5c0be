"""The README's blocks run, its commands compose, its links lead somewhere, and it stays short."""

import re
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tests import blocks
from tests.conftest import ROOT
from tests.groups import PATIENCE
from tests.warm import python

README = (ROOT / "README.md").read_text()
PYTHON = [block.text for block in blocks.blocks(README) if block.language == "python"]
YAML = [block.text for block in blocks.blocks(README) if block.language == "yaml"]
COMMANDS = blocks.commands(README)
JOBS = [line.partition("python train_stub.py")[2] for line in COMMANDS if "train_stub.py" in line]


def test_the_two_set_up_commands_stand_verbatim() -> None:
    assert COMMANDS.count("pip install -e '.[demo]' && python train_stub.py") == 1
    assert COMMANDS.count("pip install -e '.[test]' && pytest") == 1
    assert len(JOBS) == 3
    assert len(PYTHON) == 1
    assert len(YAML) == 1


def test_it_fits_on_three_screens() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=["lightning"])
def test_python_blocks_run_from_anywhere(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    result = subprocess.run([python(), str(script)], cwd=tmp_path, timeout=PATIENCE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", JOBS)
def test_commands_compose(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks.compose(arguments, monkeypatch, capfd)


def test_the_hydra_block_makes_the_datamodule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(YAML[0])
    (tmp_path / "my_project.py").write_text(
        "import torch\n\ndef photographs():\n    return torch.zeros(80, 3, 70, 90, dtype=torch.uint8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path)):
        datamodule = instantiate(compose("config").ddpm_data.datamodule)
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.images.shape == (64, 3, 64, 64)


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 20
    for target in targets:
        assert target.startswith("http") or (ROOT / target).is_file(), target
