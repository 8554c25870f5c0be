"""Files of strangers run no code: neither data, nor caches, nor checkpoints."""

import ast
import json
import os
import pickle
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_data import DDPMDataModule, schedules
from tests.conftest import ROOT, Recorder, trainer, uint8_images
from tests.test_layers import FILES, name_of


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:  # noqa: ANN401  # pickle's
        return os.mkdir, (str(self.path),)


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert (tmp_path / "gone off").exists()


@pytest.mark.parametrize("path", [*FILES, ROOT / "train_stub.py"], ids=name_of)
def test_no_file_unpickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & set(names)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            options = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            library = getattr(node.func.value, "id", "")
            assert library != "np" or options.get("allow_pickle") is False
            assert library != "torch" or options.get("weights_only") is True


def module(**options: Any) -> DDPMDataModule:  # noqa: ANN401  # any option
    items = list(uint8_images(8, 3, 8, 8))
    return DDPMDataModule(items, schedule=schedules.linear(10), **options)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, enable_checkpointing=True, max_steps=1)
    run.fit(Recorder(), datamodule=module())
    run.save_checkpoint(tmp_path / "good.ckpt")
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    torch.save(content | {"bomb": Bomb(tmp_path / "gone off")}, tmp_path / "bad.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        trainer(tmp_path, max_steps=2).fit(Recorder(), datamodule=module(), ckpt_path=tmp_path / "bad.ckpt")
    assert not (tmp_path / "gone off").exists()


def test_a_cache_with_code_in_it_is_not_loaded(tmp_path: Path) -> None:
    """Even one whose description was forged to fit."""
    module(cache_dir=tmp_path / "cache").prepare_data()
    [path] = (tmp_path / "cache").glob("*.npy")
    objects = np.empty(8, dtype=object)
    objects[0] = Bomb(tmp_path / "gone off")
    np.save(path, objects, allow_pickle=True)
    about = json.loads(path.with_suffix(".json").read_text())
    digest = blake2b(path.read_bytes()).hexdigest()
    about["files"] = [{"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns, "blake2b": digest}]
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="Python objects"):
        module(cache_dir=tmp_path / "cache").prepare_data()
    assert not (tmp_path / "gone off").exists()


def test_pils_limit_stays_on() -> None:
    from PIL import Image

    import ddpm_data  # noqa: F401  # that it changes nothing is the point

    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
