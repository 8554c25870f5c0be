"""The verify command tells a configuration whose streams agree from one whose do not."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.utils.data import IterableDataset

from ddpm_data.cli.verify import _compare_examples, _digest_examples, main
from ddpm_data.types import ConditionedTriple
from tests.conftest import ROOT, uint8_images
from tests.groups import finished
from tests.warm import python


class Sharded(IterableDataset[Tensor]):
    """Splits itself over processes."""

    def __iter__(self) -> Iterator[Tensor]:
        world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        return itertools.islice(uint8_images(80, 1, 8, 8), world[0], None, world[1])


def verify(*words: str) -> tuple[int, str]:
    return finished([python(), "-m", "ddpm_data.verify", *words], ROOT)


CONDITIONS = ("dataset.condition=1", "dataset.condition_dropout=0.1", "dataset.null_condition=10")


def test_conditions_of_every_kind_are_part_of_an_example() -> None:
    parts = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.ones(2, 3))
    conditions: list[Any] = [
        ["a", "b"],
        [b"a", b"b"],
        torch.tensor([1, 2]),
        {"text": ["a", "b"], "label": torch.ones(2)},
    ]
    digests = [_digest_examples(ConditionedTriple(*parts, condition)) for condition in conditions]
    assert all(first != second for first, second in digests)
    assert len({row for rows in digests for row in rows}) == 8


@pytest.mark.slow
def test_streams_that_agree() -> None:
    code, said = verify("--steps", "4", "dataset=digits", "loader.batch_size=500", *CONDITIONS)
    assert code == 0
    assert said.splitlines()[-8:] == [
        "agrees  training, 2 processes: 3234 examples",  # two epochs of 1617, in steps of 1000 and 617
        "agrees  validation, 2 processes: 180 examples",
        "unique  noise of 3234 training examples, 2 processes",
        "agrees  training, 2 process(es), resumed: 1617 examples",
        "agrees  validation, 2 process(es), resumed: 180 examples",
        "unique  noise of 1617 training examples, 2 process(es), resumed",
        "",
        "passed: the streams agree",
    ]


@pytest.mark.slow
def test_a_random_augmentation_is_found() -> None:
    augment = "dataset.augment={_target_:torchvision.transforms.v2.RandomHorizontalFlip}"
    # Whole batches are flipped or not: two processes would agree with one by chance once in 4 ** 8 runs.
    code, said = verify("--steps", "8", "dataset=digits", "loader.batch_size=32", augment)
    assert code == 1
    assert "DIFFERS training, 2 processes: x_t of example" in said
    assert "`augment`, is random" in said
    assert "agrees  validation, 2 processes" in said
    assert said.splitlines()[-1].startswith("FAILED: ")


@pytest.mark.slow
def test_an_iterable_source_is_held_to_what_it_can_promise() -> None:
    source = [
        "dataset=fake",
        "~dataset.train",
        "+dataset.train={_target_:tests.cli.test_verify.Sharded}",
        "dataset.val=null",
        "compile=false",
    ]
    code, said = verify("--steps", "4", "loader.batch_size=8", *source)
    assert code == 0, said
    assert "The training set is iterable" in said
    assert [line.split(":")[0] for line in said.splitlines()[-6:]] == [
        "unique  noise of 64 training examples, 2 processes",
        "agrees  training, 1 process(es), resumed",
        "none    validation, 1 process(es), resumed",
        "unique  noise of 32 training examples, 1 process(es), resumed",
        "",
        "passed",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config-dir", "nowhere"], "no folder .*nowhere.*--config-dir"),
        (["--key", "data.module"], "has no data.module.*--key"),
        pytest.param(
            ["dataset.train=null", "dataset.val=null"],
            r"FAILED: a run in 1 process\(es\) ended: no train set was given.*`dataset\.train`\.$",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_it_cannot_run_is_said(words: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", python())
    with pytest.raises(SystemExit, match=says):
        main(words)


def test_a_run_that_saw_nothing_does_not_pass_for_one_that_agrees() -> None:
    assert not _compare_examples("training", [("a", "b", "c")], [])
    assert not _compare_examples("training", [], [("a", "b", "c")])
    assert _compare_examples("validation", [], [])


def test_one_process_cannot_be_compared_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--processes", "1"])
    assert "at least 2" in capsys.readouterr().err
