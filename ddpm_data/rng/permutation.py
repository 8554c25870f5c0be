"""A shuffle without an array: compute the index at any place of an epoch from the key."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_data.rng.philox import MASK, Key, Purpose, philox_4x32

_ROUNDS = 6
_SMALL_SET_ROUNDS = 12  # after 6 rounds, some of the 720 orders of 6 items came too often
_SMALL_SET = 4096  # items

Integers = np.ndarray[Any, np.dtype[np.int64]]
WordFunction = Callable[[Integers, Integers], Integers]
RoundFunction = Callable[[Integers], Integers]


def permute(places: Tensor, length: int, key: Key, purpose: Purpose, epoch: int = 0) -> Tensor:
    """Shuffle: map each place to an index by a bijection of ``range(length)``, in constant memory.

    The key, the purpose and the epoch select the bijection. It is a Feistel network over pairs ``(left, right)`` whose
    numbers ``left * width + right`` just cover ``length`` (Black & Rogaway 2002, "Ciphers with arbitrary finite
    domains"). Its round function is a Philox word. The few results outside ``range(length)`` go through the network
    again until they fall inside ("cycle walking").

    Args:
        places: Places in the shuffled order, in ``[0, length)``, int64, any shape.
        length: N, number of items, at most ``2**62``.
        key: The seed's key, from :func:`~ddpm_data.rng.philox.key_from`.
        purpose: The purpose of the order; each purpose has different orders.
        epoch: At least 0; each epoch has its own order.

    Returns:
        Indices in ``[0, length)``, int64, shape of ``places``; distinct for distinct places.
    """
    height = max(math.isqrt(length - 1), 0) + 1
    width = -(-length // height)
    words = partial(_draw_words, key=key, purpose=purpose, epoch=epoch)
    rounds = np.arange(_SMALL_SET_ROUNDS if height * width < _SMALL_SET else _ROUNDS)
    # For many places it is faster to compute a table of each round's function first.
    build = _build_tables if height <= places.numel() else _build_functions
    left_shifts, right_shifts = build(words, width, height, rounds[::2]), build(words, height, width, rounds[1::2])

    def shuffle(values: Integers) -> Integers:
        left, right = np.divmod(values, width)
        for shift_left, shift_right in zip(left_shifts, right_shifts, strict=True):
            left = (left + shift_left(right)) % height
            right = (right + shift_right(left)) % width
        return left * width + right

    indices = shuffle(places.flatten().numpy())  # NumPy takes a third of torch's time for arrays this small
    while len(outside := np.flatnonzero(indices >= length)):
        indices[outside] = shuffle(indices[outside])
    return torch.from_numpy(indices).view(places.shape)


class RandomSubset:
    """A random subset of a dataset: the items at places ``start`` to ``stop`` of an order that the key selects.

    Subsets with the same key and length do not overlap if their places do not. This divides a dataset into splits.

    Args:
        key: The seed's key, from :func:`~ddpm_data.rng.philox.key_from`.
        length: Length of the whole dataset.
        start: First place, in ``[0, length]``.
        stop: One past the last place, in ``[start, length]``.
    """

    def __init__(self, key: Key, length: int, start: int, stop: int) -> None:
        self.key = key
        self.length = length
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def indices(self, numbers: Tensor) -> Tensor:
        """Return the dataset's indices for items of the subset.

        Args:
            numbers: Numbers of items within the subset, in ``[0, len(self))``, int64, any shape.

        Returns:
            Indices in ``[0, length)``, int64, shape of ``numbers``.
        """
        return permute(numbers + self.start, self.length, self.key, Purpose.SPLIT)


def _build_functions(words: WordFunction, domain: int, below: int, rounds: Integers) -> list[RoundFunction]:
    """Return for each round a random function from ``range(domain)`` to ``range(below)``."""

    def draw(value: Integers, round_number: Integers) -> Integers:
        return (words(value, round_number) * below) >> 32  # the high half of the product

    return [partial(draw, round_number=round_number) for round_number in rounds[:, None]]


def _build_tables(words: WordFunction, domain: int, below: int, rounds: Integers) -> list[RoundFunction]:
    """Return the functions of :func:`_build_functions` as lookups in tables."""
    return [table.take for table in (words(np.arange(domain), rounds[:, None]) * below) >> 32]


def _draw_words(value: Integers, round_number: Integers, key: Key, purpose: Purpose, epoch: int) -> Integers:
    """Draw a Philox word for each value and round; the two arguments broadcast."""
    low, high = np.array([epoch & MASK]), np.array([epoch >> 32])
    return philox_4x32((value, purpose + 65536 * (round_number + 1), low, high), key)[0]
