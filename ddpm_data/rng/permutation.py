"""A keyed shuffle without an array: where any place of an epoch leads, from the key alone, in constant memory."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_data.rng.philox import MASK, Key, Purpose, philox_4x32

_ROUNDS = 6
_ROUNDS_OF_SMALL = 12  # in sets of a few items fewer rounds show: of 6, some of the 720 orders came up too often
_SMALL = 4096

Integers = np.ndarray[Any, np.dtype[np.int64]]
Words = Callable[[Integers, Integers], Integers]
Function = Callable[[Integers], Integers]


def permute(places: Tensor, length: int, key: Key, purpose: Purpose, epoch: int = 0) -> Tensor:
    """Send places to indices by a bijection of ``range(length)`` that the key, the purpose and the epoch pick.

    A Feistel network over pairs ``(left, right)``, where ``left * width + right`` just covers ``length`` (Black &
    Rogaway 2002, "Ciphers with arbitrary finite domains"), its round function a Philox word; the few results that fall
    outside are sent through again until they fall inside ("cycle walking").

    Args:
        places: In ``[0, length)``, int64, any shape.
        length: N, at most ``2**62``.
        key: From :func:`~ddpm_data.rng.philox.key_from`.
        purpose: What is shuffled.
        epoch: Picks another bijection, at least 0.

    Returns:
        Indices in ``[0, length)``, int64, shape of ``places``; all different where the places are.
    """
    height = max(math.isqrt(length - 1), 0) + 1
    width = -(-length // height)
    words = partial(_words, key=key, purpose=purpose, epoch=epoch)
    numbers = np.arange(_ROUNDS_OF_SMALL if height * width < _SMALL else _ROUNDS)
    # With as many places as a side has values, a table of what each value draws in each round is the shorter way.
    functions = _tables if height <= places.numel() else _functions
    of_right, of_left = functions(words, width, height, numbers[::2]), functions(words, height, width, numbers[1::2])

    def shuffle(values: Integers) -> Integers:
        left, right = np.divmod(values, width)
        for draw_left, draw_right in zip(of_right, of_left, strict=True):
            left = (left + draw_left(right)) % height
            right = (right + draw_right(left)) % width
        return left * width + right

    result = shuffle(places.flatten().numpy())  # in NumPy, which does such small work in a third of torch's time
    while len(outside := np.flatnonzero(result >= length)):
        result[outside] = shuffle(result[outside])
    return torch.from_numpy(result).view(places.shape)


class RandomSubset:
    """A random part of a set, picked by the key: what places ``start`` to ``stop`` of a keyed order lead to.

    Args:
        key: From :func:`~ddpm_data.rng.philox.key_from`.
        length: Of the set.
        start: First place, in ``[0, length]``.
        stop: The place after the last.
    """

    def __init__(self, key: Key, length: int, start: int, stop: int) -> None:
        self.key = key
        self.length = length
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def indices(self, numbers: Tensor) -> Tensor:
        """The set's indices of some of the part's items: int64 in ``[0, length)``, shape of ``numbers``."""
        return permute(numbers + self.start, self.length, self.key, Purpose.SPLIT)


def _functions(words: Words, domain: int, below: int, numbers: Integers) -> list[Function]:
    """A function of the numbers in ``range(domain)`` to those in ``range(below)`` for each round."""

    def draw(value: Integers, number: Integers) -> Integers:
        return (words(value, number) * below) >> 32  # the high half of the product

    return [partial(draw, number=number) for number in numbers[:, None]]


def _tables(words: Words, domain: int, below: int, numbers: Integers) -> list[Function]:
    """As :func:`_functions`, looked up."""
    return [table.take for table in (words(np.arange(domain), numbers[:, None]) * below) >> 32]


def _words(value: Integers, number: Integers, key: Key, purpose: Purpose, epoch: int) -> Integers:
    """A Philox word for each value and round, of the shape that these broadcast to."""
    low, high = np.array([epoch & MASK]), np.array([epoch >> 32])
    return philox_4x32((value, purpose + 65536 * (number + 1), low, high), key)[0]
