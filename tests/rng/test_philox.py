"""Philox against Random123's known answers; the words and normals it gives against their distributions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_data.rng.philox import STAGES, Key, Purpose, Words, _box_muller, key_from, normals, philox_4x32, words

KNOWN_ANSWERS = [  # Random123's kat_vectors, "philox4x32": rounds, counter, key, result
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
]


def parse(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(rounds: int, counter: str, key: str, result: str) -> None:
    a, b, c, d = (torch.tensor([word]) for word in parse(counter))
    assert [int(word) for word in philox_4x32((a, b, c, d), Key(*parse(key)), rounds)] == parse(result)


def test_draws_take_ten_rounds_and_noise_seven() -> None:
    n = torch.tensor([3])
    counter: Words = (torch.tensor([[0]]), torch.tensor([[2]]), n[None], torch.tensor([[0]]))
    assert words(key_from(0), Purpose.NOISE, "train", n) == philox_4x32(counter, Key(0, 0), 10)
    a, b, c, d = philox_4x32(counter, Key(0, 0), 7)
    expected = torch.cat([*_box_muller(a, b), *_box_muller(c, d)], dim=1)
    assert torch.equal(normals(key_from(0), Purpose.NOISE, "train", n, 4), expected)


def test_words_put_the_seed_in_the_key_and_the_rest_in_the_counter() -> None:
    seed, n, block = 0x299F31D0A4093822, 0x0370734413198A2E, 2
    drawn = words(key_from(seed), Purpose.NOISE, "test", torch.tensor([5, n]), blocks=3)
    counter: Words = tuple(torch.tensor([w]) for w in (block, 2 + 256 * 2, 0x13198A2E, 0x03707344))  # type: ignore[assignment]
    expected = philox_4x32(counter, Key(0xA4093822, 0x299F31D0))
    assert [int(w[1, block]) for w in drawn] == [int(w) for w in expected]
    assert all(w.dtype == torch.int64 and w.shape == (2, 3) for w in drawn)


def test_words_are_uniform_bits() -> None:
    drawn = torch.stack(words(key_from(1), Purpose.NOISE, "train", torch.arange(5000), blocks=5)).numpy()
    assert drawn.min() >= 0
    assert drawn.max() < 2**32
    for shift in (0, 8, 16, 24):  # chi-square of every byte: 4 tests at 1e-4 each, 0.04% false alarms
        counts = np.bincount((drawn.ravel() >> shift) & 0xFF, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_normals_are_standard_normal() -> None:
    drawn = normals(key_from(2), Purpose.NOISE, "train", torch.arange(1000), 1000)
    assert drawn.dtype == torch.float32
    assert drawn.is_contiguous()
    values = drawn.double().numpy().ravel()
    # A million numbers; each check is false with probability below 1e-4.
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(values.mean()) < 4 / 1e3
    assert abs(values.var() - 1) < 4 * 2**0.5 / 1e3
    tail = (np.abs(values) > 4).sum()
    assert stats.binomtest(int(tail), values.size, 2 * stats.norm.sf(4)).pvalue > 1e-4


def test_the_four_numbers_of_a_block_and_neighbouring_blocks_are_independent() -> None:
    drawn = normals(key_from(3), Purpose.NOISE, "train", torch.arange(100_000), 8)
    correlation = np.corrcoef(drawn.double().numpy().T) - np.eye(8)
    squares = np.corrcoef(drawn.double().square().numpy().T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / 100_000**0.5  # 28 pairs at 5 sigma: 1.6e-5 false alarms
    assert np.abs(squares).max() < 5 / 100_000**0.5


def test_purposes_stages_seeds_and_positions_give_unrelated_words() -> None:
    """Correlations of 20,000 words at 5 sigma and KS at 1e-5: 1.3e-4 false alarms over 45 pairs and 10 rows."""
    position = torch.arange(20_000)
    drawn = [words(key_from(0), purpose, "train", position)[0] for purpose in Purpose]
    drawn += [words(key_from(0), Purpose.NOISE, stage, position)[0] for stage in ("val", "predict")]
    drawn += [words(key_from(1), Purpose.NOISE, "train", position)[0]]
    drawn += [words(key_from(0), Purpose.NOISE, "train", position + 20_000)[0]]
    values = torch.cat(drawn, 1).double().T.numpy()
    assert np.abs(np.corrcoef(values) - np.eye(len(values))).max() < 5 / 20_000**0.5
    for row in values:
        assert stats.kstest(row / 2**32, "uniform").pvalue > 1e-5


def test_normals_are_box_mullers_to_float32s_accuracy() -> None:
    """Against the formula in float64, of the same words; also where the circle's quarters meet."""
    edges = torch.tensor([0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30, 2**32 - 1])
    a, b, c, d = words(key_from(4), Purpose.NOISE, "train", torch.arange(200), 500)
    b[:9, 0] = edges
    for u, v in ((a, b), (c, d)):
        radius = (-2 * ((u + 0.5).double() * 2.0**-32).log()).sqrt()
        angle = v.double() * (2 * math.pi * 2.0**-32)
        cosine, sine = _box_muller(u, v)
        assert (cosine - radius * angle.cos()).abs().max() < 1.5e-6  # of numbers up to 6.8
        assert (sine - radius * angle.sin()).abs().max() < 1.5e-6


def test_extreme_words_give_finite_normals() -> None:
    extremes = torch.tensor([0, 1, 2**31, 2**32 - 1])
    for u in extremes:
        for values in _box_muller(u.expand(4), extremes):
            assert values.isfinite().all()
            assert values.abs().max() < 6.8


def test_seeds_out_of_range_are_refused() -> None:
    assert key_from(2**64 - 1) == Key(2**32 - 1, 2**32 - 1)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            key_from(seed)
    for wrong in (1.0, "1", True, None):
        with pytest.raises(TypeError, match="seed"):
            key_from(wrong)  # type: ignore[arg-type]


def test_purposes_and_stages_keep_their_numbers() -> None:
    """They are part of the stream. Add to the end; ``diffusion/triple.cpp`` and ``_triton.py`` have them once more."""
    names = "TIMESTEP FLIP NOISE TIMESTEP_OFFSET SHUFFLE SPLIT CHECK CONDITION CROP LATENT AUGMENT NOISE_OFFSET"
    names += " NOISE_PERTURBATION NOISE_PYRAMID NOISE_CANDIDATE TIMESTEP_SCRAMBLE"
    assert [Purpose(number).name for number in range(16)] == names.split()
    assert STAGES == {"train": 0, "val": 1, "test": 2, "predict": 3}
