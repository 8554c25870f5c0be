"""Which package may import which, where hydra and Lightning are known, and where extras are imported."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.warm import python

PACKAGE = ROOT / "ddpm_data"
BASE = {"types", "_bytes", "_checks", "_distributed", "_keys", "_nested"}
LOWER = BASE | {"schedules", "rng", "latents"}
ALLOWED: dict[str, set[str]] = {  # what each package, or module at the top, may import of the others
    "types": set(),
    "_bytes": set(),
    "_checks": set(),
    "_console": set(),
    "_distributed": set(),
    "_interruption": set(),
    "_keys": set(),
    "_nested": set(),
    "schedules": BASE,
    "rng": BASE,
    "latents": BASE | {"rng"},
    "images": LOWER,
    "diffusion": LOWER,
    "sources": LOWER | {"images"},
    "loading": LOWER | {"images", "sources"},
    "cache": LOWER | {"images", "sources", "loading"},
    "datamodule": LOWER | {"images", "sources", "loading", "cache", "diffusion"},
    "_errors": {"_console", "_interruption", "_keys"},
    "hydra": {"_errors", "_interruption", "_keys", "datamodule", "diffusion"},
    "plots": BASE | {"rng", "diffusion"},
    "callbacks": LOWER | {"images", "sources", "loading", "diffusion", "datamodule", "plots"},
    "cli": LOWER
    | {
        "images",
        "sources",
        "loading",
        "cache",
        "diffusion",
        "datamodule",
        "plots",
        "callbacks",
        "hydra",
        "_console",
        "_errors",
    },
    "__main__": {"_console", "cli"},
}
DOORS = {"check", "verify", "report", "compare", "streaming", "losses", "loops"}  # paths that people type; a few lines


def room(path: Path) -> str:
    """The package, or module at the top, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """What a test of a file is called."""
    return path.relative_to(ROOT).as_posix()


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" and room(path) not in DOORS)


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(path: Path) -> set[str]:
    """Our modules that a file imports, such as ``loading.samplers``."""
    names = {
        name.removeprefix("ddpm_data.")
        for name in imported(ast.parse(path.read_text()))
        if name.startswith("ddpm_data.")
    }
    return {
        name
        if (PACKAGE / f"{name.replace('.', '/')}.py").is_file() or (PACKAGE / name).is_dir()
        else name.rpartition(".")[0]
        for name in names
    }


def test_every_room_is_in_the_table() -> None:
    assert {room(path) for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = {name.partition(".")[0] for name in modules(path)} - {room(path)}
    assert own <= ALLOWED[room(path)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    named = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in FILES}
    order = TopologicalSorter({name: modules(path) - {""} for name, path in named.items()}).static_order()
    assert set(named) <= set(order)  # a circle has no order: static_order raises CycleError and shows it


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_hydra_and_lightning_stay_where_they_belong(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not packages & {"hydra", "omegaconf"} or room(path) in {"cli", "hydra", "_errors"}
    assert "lightning" not in packages or room(path) in {"datamodule", "callbacks", "cli"}


def test_doors_only_lead_on() -> None:
    for name in DOORS:
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 11


@cache
def core_modules() -> set[str]:
    """Return what the distributions hold that pyproject.toml's dependencies name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    return {module for module, owners in packages_distributions().items() if declared & {*map(str.lower, owners)}}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_core_packages_are_imported_outright(path: Path) -> None:
    """Extras are imported where they are used, inside a try that names the extra.

    Triton comes with torch for CUDA devices, and the module that needs it is imported where there is such a device.
    """
    outright = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in outright for name in imported(ast.Module([node], []))}
    assert {name.split(".")[0] for name in names} <= core_modules() | {"ddpm_data"} | sys.stdlib_module_names or (
        path.name == "_triton.py" and "triton" in names
    )


@pytest.mark.slow
def test_a_missing_extra_is_named() -> None:
    code = """
import sys, ddpm_data.callbacks, ddpm_data.sources  # Lightning itself looks for matplotlib
sys.modules |= dict.fromkeys(["matplotlib.axes", "sklearn.datasets", "webdataset.shardlists"])
shards = lambda: ddpm_data.sources.TarShards("a.tar")
callback = lambda: ddpm_data.callbacks.TimestepLoss()
for use in (ddpm_data.sources.digits, lambda: __import__("ddpm_data.plots"), callback, shards):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([python(), "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    digits, pictures, callback, shards = result.stdout.splitlines()
    assert "ddpm-data[demo]" in digits
    assert "ddpm-data[plots]" in pictures
    assert "ddpm-data[plots]" in callback
    assert "ddpm-data[webdataset]" in shards
