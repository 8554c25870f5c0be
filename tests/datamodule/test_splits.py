"""The datasets of the splits: what they must be, and what is said where they are not."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.datamodule.splits import CONTRACT
from ddpm_data.rng.philox import STAGES
from ddpm_data.types import Stage
from tests.conftest import ROOT
from tests.sources.helpers import module
from tests.test_configs import composed
from tests.test_plugin import app, theirs  # noqa: F401  # a fixture


def test_the_contract_is_the_readmes_and_quoted_to_who_breaks_it() -> None:
    assert "\n".join(CONTRACT) in (ROOT / "README.md").read_text()
    with pytest.raises(TypeError, match="train is a int, not a dataset") as raised:
        module(7)
    assert all(line in str(raised.value) for line in CONTRACT)


GIVEN: list[Any] = [None, 0.1, 0.25, "own"]  # for val and test: nothing, a fraction, a set of its own
IMAGES = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 8, 8)


def train_images() -> Tensor:
    """Forty images, each of its own grey."""
    return IMAGES


def own_images() -> Tensor:
    """Five others."""
    return IMAGES[:5] + 100


def served(dm: DDPMDataModule) -> dict[Stage, list[int]]:
    """The greys that each stage is served."""
    dm.setup()
    loaders = {stage: getattr(dm, f"{stage}_dataloader")() for stage in STAGES if dm.splits.has(stage)}
    return {
        stage: sorted(int(image[0, 0, 0]) for batch in loader for image in batch.images)
        for stage, loader in loaders.items()
    }


def check_parts(greys: dict[Stage, list[int]], given: dict[Stage, Any]) -> None:
    """Whether each stage has what was asked for, and every training image is in one part of ``train``."""
    own = list(range(100, 105))
    assert set(greys) == {"train", *(stage for stage, value in given.items() if value is not None)}
    parts = list(greys["train"])
    for stage, value in given.items():
        if value == "own":
            assert greys[stage] == own
        elif value is not None:
            assert len(greys[stage]) == round(40 * value)
            parts += greys[stage]
    assert sorted(parts) == list(range(40))


@pytest.mark.parametrize(("val", "test", "predict"), list(product(GIVEN, GIVEN, [None, "own"])))
def test_fractions_of_val_and_test_are_parts_of_train_that_share_no_image(val: Any, test: Any, predict: Any) -> None:  # noqa: ANN401
    given: dict[Stage, Any] = {"val": val, "test": test, "predict": predict}
    sets = {stage: own_images if value == "own" else value for stage, value in given.items()}
    dm = DDPMDataModule(train_images, **sets, schedule=schedules.jsd(10))  # type: ignore[arg-type]
    check_parts(served(dm), given)


def test_a_fraction_for_test_leaves_that_for_val_as_it_was() -> None:
    alone, both = (served(DDPMDataModule(IMAGES, 0.25, test, schedule=schedules.jsd(10))) for test in (None, 0.1))
    assert alone["val"] == both["val"]
    assert set(both["train"]) < set(alone["train"])


@pytest.mark.slow
@pytest.mark.parametrize(("val", "test"), list(product(GIVEN, GIVEN)))
@pytest.mark.parametrize("where", ["here", "there"])
def test_every_combination_can_be_written_in_configs(where: str, val: Any, test: Any, app: Any) -> None:  # noqa: ANN401, F811
    given: dict[Stage, Any] = {"val": val, "test": test, "predict": "own" if where == "there" else None}
    path = "tests.datamodule.test_splits"
    own = f"{{_target_: {path}.own_images, _partial_: true}}"
    sets = {"train": f"{{_target_: {path}.train_images, _partial_: true}}"} | {
        stage: "null" if value is None else own if value == "own" else str(value) for stage, value in given.items()
    }
    values = [f"dataset.{stage}={value}" for stage, value in sets.items()] + ["dataset.channels=1"]
    if where == "here":
        node = composed("dataset=base", *values).datamodule
    else:
        node = theirs(app, "whole", "ddpm_data/dataset=base", *(f"ddpm_data.{value}" for value in values))
        node = node.ddpm_data.datamodule
        node.loader.cache_dir, node.seed = None, 0
    check_parts(served(instantiate(node)), given)


class Sized(list[Tensor]):
    """A dataset whose class wants an argument."""

    def __init__(self, count: int) -> None:
        super().__init__(IMAGES[:count])


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (
            dict(val=0.5, test=0.5),
            r"val=0\.5, test=0\.5\): .* nothing of train. Lower `val` or `test`",
        ),
        (dict(test=1.0), r"test=1\.0\): .* in \(0, 1\)\. Change `test`"),
        (dict(test=0.1, train=None), r"train=None, test=0\.1\).*`test`"),
        (dict(val=0.4, test=0.01), r"val=0\.4, test=0\.01 of 40 .* leaves 24 to train and 16 for val and 0 for test"),
        (dict(test=0.1, train=iter), r"test=0\.1: a Stream .*`test`"),
        (dict(predict=0.1), r"predict is a float, not a dataset"),
        (dict(train=Sized), r"train is Sized, which is called without arguments.*: missing .*'count'.*`train`"),
        (dict(val=lambda root: IMAGES), r"val is .*<lambda>, which is called without arguments.*'root'.*`val`"),
    ],
)
def test_parts_that_cannot_be_are_refused(sets: dict[str, Any], says: str) -> None:
    class Stream(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Any:  # noqa: ANN401
            return iter(IMAGES)

    if sets.get("train") is iter:
        sets = sets | {"train": Stream()}
    with pytest.raises((TypeError, ValueError), match=says):
        DDPMDataModule(**{"train": IMAGES, "schedule": schedules.jsd(10)} | sets).setup()


class Broken(Dataset[tuple[Tensor, int]]):
    """Forty items, five of which cannot be read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in (3, 10, 11, 20, 30):
            raise OSError("broken")
        return torch.full((3, 8, 8), index, dtype=torch.uint8), index


@pytest.mark.filterwarnings("ignore:replaced by a neighbour")
def test_a_bad_item_is_replaced_within_its_split_with_a_cache_too(tmp_path: Path) -> None:
    served = []
    for cache_dir in (None, tmp_path):
        bad: dict[str, Any] = {"on_bad_item": "replace", "max_bad_fraction": 0.5, "cache_dir": cache_dir}
        data = DDPMDataModule(
            Broken(), val=0.25, test=0.25, condition=1, schedule=schedules.linear(), compile=False, **bad
        )
        data.prepare_data()
        data.setup()
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        served.append([[index for batch in loader for index in batch.meta.condition.tolist()] for loader in loaders])
    assert served[0] == served[1]
    train, val, test = map(set, served[0])
    assert not train & val
    assert not train & test
    assert not val & test
