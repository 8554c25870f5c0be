"""The same seed gives what it gave when it was pinned: triples, caches' names, a checkpoint's state."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import pins

PINNED = json.loads((Path(__file__).parent / "pins.json").read_text())


CASES = [pytest.param(name, False, id=f"{name}-uncompiled") for name in pins.CONFIGS] + [
    pytest.param(name, True, id=f"{name}-compiled", marks=[pytest.mark.slow] * (name == "files"))
    for name in pins.CONFIGS
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "compiled"), CASES)
def test_triples_are_as_pinned(name: str, compiled: bool, tmp_path: Path) -> None:
    """Steps, flips, crops and order to the bit; noise as near as two machines and two kinds of code come."""
    pins.write_images(tmp_path / "images")
    pinned: dict[str, Any] = PINNED["triples"][name]
    measured = pins.measured(name, compiled, tmp_path / "images")
    assert measured["digest"] == pinned["digest"]
    for part in ("x_t", "noise"):
        torch.testing.assert_close(torch.tensor(measured[part]), torch.tensor(pinned[part]), atol=2e-5, rtol=0)


def test_fingerprints_are_as_pinned(tmp_path: Path) -> None:
    """Else every cache that there is would be decoded again."""
    pins.write_images(tmp_path / "images")
    assert pins.fingerprints(tmp_path / "images") == PINNED["fingerprints"]


def test_a_checkpoints_state_is_as_pinned(tmp_path: Path) -> None:
    """Else checkpoints that there are could not be resumed from."""
    assert pins.state(tmp_path) == PINNED["checkpoint"]
