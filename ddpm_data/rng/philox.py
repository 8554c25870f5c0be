"""Keyed randomness: the same bits from the same (seed, stage, purpose, position) anywhere, with no generator state.

Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") scrambles a 128-bit counter under a
64-bit key. It takes ten rounds here, and seven for noise. The key is the seed. The counter holds the number of a block
of four words within an example, the purpose of the words and the example's position: ``(block, purpose + 256 * stage,
position low, position high)``.

Words are int64 tensors with values in ``[0, 2**32)``, since torch has few uint32 operations. int64 products wrap modulo
``2**64``, which leaves both halves of a 32 x 32 bit product correct.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm_data._checks import check_int
from ddpm_data.types import Stage

MASK = 0xFFFFFFFF  # the low 32 bits
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key each round: golden ratio and sqrt(3) - 1
_ROUNDS = 10
_NORMAL_ROUNDS = 7  # noise needs most words, so it takes the fewest rounds that pass BigCrush (Salmon et al., Table 2)
# -sin(2 pi r) / r and cos(2 pi r) as polynomials of r^2 for |r| <= 1/4, fitted at Chebyshev points; error below 7e-9.
_MINUS_SINE = (-6.2831854820251465, 41.34168243408203, -81.60247802734375, 76.58128356933594, -39.76072311401367)
_COSINE = (1.0, -19.739208221435547, 64.93934631347656, -85.45356750488281, 60.143951416015625, -24.981836318969727)
STAGES: dict[Stage, int] = {"train": 0, "val": 1, "test": 2, "predict": 3}  # part of the stream: never renumber

Words = tuple[Tensor, Tensor, Tensor, Tensor]
Word = TypeVar("Word", Tensor, np.ndarray[Any, np.dtype[np.int64]])


class Purpose(IntEnum):
    """The uses of random words. The numbers are part of the stream: never renumber, only add."""

    TIMESTEP = 0
    FLIP = 1
    NOISE = 2
    TIMESTEP_OFFSET = 3
    SHUFFLE = 4
    SPLIT = 5
    CHECK = 6
    CONDITION = 7
    CROP = 8
    LATENT = 9
    AUGMENT = 10
    NOISE_OFFSET = 11
    NOISE_PERTURBATION = 12
    NOISE_PYRAMID = 13
    NOISE_CANDIDATE = 14
    TIMESTEP_SCRAMBLE = 15


class Key(NamedTuple):
    """The two words of Philox's key, which hold a seed.

    Attributes:
        low: The seed's low 32 bits; a tensor without dimensions where it lies on the device.
        high: Its high 32 bits, likewise.
    """

    low: int | Tensor
    high: int | Tensor


def key_from(seed: int) -> Key:
    """Turn a seed into a key.

    Args:
        seed: The seed, in ``[0, 2**64)``.

    Raises:
        TypeError: ``seed`` is not a whole number.
        ValueError: ``seed`` is out of range.
    """
    seed = check_int("ForwardDiffusion", "seed", seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed={seed}: the random key has 64 bits, so the seed must lie in [0, 2**64). Change `seed`.")
    return Key(seed & MASK, seed >> 32)


def philox_4x32(
    counter: tuple[Word, Word, Word, Word], key: Key, rounds: int = _ROUNDS
) -> tuple[Word, Word, Word, Word]:
    """Compute Philox4x32: scramble a counter into four random words (Salmon et al. 2011).

    Args:
        counter: Four words, int64 in ``[0, 2**32)``, with shapes that broadcast: tensors, or arrays of at least one
            dimension.
        key: The key's two words.
        rounds: Number of rounds that mix the words; by default ten.

    Returns:
        Four random words, int64 in ``[0, 2**32)``, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for done in range(rounds):
        # c1 and c3 keep the products' high halves until they are mixed in. One mask then cuts all high halves off.
        if done and c0.shape == c1.shape == c2.shape == c3.shape:  # no longer the caller's: in place is twice as fast
            c0 *= _MULTIPLIERS[0]
            c2 *= _MULTIPLIERS[1]
            c1 ^= c2 >> 32
            c1 ^= k0
            c1 &= MASK
            c3 ^= c0 >> 32
            c3 ^= k1
            c3 &= MASK
            c0, c1, c2, c3 = c1, c2, c3, c0
        else:
            p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
            c0, c1, c2, c3 = (p1 >> 32) ^ c1, p1, (p0 >> 32) ^ c3, p0
            c0 ^= k0
            c0 &= MASK
            c2 ^= k1
            c2 &= MASK
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1 & MASK, c2, c3 & MASK


def words(key: Key, purpose: Purpose, stage: Stage, position: Tensor, blocks: int = 1, rounds: int = _ROUNDS) -> Words:
    """Draw random words for each example.

    Args:
        key: The seed's key, from :func:`key_from`.
        purpose: The use of the words.
        stage: The stage whose stream the positions belong to.
        position: Positions in the stage's stream, int64, shape ``(batch,)``.
        blocks: Number of blocks of four words per example, at most ``2**32``.
        rounds: Number of rounds that mix the words; by default ten.

    Returns:
        Four tensors, int64 in ``[0, 2**32)``, shape ``(batch, blocks)``.
    """
    block = torch.arange(blocks, device=position.device)[None, :]
    n = position[:, None]
    use = torch.full_like(n, purpose + 256 * STAGES[stage])
    return philox_4x32((block, use, n & MASK, (n >> 32) & MASK), key, rounds)


def normals(key: Key, purpose: Purpose, stage: Stage, position: Tensor, numel: int) -> Tensor:
    """Draw standard normal numbers for each example, by the transform of Box & Muller (1958) in float32.

    On one device, uncompiled, an example gets the same numbers bit for bit in any batch.

    Args:
        key: The seed's key, from :func:`key_from`.
        purpose: The use of the numbers.
        stage: The stage whose stream the positions belong to.
        position: Positions in the stage's stream, int64, shape ``(batch,)``.
        numel: Numbers per example.

    Returns:
        float32, contiguous, shape ``(batch, numel)``; at most 6.8 in magnitude.
    """
    noise = torch.cat(normal_quarters(key, purpose, stage, position, -(-numel // 4)), dim=1)
    return noise if noise.shape[1] == numel else noise[:, :numel].contiguous()


def normal_quarters(key: Key, purpose: Purpose, stage: Stage, position: Tensor, quarter: int) -> list[Tensor]:
    """Draw the numbers of :func:`normals` as the four quarters of each row.

    A block of four words gives one number to each quarter.

    Args:
        key: The seed's key, from :func:`key_from`.
        purpose: The use of the numbers.
        stage: The stage whose stream the positions belong to.
        position: Positions in the stage's stream, int64, shape ``(batch,)``.
        quarter: Numbers per example and quarter.

    Returns:
        Four tensors, float32, shape ``(batch, quarter)``.
    """
    a, b, c, d = words(key, purpose, stage, position, quarter, _NORMAL_ROUNDS)
    return [*_box_muller(a, b), *_box_muller(c, d)]


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Turn two words into two standard normal numbers (Box & Muller 1958): radius times cosine and sine of an angle.

    The angle is ``2 pi v / 2**32``, its cosine and sine are right to within 2e-7. To round the angle to float32 first
    would give errors of 6e-7. The first bit of ``v`` is half a turn, which only changes signs. The other bits are an
    angle between -1/4 and 1/4 of a turn, plus a quarter turn that swaps the two.
    """
    bits = v.int()  # the same 32 bits, half as much memory
    radius = u.float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    radius.view(torch.int32).bitwise_xor_(bits & -(2**31))  # the first bit becomes the sign
    turns = (bits & 0x7FFFFFFF).sub_(2**30).float().mul_(2.0**-32)
    square = turns * turns
    return _evaluate(_MINUS_SINE, square).mul_(turns).mul_(radius), _evaluate(_COSINE, square).mul_(radius)


def _evaluate(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Evaluate a polynomial by Horner's rule; ``coefficients`` ascend from the constant."""
    *lower, highest = coefficients
    value = (highest * x).add_(lower.pop())
    for coefficient in reversed(lower):
        value.mul_(x).add_(coefficient)
    return value
