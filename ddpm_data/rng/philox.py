"""Keyed randomness: the same bits from the same (seed, stage, purpose, position) anywhere, with no generator state.

Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") scrambles a 128-bit counter under a
64-bit key: in ten rounds, in seven for noise. Here the key is the seed, and the counter holds the block of four words
within an example, what the words are for, and the example's position: ``(block, purpose + 256 * stage, position low,
position high)``.

The words are int64 tensors with values in ``[0, 2**32)``: torch has few uint32 operations, and int64 products wrap
modulo 2**64, which leaves both halves of a 32 x 32 bit product right.
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
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, which the key is raised by each round
_ROUNDS = 10
_ROUNDS_OF_NORMALS = 7  # of which there are many: the fewest that pass BigCrush (Salmon et al. 2011, Table 2)
# -sin(2 pi r) / r and cos(2 pi r) as polynomials of r^2 for |r| <= 1/4, fitted at Chebyshev's points: within 7e-9.
_MINUS_SINE = (-6.2831854820251465, 41.34168243408203, -81.60247802734375, 76.58128356933594, -39.76072311401367)
_COSINE = (1.0, -19.739208221435547, 64.93934631347656, -85.45356750488281, 60.143951416015625, -24.981836318969727)
STAGES: dict[Stage, int] = {"train": 0, "val": 1, "test": 2, "predict": 3}  # part of the stream: never renumber

Words = tuple[Tensor, Tensor, Tensor, Tensor]
Word = TypeVar("Word", Tensor, np.ndarray[Any, np.dtype[np.int64]])


class Purpose(IntEnum):
    """What words are drawn for. The numbers are part of the stream: never renumber, only add."""

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


class Key(NamedTuple):
    """A seed as Philox's two key words; as tensors without dimensions where one compiled graph is to serve any seed."""

    low: int | Tensor
    high: int | Tensor


def key_from(seed: int) -> Key:
    """The key of a seed.

    Args:
        seed: In ``[0, 2**64)``.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: It is out of range.
    """
    seed = check_int("ForwardDiffusion", "seed", seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed={seed}: Philox's key has 64 bits, so the seed lies in [0, 2**64). Change `seed`.")
    return Key(seed & MASK, seed >> 32)


def philox_4x32(
    counter: tuple[Word, Word, Word, Word], key: Key, rounds: int = _ROUNDS
) -> tuple[Word, Word, Word, Word]:
    """Philox4x32.

    Args:
        counter: Four words, int64 in ``[0, 2**32)``, of shapes that broadcast: tensors, or arrays that have dimensions.
        key: Two words.
        rounds: How often the words are mixed.

    Returns:
        Four random words, int64 in ``[0, 2**32)``, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # c1 and c3 keep the high halves of the products until they are mixed in: one mask then cuts all of them off.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & MASK, p1, ((p0 >> 32) ^ c3 ^ k1) & MASK, p0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1 & MASK, c2, c3 & MASK


def words(key: Key, purpose: Purpose, stage: Stage, position: Tensor, blocks: int = 1, rounds: int = _ROUNDS) -> Words:
    """Random words for each example.

    Args:
        key: From :func:`key_from`.
        purpose: What they are for.
        stage: The stream the positions belong to.
        position: Places in that stream, int64, shape ``(batch,)``.
        blocks: How many blocks of four words an example needs, at most ``2**32``.
        rounds: How often the words are mixed.

    Returns:
        Four tensors, int64 in ``[0, 2**32)``, shape ``(batch, blocks)``.
    """
    block = torch.arange(blocks, device=position.device)[None, :]
    n = position[:, None]
    what = torch.full_like(n, purpose + 256 * STAGES[stage])
    return philox_4x32((block, what, n & MASK, (n >> 32) & MASK), key, rounds)


def normals(key: Key, purpose: Purpose, stage: Stage, position: Tensor, numel: int) -> Tensor:
    """Standard normal numbers for each example, by Box & Muller (1958) in float32.

    Uncompiled, they are the same bit for bit in any batch on one device.

    Args:
        key: From :func:`key_from`.
        purpose: What they are for.
        stage: The stream the positions belong to.
        position: Places in that stream, int64, shape ``(batch,)``.
        numel: How many numbers an example needs.

    Returns:
        float32, contiguous, shape ``(batch, numel)``; at most 6.8 in magnitude.
    """
    noise = torch.cat(normal_quarters(key, purpose, stage, position, -(-numel // 4)), dim=1)
    return noise if noise.shape[1] == numel else noise[:, :numel].contiguous()


def normal_quarters(key: Key, purpose: Purpose, stage: Stage, position: Tensor, quarter: int) -> list[Tensor]:
    """:func:`normals` as the four quarters of each row, ``(batch, quarter)``: a block of words has one in each."""
    a, b, c, d = words(key, purpose, stage, position, quarter, _ROUNDS_OF_NORMALS)
    return [*_box_muller(a, b), *_box_muller(c, d)]


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2 * torch.log((u.float() + 0.5) * 2.0**-32))
    cosine, sine = _circle(v)
    return radius * cosine, radius * sine


def _circle(v: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi v / 2**32``, within 2e-7 for words ``v``; those of a rounded angle are off by 6e-7.

    The first bit of ``v`` is a half turn, which only changes signs; the rest is a part of a turn of -1/4 to 1/4, and a
    quarter turn more, which swaps the two.
    """
    part = ((v & 0x7FFFFFFF) - 2**30).float() * 2.0**-32
    square = part * part
    sign = 1 - 2 * (v >> 31).float()
    return sign * part * _polynomial(_MINUS_SINE, square), sign * _polynomial(_COSINE, square)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    *rest, value = coefficients
    result = value * x + rest.pop()
    for coefficient in reversed(rest):
        result = result * x + coefficient
    return result
