"""Arguments: whole numbers of every library are whole numbers, and what is none is refused by name."""

from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm_data import DDPMDataModule, schedules
from ddpm_data._checks import check_int, check_key, check_path, explain_call
from ddpm_data.callbacks import NoisingStrip
from ddpm_data.sources import ArrayFile, ImageFiles, TensorFile
from tests.conftest import uint8_images

KINDS = [int, np.int8, np.int64, np.uint8, np.uint32, np.uint64, torch.tensor]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_of_every_kind_become_ints(kind: Any) -> None:  # noqa: ANN401  # a class
    number = check_int("f", "a.b", kind(5), 0)
    assert (number, type(number)) == (5, int)
    key = check_key("a.b", kind(5))
    assert (key, type(key)) == (5, int)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], np.float32(1), np.bool_(True), torch.tensor(1.5)])
def test_other_things_are_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match=r"f\(b=.*expected a whole number.*`a\.b`"):
        check_int("f", "a.b", value, 0)


def test_a_path_is_any_that_names_a_place() -> None:
    class Named:
        def __fspath__(self) -> str:
            return "~/a"

    assert check_path("f", "a.b", Named()) == Path.home() / "a"
    assert check_path("f", "a.b", ".") == Path(".")


def test_a_path_in_the_home_of_nobody_is_named() -> None:
    with pytest.raises(ValueError, match=r"f\(b='~nobody-at-all/x'\): .*home directory.*`a\.b`"):
        check_path("f", "a.b", "~nobody-at-all/x")


def needs(root: str) -> str:
    return root


def given(function: Any) -> Any:  # noqa: ANN401  # any function
    """A decorator that adds an argument, as configuration libraries do."""

    @wraps(function)
    def call(*arguments: Any) -> Any:  # noqa: ANN401  # any function's
        return function("root", *arguments)

    return call


class Proxy:
    """Another way to add one, as wrapt has it: it shows the signature of what it wraps."""

    __signature__ = signature(needs)

    def __call__(self) -> str:
        return needs("root")


@pytest.mark.parametrize("function", [given(needs), partial(needs, "root"), Proxy(), partial(Proxy()), dict, list])
def test_what_can_be_called_without_arguments_is_not_refused(function: Any) -> None:  # noqa: ANN401  # any function
    function()
    assert explain_call(function) is None


def test_what_cannot_be_called_is_explained() -> None:
    assert explain_call(needs) == "missing a required argument: 'root'"
    assert explain_call(given(needs), 1) is None
    assert explain_call(partial(needs, "root"), 1) == "too many positional arguments"


def cached(folder: Any) -> DDPMDataModule:  # noqa: ANN401  # any value
    return DDPMDataModule(uint8_images(8, 1, 6, 6), schedule=schedules.linear(10), cache_dir=folder)


def drawing(folder: Any) -> NoisingStrip:  # noqa: ANN401  # any value
    return NoisingStrip(folder=folder)


@pytest.mark.parametrize("make", [ImageFiles, ArrayFile, TensorFile, drawing, cached])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", r"='{2}\): the path is empty; is a shell variable not set\?.*`[\w.]+`"),
        (2024, r"=2024\): expected a path, got int\. For a name that is a number write \./2024\. Change `[\w.]+`"),
        (["a", "b"], r"expected a path, got list\. Change `[\w.]+`"),
        (True, r"expected a path, got bool\. Change `[\w.]+`"),
    ],
)
def test_what_names_no_place_is_refused(make: Any, value: Any, says: str) -> None:  # noqa: ANN401  # classes; values
    """An empty path would be the current folder, with everything that lies in it."""
    with pytest.raises((TypeError, ValueError), match=says):
        make(value)


@pytest.mark.parametrize("kind", KINDS)
def test_they_reach_every_part_of_the_datamodule(kind: Any, tmp_path: Any) -> None:  # noqa: ANN401  # a class; a path
    """numpy's seed ended in an OverflowError or a TypeError inside the loader; its channels could not be cached."""

    def triples(of: Any, cached: bool) -> tuple[torch.Tensor, ...]:  # noqa: ANN401  # a class
        items = [(image, number) for number, image in enumerate(uint8_images(8, 1, 6, 6))]
        datamodule = DDPMDataModule(
            items,
            schedule=schedules.linear(of(10)),
            seed=of(5),
            batch_size=of(4),
            image_size=of(4),
            channels=of(3),
            image_key=of(0),
            condition=of(1),
            cache_dir=tmp_path / of.__name__ if cached else None,
        )
        datamodule.prepare_data()
        datamodule.setup("fit")
        batch = next(iter(datamodule.train_dataloader()))
        return tuple(datamodule.on_after_batch_transfer(batch, 0))

    for cached in (False, True):
        for ours, expected in zip(triples(kind, cached), triples(int, False), strict=True):
            assert torch.equal(ours, expected)
