"""Samplers cut one stream up, whatever the number of ranks: nothing twice, nothing lost, nobody without."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_data._distributed import World
from ddpm_data.diffusion.timesteps import draw_word
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.loader import make_loader
from ddpm_data.loading.map_style import MapStyleBatches, MapStyleImages
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.samplers import ENDLESS, BatchRequest, EpochPlan, EvalSampler, StreamSampler
from ddpm_data.rng.permutation import RandomSubset, permute
from ddpm_data.rng.philox import Purpose, key_from
from tests.conftest import uint8_images

KEY = key_from(0)
SIZES = [(1, 1), (2, 3), (7, 2), (10, 4), (20, 4), (21, 4), (23, 4), (64, 8), (97, 5)]


def epoch(length: int, batch: int, world: int, drop_last: bool, number: int = 0) -> list[list[BatchRequest]]:
    """Each rank's requests in one epoch."""
    ranks = []
    for rank in range(world):
        sampler = StreamSampler(length, batch, world, rank, KEY, drop_last)
        sampler.set_epoch(number)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler)
    return ranks


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_each_ranks_batch_has_one_t_in_each_part_of_the_range(world: int) -> None:
    """Low discrepancy holds on every rank, in training and evaluation, if the batch size is a power of two."""
    batch, batches = 16, 3
    evaluation = [list(EvalSampler(world * batch * batches, batch, world, rank)) for rank in range(world)]
    for ranks in (epoch(world * batch * batches + 5, batch, world, drop_last=True, number=2), evaluation):
        assert [len(requests) for requests in ranks] == [batches] * world
        for request in (request for requests in ranks for request in requests):
            words = draw_word(torch.tensor(list(request.positions)), KEY, "val", low_discrepancy=True)
            assert sorted((words >> 28).tolist()) == list(range(batch))


def flat(ranks: list[list[BatchRequest]]) -> list[tuple[int, int]]:
    return sorted(
        pair for requests in ranks for r in requests for pair in zip(r.positions, r.indices.tolist(), strict=True)
    )


@pytest.mark.parametrize(("length", "batch"), SIZES)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [0, 3])
def test_every_example_once_an_epoch_at_its_own_position(length: int, batch: int, world: int, number: int) -> None:
    if length < world:
        return
    ranks = epoch(length, batch, world, drop_last=False, number=number)
    order = permute(torch.arange(length), length, KEY, Purpose.SHUFFLE, number).tolist()
    assert flat(ranks) == [(number * length + place, order[place]) for place in range(length)]
    assert len({len(requests) for requests in ranks}) == 1  # nobody waits for a rank that has no batch
    assert all(request.positions for requests in ranks for request in requests)


@pytest.mark.parametrize(("length", "batch"), SIZES)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_drop_last_leaves_whole_batches_only(length: int, batch: int, world: int) -> None:
    ranks = epoch(length, batch, world, drop_last=True)
    assert {len(requests) for requests in ranks} == {length // (batch * world)}
    assert all(len(request.positions) == batch for requests in ranks for request in requests)
    assert [position for position, _ in flat(ranks)] == list(range(length - length % (batch * world)))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_step_sees_the_same_examples_at_any_world_size(drop_last: bool) -> None:
    one = epoch(54, 12, 1, drop_last)
    for world, batch in ((2, 6), (3, 4), (4, 3), (6, 2)):
        many = epoch(54, batch, world, drop_last)
        for step, request in enumerate(one[0]):
            together = flat([[requests[step]] for requests in many])
            assert together == sorted(zip(request.positions, request.indices, strict=True))


def test_epochs_and_seeds_shuffle_differently_and_reproducibly() -> None:
    orders = []
    for seed in (0, 1):
        sampler = StreamSampler(100, 100, 1, 0, key_from(seed), drop_last=False)
        for number in (0, 1):
            sampler.set_epoch(number)
            orders += [tuple(request.indices) for request in sampler]
            torch.manual_seed(number)
            assert tuple(next(iter(sampler)).indices) == orders[-1]
    assert len(set(orders)) == 4


def test_epochs_longer_than_a_block_are_whole() -> None:
    ranks = epoch(40_000, 100, 3, drop_last=False)
    assert [position for position, _ in flat(ranks)] == list(range(40_000))
    assert sorted(index for _, index in flat(ranks)) == list(range(40_000))


@pytest.mark.parametrize("resumed", [0, 7 * 10**11])
@pytest.mark.parametrize("part", [None, RandomSubset(KEY, 2 * 10**12, 10**12, 2 * 10**12)])
def test_a_trillion_examples_cost_what_a_billion_do(resumed: int, part: RandomSubset | None) -> None:
    """And a million cost less: there are more places in a block then than either half of the shuffle has values."""

    def first(length: int, place: int) -> tuple[BatchRequest, int, int]:
        sampler = StreamSampler(length, 64, 2, 1, KEY, drop_last=False, subset=part)
        sampler.set_epoch(3)
        sampler.plans.resume_at(3, place)
        tracemalloc.start()
        with Operations() as operations:
            request = next(iter(sampler))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return request, peak, operations.elements

    request, peak, elements = first(10**12, resumed)
    assert request.positions == range(3 * 10**12 + resumed + 64, 3 * 10**12 + resumed + 128)
    assert max(request.indices) < (10**12 if part is None else 2 * 10**12)
    _, smaller_peak, smaller_elements = first(10**9, 0)
    assert peak < 1.5 * smaller_peak < 30e6
    assert elements < 1.5 * smaller_elements < 3e8  # what torch's operations wrote, which tracemalloc does not see
    assert first(10**6, 0)[1] < 1.1 * smaller_peak


class Operations(TorchDispatchMode):
    """Counts the elements that torch's operations return."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401  # torch's
        result = func(*args, **(kwargs or {}))
        self.elements += result.numel() if isinstance(result, torch.Tensor) else 0
        return result


@pytest.mark.parametrize(("length", "batch"), SIZES)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_sees_every_example_once_in_even_batches(length: int, batch: int, world: int) -> None:
    if length < world:
        return
    ranks = [list(EvalSampler(length, batch, world, rank)) for rank in range(world)]
    assert flat(ranks) == [(place, place) for place in range(length)]
    assert len({len(requests) for requests in ranks}) == 1
    sizes = [len(request.indices) for requests in ranks for request in requests]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_carries_its_positions_and_stage() -> None:
    data = uint8_images(10, 1, 4, 4)
    batch, faults = MapStyleBatches(MapStyleImages(data, ImageProcessor(), "val"), "val", None)[
        BatchRequest(range(7, 9), np.array([9, 1]))
    ]
    assert not faults
    assert torch.equal(batch.images, data[[9, 1]])
    assert batch.position.tolist() == [7, 8]
    assert batch.meta.stage == "val"


def test_mixed_shapes_that_setup_did_not_meet_are_named() -> None:
    data = [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 9, 8, dtype=torch.uint8)]
    with pytest.raises(ValueError, match=r"train\[0\] is \(3, 8, 8\) and train\[1\] is \(3, 9, 8\)"):
        MapStyleBatches(MapStyleImages(data, ImageProcessor(), "train"), "train", None)[
            BatchRequest(range(2), np.array([0, 1]))
        ]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_may_be_set_after_iter(workers: int) -> None:
    """Lightning calls iter() before set_epoch() when it resumes."""
    sampler = StreamSampler(12, 4, 1, 0, KEY, drop_last=False)
    images = MapStyleImages(uint8_images(12, 1, 4, 4), ImageProcessor(), "train")
    loader = make_loader(images, "train", sampler, LoaderOptions(4, workers), World(1, 0), 0)
    batches = iter(loader)
    sampler.set_epoch(5)
    assert torch.cat([batch.position for batch in batches]).tolist() == list(range(60, 72))


def test_an_endless_epoch_is_longer_than_any() -> None:
    assert EpochPlan(0, ENDLESS, 1, 1, drop_last=False).count_batches() > 10**15
