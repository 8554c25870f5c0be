"""The draw of t: uniform, both ends reachable, and even over any window where asked."""

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_data import UniformTimesteps
from ddpm_data.rng.philox import key_from

KEY = key_from(0)


@pytest.mark.parametrize("steps", [1, 2, 10, 300, 1000])
@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_t_is_uniform_and_reaches_both_ends(steps: int, low_discrepancy: bool) -> None:
    t = UniformTimesteps(low_discrepancy)(torch.arange(200_000), steps, KEY, "train")
    assert t.dtype == torch.int64
    assert t.shape == (200_000,)
    counts = np.bincount(t.numpy(), minlength=steps)
    assert len(counts) == steps
    assert counts.min() > 0
    if low_discrepancy:
        assert np.abs(counts - 200_000 / steps).max() <= 5
    elif steps > 1:
        assert stats.chisquare(counts).pvalue > 1e-4  # false alarm 1e-4 each


def test_t_is_exact_at_the_ends_of_the_words() -> None:
    """The largest word gives T - 1, not T, whatever T is: floor(u * T) in float32 gives T."""
    largest = torch.tensor([2**32 - 1])
    for steps in (1, 2, 3, 999, 1000, 2**24 + 1, 2**31):
        assert int((largest * steps) >> 32) == steps - 1


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 7, 8, 16, 24, 32, 48, 64, 72])
@pytest.mark.parametrize("window", [4, 8, 16, 64, 256])
def test_low_discrepancy_covers_the_steps_in_any_window_of_any_rank(stride: int, window: int) -> None:
    """The widest gap between neighbouring t is within 5 mean gaps; independent draws leave log(window) of them."""
    timesteps, steps = UniformTimesteps(low_discrepancy=True), 10**6
    for start in (0, 1, 12_345, 2**32 - 100, 7 * 10**11):
        t = timesteps(start + stride * torch.arange(window), steps, KEY, "train").sort().values
        gaps = torch.cat([t.diff(), t[:1] + steps - t[-1:]])
        assert int(gaps.max()) * window / steps < 5


def test_low_discrepancy_gives_every_step_its_share_of_any_run() -> None:
    """Each of T = 10 steps comes up 10 times in any 100 consecutive positions, give or take 3."""
    timesteps = UniformTimesteps(low_discrepancy=True)
    t = timesteps(torch.arange(10_000), 10, KEY, "train")
    for start in range(0, 9_900, 37):
        counts = torch.bincount(t[start : start + 100], minlength=10)
        assert (counts - 10).abs().max() <= 3


def test_evaluation_is_always_spread_evenly() -> None:
    position = torch.arange(1000)
    for stage in ("val", "test", "predict"):
        t = UniformTimesteps()(position, 100, KEY, stage)
        assert torch.equal(t, UniformTimesteps(low_discrepancy=True)(position, 100, KEY, stage))
        counts = torch.bincount(t, minlength=100)
        assert (counts - 10).abs().max() <= 3
    train = torch.bincount(UniformTimesteps()(position, 100, KEY, "train"), minlength=100)
    assert (train - 10).abs().max() > 3


def test_seeds_and_stages_start_elsewhere() -> None:
    timesteps, position = UniformTimesteps(low_discrepancy=True), torch.arange(3)
    first = {
        tuple(timesteps(position, 10**6, key_from(seed), stage).tolist())
        for seed in range(5)
        for stage in ("train", "val", "test")
    }
    assert len(first) == 15


def test_anything_but_a_bool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`low_discrepancy`"):
        UniformTimesteps(low_discrepancy="yes")  # type: ignore[arg-type]
