"""The package's shape: imports point down only, hydra stays outside, one file knows Lightning's hooks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = [
    {"types", "checks", "ranks", "turbo", "copies", "composing", "stopwatch", "loggers"},
    {"schedules", "philox", "items", "decoding"},
    {"headers", "process", "timesteps", "permutation", "policy", "arrays", "conditions", "faults", "streaming"},
    {"sources"},
    {"latents", "images", "compiling", "losses", "drawing"},
    {"fused"},
    {"transform", "stream", "sheets"},
    {"iterables", "ready", "resume", "trainers", "survey"},
    {"loaders", "fingerprint", "columns"},
    {"loading", "walks"},
    {"cache", "orders", "reports"},
    {"splits"},
    {"datamodule", "plots"},
    {"throughput", "loops"},
    {"callbacks"},
    {"verify", "check", "report", "compare"},
    {"__main__"},
]
# Run by python -m, they read a user's configs or runs; no other file imports them.
COMMANDS = {"verify", "check", "report", "compare"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in (ROOT / "ddpm_data").rglob("*.py") if path.stem != "__init__")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_file_has_its_layer() -> None:
    assert {path.stem for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_down(path: Path) -> None:
    own = {name.split(".")[1] for name in imported(ast.parse(path.read_text())) if name.startswith("ddpm_data.")}
    assert all(LEVEL[name] < LEVEL[path.stem] for name in own), own


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hydra_and_lightning_stay_where_they_belong(path: Path) -> None:
    packages = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not packages & {"hydra", "omegaconf"} or path.stem in {"composing", *COMMANDS}
    assert "lightning" not in packages or path.stem in {
        "datamodule",
        "orders",
        "resume",
        "trainers",
        "throughput",
        "callbacks",
        "loggers",
        *COMMANDS,
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_core_packages_are_imported_outright(path: Path) -> None:
    """Extras are imported where they are used, inside a try that names the extra."""
    # NumPy and PIL come by torchvision, filelock by torch, tqdm by lightning.
    brought = {"numpy", "PIL", "filelock", "tqdm"}
    core = {"torch", "torchvision", "lightning", "ddpm_data"} | brought | sys.stdlib_module_names
    outright = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in outright for name in imported(ast.Module([node], []))}
    assert {name.split(".")[0] for name in names} <= core


def test_a_missing_extra_is_named() -> None:
    code = """
import sys, ddpm_data.sources, ddpm_data.streaming
sys.modules |= dict.fromkeys(["matplotlib.axes", "sklearn.datasets", "webdataset.shardlists"])
shards = lambda: ddpm_data.streaming.TarShards("a.tar")
callback = lambda: __import__("ddpm_data.callbacks").callbacks.TimestepLoss()
for use in (ddpm_data.sources.digits, lambda: __import__("ddpm_data.plots"), callback, shards):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    digits, pictures, callback, shards = result.stdout.splitlines()
    assert "ddpm-data[demo]" in digits
    assert "ddpm-data[plots]" in pictures
    assert "ddpm-data[plots]" in callback
    assert "ddpm-data[webdataset]" in shards


def test_files_stay_small() -> None:
    for path in [*FILES, ROOT / "train_stub.py"]:
        assert len(path.read_text().splitlines()) <= 250, path.name
