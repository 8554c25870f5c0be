"""The project of docs/how-to/class-conditional.md: a labelled folder, trained and sampled as its page says."""

import json
import os
import re
import shlex
import subprocess
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ddpm_data import triples
from tests import blocks
from tests.conftest import ROOT, uint8_images
from tests.groups import PATIENCE
from tests.warm import python

PAGE = (ROOT / "docs" / "how-to" / "class-conditional.md").read_text(encoding="utf-8")
CLASSES = {"cat": 12, "dog/young": 4, "dog/old": 6, "horse": 8}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, and its photographs."""
    folder = tmp_path_factory.mktemp("project")
    for block in blocks.blocks(PAGE):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
    for name, count in CLASSES.items():
        (folder / "photographs" / name).mkdir(parents=True)
        for number, pixels in enumerate(uint8_images(count, 20, 24, 3)):
            Image.fromarray(pixels.numpy()).save(folder / "photographs" / name / f"{number}.png")
    return folder


def run(project: Path, command: str, *more: str, status: int = 0) -> str:
    """Run a command of the page in the project; what it printed."""
    program, *words = shlex.split(command)
    words = ["-m", "ddpm_data", *words] if program == "ddpm-data" else words
    result = subprocess.run(
        [python(), *words, *more],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    assert result.returncode == status, result.stdout[-3000:]
    return result.stdout


@pytest.mark.slow
def test_the_commands_of_the_page_check_train_and_sample(project: Path) -> None:
    check, train = blocks.commands(PAGE)
    (shown,) = re.findall(r"^train, images per condition: .*$", PAGE, re.MULTILINE)
    assert shown in run(project, check).splitlines()
    assert json.loads((project / "outputs" / "check" / "check.json").read_text())["sets"]["train"]["conditions"][
        "classes"
    ] == {"cat (0)": 12, "dog (1)": 10, "horse (2)": 8}
    printed = run(project, train)
    folder = project / "outputs" / "first"
    assert f"one row per class: cat, dog, horse: {folder / 'samples.png'}" in printed
    with Image.open(folder / "samples.png") as samples:
        assert samples.size == (4 * 18 + 2, 3 * 18 + 2)
    assert json.loads((folder / "job.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_in_the_project_a_mistake_is_a_line_with_the_key_and_the_record_has_it(project: Path) -> None:
    run_dir = project / "outputs" / "wrong"
    words = ["ddpm_data.dataset.null_condition=2", f"hydra.run.dir={run_dir}"]
    printed = run(project, "python train.py", *words, status=1)
    said = (
        "null_condition=2 is the label of horse, and a dropped label must be one that no image has, such as 3, the "
        "number of classes. Change `ddpm_data.dataset.null_condition`."
    )
    assert printed.splitlines()[-1] == said
    assert "Traceback" not in printed
    assert json.loads((run_dir / "job.json").read_text())["error"] == said


@pytest.mark.slow
def test_the_page_in_python(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    session: dict[str, Any] = {"__name__": "page"}
    with redirect_stdout(StringIO()) as output:
        exec((project / "in_python.py").read_text(), session)
    assert output.getvalue() == "['cat', 'dog', 'horse']\n"
    datamodule = session["datamodule"]
    assert datamodule.class_names == ["cat", "dog", "horse"]
    datamodule.setup("fit")
    label = torch.cat([batch.condition for batch in triples(datamodule, datamodule.train_dataloader(), "cpu")])
    kept = label[label != 3]
    assert 0 < len(kept) < len(label) == 30
    assert kept.bincount(minlength=3).sub(torch.tensor([12, 10, 8])).le(0).all()
