"""The package as others have it: the wheel in its own venv, and a project of theirs, which a page of docs shows."""

import csv
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.groups import PATIENCE

pytestmark = pytest.mark.slow  # a wheel, and processes
PAGE = (ROOT / "docs" / "how-to" / "hydra.md").read_text()
FILES = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv that has our wheel; what we depend on is borrowed, as it takes 5 GB."""
    folder = tmp_path_factory.mktemp("venv")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True, timeout=PATIENCE
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=PATIENCE)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("ddpm_data-*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True, timeout=PATIENCE
    )
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a plain path: no .pth there is followed
    return python


@pytest.fixture(scope="module")
def project(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page shows, and nothing else."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(python: Path, project: Path, command: str, status: int = 0) -> str:
    """What a command printed; ``python`` in it is the venv's."""
    program, *arguments = command.split()
    assert program in ("python", "ddpm-data")
    result = subprocess.run(
        [python.parent / program, *arguments],
        cwd=project,
        env={"PATH": str(python.parent), "HOME": str(project), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
    )
    assert result.returncode == status, result.stdout[-3000:]
    return result.stdout


def test_it_is_the_wheel_that_is_tried(python: Path, project: Path) -> None:
    """Also the C++ in it, which is compiled on first use."""
    code = """
import ddpm_data, hydra_plugins.ddpm_data as p
from ddpm_data.diffusion import _cpp
_cpp.load_library()
print(ddpm_data.__file__, p.__file__, p.configs(), _cpp._SOURCE)
"""
    env = {"PATH": os.environ["PATH"], "TORCH_EXTENSIONS_DIR": str(project / "extensions")}
    result = subprocess.run([python, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=True)
    for path in result.stdout.split():
        assert Path(path).is_relative_to(python.parent.parent), path
    assert "check" in run(python, project, "ddpm-data")


def test_the_projects_fit_resume_sweep_comparison_and_report_run(python: Path, project: Path) -> None:
    assert len(COMMANDS) == 6
    printed = [run(python, project, command) for command in COMMANDS]
    first, more = project / "outputs" / "first", project / "outputs" / "more"
    assert {row["epoch"] for row in metrics(first)} == {"0", "1"}
    assert {row["epoch"] for row in metrics(more)} == {"2"}
    assert "4 of 4 jobs finished" in printed[2]
    with (project / "multirun" / "steps" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    swept = {(row["ddpm_data/schedule"], row["ddpm_data.schedule.num_timesteps"]) for row in rows}
    assert swept == {("cosine", "50"), ("cosine", "100"), ("late", "50"), ("late", "100")}
    assert all(float(row["lowest val_loss"]) > 0 for row in rows)
    for picture in ("multirun/steps/compare.png", "outputs/report/report.png", "outputs/first/timestep_loss.png"):
        with Image.open(project / picture) as image:
            assert min(image.size) > 300
    assert "| bad " in printed[5]


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_wrong_key_ends_the_run_with_its_name(python: Path, project: Path) -> None:
    printed = run(python, project, "python train.py ++ddpm_data.loader.batch_sise=3", status=1)
    says = "`ddpm_data.loader.batch_sise` is not a key of the config group loader"
    assert any(says in line for line in printed.splitlines() if not line.startswith("Error executing job"))
