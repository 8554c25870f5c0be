"""The draw of t: uniform, both ends reachable, and even over any window where asked."""

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_data import UniformTimesteps, schedules
from ddpm_data.diffusion.timesteps import draw_word, reverse_bits
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
    for start in (0, 1, 12_345, 2**32 - 100, 7 * 10**11):
        words = draw_word(start + stride * torch.arange(window), KEY, "train", True, strided=True).sort().values
        gaps = torch.cat([words.diff(), words[:1] + 2**32 - words[-1:]])
        assert int(gaps.max()) * window / 2**32 < 5


@pytest.mark.parametrize("start", [0, 1, 12_345, 2**32, 7 * 10**11 + 3, 2**62 + 11])
@pytest.mark.parametrize("stride", [1, 3, 255])
def test_consecutive_positions_have_one_word_in_each_part_of_the_range(start: int, stride: int) -> None:
    """Exactly, for every power of two, wherever they begin; every odd stride keeps that."""
    for bits in range(15):
        words = draw_word(start + stride * torch.arange(2**bits), KEY, "val", False)
        assert words.dtype == torch.int64
        assert sorted((words >> (32 - bits)).tolist()) == list(range(2**bits))


@pytest.mark.slow
def test_the_scrambling_is_owens() -> None:
    """Words of positions n and n + 2**k agree in k bits and differ in the next; all others are coins of their own."""
    seeds = 400
    position = torch.arange(16) * 3 + 10**6
    for k in (0, 1, 5, 13, 26):
        words = [torch.stack([draw_word(n, key_from(seed), "train", True) for seed in range(seeds)])
                 for n in (position, position + 2**k)]  # fmt: skip
        bits = ((words[0] ^ words[1])[..., None] >> torch.arange(31, -1, -1)) & 1  # from the highest
        assert not bits[..., :k].any()
        assert bits[..., k].all()
        coins = bits[..., k + 1 :].double()
        # Coins of different seeds are independent, those of one seed perhaps not: five sigma of that many seeds.
        assert float((coins.mean(0) - 0.5).abs().max()) < 5 * 0.5 / seeds**0.5  # 2,192 means: 1e-3 false alarms
        alike = np.corrcoef(coins[:, 0].T.numpy()) - np.eye(coins.shape[-1])
        assert np.abs(alike).max() < 5 / seeds**0.5


def test_a_batchs_loss_deviates_as_if_each_part_of_the_range_had_one_word() -> None:
    """The best loss of Gaussian data is its alpha bar; the deviation follows from the variance within each part."""
    loss = schedules.linear(1000).neg().add(1).cumprod(0)
    curve = loss[(torch.arange(2**11, 2**32, 2**12) * 1000) >> 32]
    for size, times in ((8, 2), (64, 8), (256, 15)):  # by how much the Weyl sequence deviates more
        expected = float((curve.view(size, -1).var(1, unbiased=False).mean() / size).sqrt())
        deviation = {}
        for strided in (False, True):
            words = [draw_word(torch.arange(2**14), key_from(seed), "train", True, strided) for seed in range(100)]
            means = loss[(torch.stack(words) * 1000) >> 32].view(100, -1, size).mean(-1)
            deviation[strided] = float((means - loss.mean()).square().mean().sqrt())
        assert deviation[False] == pytest.approx(expected, rel=0.1)
        assert deviation[True] > times * deviation[False]


def test_every_2_32_positions_every_seed_and_stage_are_scrambled_on_their_own() -> None:
    position = torch.arange(8)
    drawn = {
        tuple(draw_word(position + 2**32 * block, key_from(seed), stage, True).tolist())
        for block in (0, 1, 5)
        for seed in (0, 1, 2**40)
        for stage in ("train", "val", "test")
    }
    assert len(drawn) == 27


def test_a_run_across_a_multiple_of_2_32_is_even_on_either_side() -> None:
    """Each side of 2**k positions has one word in each part; the run as a whole has at most two."""
    for edge in (2**32, 2**53, 5 * 2**32):
        for bits in (3, 6, 10):
            words = draw_word(torch.arange(edge - 2**bits, edge + 2**bits), KEY, "train", True)
            for side in words.chunk(2):
                assert sorted((side >> (32 - bits)).tolist()) == list(range(2**bits))
            assert not torch.equal(words[: 2**bits], words[2**bits :])


def test_the_fewest_and_the_most_steps_are_drawn_evenly() -> None:
    position = torch.arange(2**12) + 2**53 - 2**11
    for steps in (1, 2, 2**16, 2**31):
        t = UniformTimesteps(low_discrepancy=True)(position, steps, KEY, "val")
        for side in t.chunk(2):
            parts = min(steps, 2**11)
            assert torch.bincount(side * parts // steps, minlength=parts).tolist() == [2**11 // parts] * parts


def test_bits_are_reversed() -> None:
    words = torch.tensor([0, 1, 2**31, 0xFFFF0000, 0x12345678])
    assert reverse_bits(words).tolist() == [int(f"{word:032b}"[::-1], 2) for word in words.tolist()]


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
