"""The keyed shuffle: a bijection at every length, and as good a shuffle as torch.randperm."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from ddpm_data.rng.permutation import RandomSubset, permute
from ddpm_data.rng.philox import Purpose, key_from

KEY = key_from(0)


def order(length: int, epoch: int = 0, seed: int = 0, purpose: Purpose = Purpose.SHUFFLE) -> torch.Tensor:
    return permute(torch.arange(length), length, key_from(seed), purpose, epoch)


@pytest.mark.parametrize("length", [*range(1, 70), 127, 128, 129, 4095, 4096, 4097, 65_536, 65_537, 99_991])
def test_it_is_a_bijection(length: int) -> None:
    """Squares, primes, powers of two and their neighbours."""
    assert torch.equal(order(length).sort().values, torch.arange(length))


@pytest.mark.parametrize("length", [10**9, 2**31 - 1, 2**40 + 3, 2**62])
def test_long_sets_stay_in_range_and_keep_places_apart(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, length, (5000,), generator=generator).unique()
    places = torch.cat([places, torch.tensor([0, length - 1])]).unique()
    indices = permute(places, length, KEY, Purpose.SHUFFLE)
    assert indices.min() >= 0
    assert indices.max() < length
    assert len(indices.unique()) == len(places)
    assert stats.kstest(indices.double().numpy() / length, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("length", [1000, 5000])
def test_places_may_be_asked_for_in_any_company(length: int) -> None:
    """Many at once are looked up in tables, these two are not."""
    whole = order(length, epoch=5)
    assert torch.equal(permute(torch.tensor([[7], [999]]), length, KEY, Purpose.SHUFFLE, 5), whole[[7, 999]][:, None])
    assert torch.equal(permute(torch.tensor(7), length, KEY, Purpose.SHUFFLE, 5), whole[7])


def test_the_order_stays_as_it_is() -> None:
    """It is part of the stream; the second is looked up in tables, the third is of an epoch beyond 32 bits."""
    assert order(10, 3, 5).tolist() == [5, 7, 0, 3, 1, 8, 6, 2, 4, 9]
    assert order(5000, 2, 7)[[0, 1, 4999]].tolist() == [3010, 1977, 4626]
    assert order(100, 2**33, 1)[:5].tolist() == [96, 24, 79, 62, 84]


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_all_orders_of_few_items_come_up_alike(length: int) -> None:
    """Chi-square over the N! orders of 1,200 epochs; 4 tests at 1e-4: 4e-4 false alarms."""
    counts = dict.fromkeys(itertools.permutations(range(length)), 0)
    for epoch in range(1200):
        counts[tuple(order(length, epoch).tolist())] += 1
    assert len(counts) == math.factorial(length)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def statistics(orders: NDArray[np.int64]) -> dict[str, float]:
    """What a uniform shuffle has a known distribution for, over many orders, shape ``(epochs, length)``."""
    epochs, length = orders.shape
    where = np.argsort(orders, axis=1)
    bins = min(length, 16)
    grid = np.zeros((bins, bins))
    np.add.at(grid, (np.arange(length) * bins // length, orders * bins // length), 1)
    adjacent = (np.diff(orders, axis=1) == 1).sum()
    serial = np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in orders])
    neighbours = np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in where])
    between = np.corrcoef(orders[:-1].ravel(), orders[1:].ravel())[0, 1]
    return {
        "uniform": stats.chisquare(grid.ravel(), np.outer(grid.sum(1), grid.sum(0)).ravel() / grid.sum()).pvalue,
        "adjacent": stats.binomtest(int(adjacent), epochs * (length - 1), 1 / length).pvalue,
        "serial": 2 * stats.norm.sf(abs(serial + 1 / length) * (epochs * length) ** 0.5),
        "neighbours": 2 * stats.norm.sf(abs(neighbours + 1 / length) * (epochs * length) ** 0.5),
        "epochs": 2 * stats.norm.sf(abs(between) * (epochs * length) ** 0.5),
    }


@pytest.mark.parametrize(("length", "epochs"), [(20, 600), (257, 200), (5000, 40)])
def test_it_shuffles_as_well_as_randperm(length: int, epochs: int) -> None:
    """Fifteen p-values above 1e-4 (0.15% false alarms); torch.randperm, the yardstick, is held to the same."""
    generator = torch.Generator().manual_seed(0)
    yardstick = np.stack([torch.randperm(length, generator=generator).numpy() for _ in range(epochs)])
    ours = np.stack([order(length, epoch).numpy() for epoch in range(epochs)])
    assert min(statistics(yardstick).values()) > 1e-4
    assert min(statistics(ours).values()) > 1e-4, statistics(ours)


def test_seeds_purposes_and_epochs_pick_other_bijections() -> None:
    orders = [
        order(50),
        order(50, epoch=1),
        order(50, epoch=2**32),
        order(50, seed=1),
        order(50, purpose=Purpose.SPLIT),
    ]
    assert len({tuple(o.tolist()) for o in orders}) == 5


@pytest.mark.parametrize("length", [3, 100, 10_007])
def test_parts_of_a_set_make_it_up(length: int) -> None:
    parts = RandomSubset(KEY, length, 0, length // 3), RandomSubset(KEY, length, length // 3, length)
    assert sum(len(part) for part in parts) == length
    indices = [part.indices(torch.arange(len(part))) for part in parts]
    assert torch.equal(torch.cat(indices).sort().values, torch.arange(length))


def test_seeds_pick_different_parts() -> None:
    parts = [RandomSubset(key_from(seed), 100, 0, 10).indices(torch.arange(10)) for seed in range(5)]
    assert len({tuple(sorted(part.tolist())) for part in parts}) == 5
