"""Dropout of conditions, keyed by the example."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_data.diffusion.guidance import ConditionDropout

P = 0.2


def test_dropout_is_keyed_by_the_example() -> None:
    dropout, position, label = ConditionDropout(P, 10, seed=5), torch.arange(20_000), torch.arange(20_000) % 10
    dropped = dropout(label, position)
    lost = dropped == 10
    assert torch.equal(dropped[~lost], label[~lost])
    assert stats.binomtest(int(lost.sum()), 20_000, P).pvalue > 1e-4  # false alarm: 1e-4
    assert torch.equal(dropout(label[500:777], position[500:777]), dropped[500:777])
    assert not torch.equal(ConditionDropout(P, 10, seed=6)(label, position), dropped)
    assert torch.equal(ConditionDropout(P, 10)(label, position), ConditionDropout(P, 10, seed=0)(label, position))
    assert torch.equal(label, torch.arange(20_000) % 10)
    assert torch.equal(ConditionDropout(0.0)(label, position), label)
    assert (ConditionDropout(1.0, -1)(label, position) == -1).all()


def test_of_any_shape_and_in_any_structure_whole_examples_are_dropped() -> None:
    dropout, position = ConditionDropout(0.5, {"text": 0.0, "label": -1}, seed=5), torch.arange(40)
    condition = {"text": torch.rand(40, 3, 2) + 1, "label": torch.arange(40)}
    dropped, mask = dropout(condition, position), dropout.drop_mask(position)
    assert 5 < int(mask.sum()) < 35
    assert torch.equal(dropped["text"], condition["text"] * ~mask[:, None, None])
    assert torch.equal(dropped["label"], torch.where(mask, -1, condition["label"]))


def test_what_takes_its_place_has_an_examples_shape_or_one_that_is_spread_over_it() -> None:
    embedding, position = torch.rand(40, 3, 2), torch.arange(40)
    for shape in ((3, 2), (3, 1), (2,)):
        null = torch.rand(shape) + 1
        dropped = ConditionDropout(1.0, null)(embedding, position)
        assert torch.equal(dropped, null.expand(40, 3, 2))
    for shape in ((2, 2), (3,), (40, 3, 2)):
        with pytest.raises((TypeError, ValueError), match=r"\(3, 2\)"):
            ConditionDropout(1.0, torch.rand(shape))(embedding, position)


def test_what_takes_its_place_has_the_conditions_type_from_batch_to_batch() -> None:
    dropout, position = ConditionDropout(1.0, torch.ones(3)), torch.arange(4)
    for dtype in (torch.float32, torch.float16, torch.float64):
        dropped = dropout(torch.zeros(4, 3, dtype=dtype), position)
        assert dropped.dtype == dtype
        assert (dropped == 1).all()


@pytest.mark.parametrize("shape", [(), (1,), (1, 3), (3,)])
def test_a_condition_for_several_images_cannot_be_dropped(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a batch of 4 images has a condition of shape \(.*`dataset.condition`"):
        ConditionDropout(0.5, 7)(torch.zeros(shape, dtype=torch.int64), torch.arange(4))


@pytest.mark.parametrize(
    ("dtype", "null", "becomes"),
    [(torch.uint8, 256, "0"), (torch.uint8, -1, "255"), (torch.int8, 1000, "-24"), (torch.bool, 2, "True")],
)
def test_a_label_that_the_labels_type_cannot_hold_is_refused(dtype: torch.dtype, null: int, becomes: str) -> None:
    """It would wrap, perhaps to the label of a class."""
    dropout, label = ConditionDropout(0.5, null), (torch.arange(40) % 2).to(dtype)
    with pytest.raises(
        ValueError, match=rf"null_condition={null} .*{dtype}.* would become {becomes},.*`dataset.null_condition`"
    ):
        dropout.check(label)
    assert null in ConditionDropout(0.5, null)(label.long(), torch.arange(40))


@pytest.mark.parametrize("probability", [-0.1, 1.1, torch.nan, "0.1"])
def test_dropout_is_a_probability(probability: Any) -> None:  # noqa: ANN401  # what a config may hold
    with pytest.raises((TypeError, ValueError), match=r"`condition_dropout`"):
        ConditionDropout(probability, 0)


@pytest.mark.parametrize("one", [1, True, np.int64(1), np.array(1), torch.tensor(1)], ids=repr)
def test_a_null_that_is_the_label_of_a_class_is_refused_in_every_type(one: object) -> None:
    labels, classes = torch.arange(3), ["cat", "dog", "horse"]
    with pytest.raises(ValueError, match=r"null_condition=1 is the label of dog, .*such as 3, .*`dataset.null_cond"):
        ConditionDropout(0.5, one).check(labels, classes)
    for null in (3, -1, torch.tensor(3)):
        ConditionDropout(0.5, null).check(labels, classes)


def test_strings_and_bytes_are_replaced_by_their_own_kind() -> None:
    position = torch.arange(2)
    assert ConditionDropout(1.0, b"-")([b"a", b"b"], position) == [b"-", b"-"]
    assert ConditionDropout(1.0, "-")(["a", "b"], position) == ["-", "-"]
    for null, condition, kind in (("-", [b"a", b"b"], "bytes"), (b"-", ["a", "b"], "a string")):
        with pytest.raises(TypeError, match=f"conditions that are {kind}"):
            ConditionDropout(1.0, null)(condition, position)
