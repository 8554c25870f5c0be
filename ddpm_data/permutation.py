"""A keyed shuffle without an array: where any place of an epoch leads, from the key alone, in constant memory."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_data.philox import MASK, Key, Purpose, philox_4x32

_ROUNDS = 6
_ROUNDS_OF_SMALL = 12  # in sets of a few items fewer rounds show: of 6, some of the 720 orders came up too often
_SMALL = 4096

Integers = np.ndarray[Any, np.dtype[np.int64]]


def permute(places: Tensor, length: int, key: Key, purpose: Purpose, epoch: int = 0) -> Tensor:
    """Send places to indices by a bijection of ``range(length)`` that the key, the purpose and the epoch pick.

    A Feistel network over pairs ``(left, right)``, where ``left * width + right`` just covers ``length`` (Black &
    Rogaway 2002, "Ciphers with arbitrary finite domains"), its round function a Philox word; the few results that fall
    outside are sent through again until they fall inside ("cycle walking").

    Args:
        places: In ``[0, length)``, int64, any shape.
        length: N, at most ``2**62``.
        key: From :func:`~ddpm_data.philox.key_from`.
        purpose: What is shuffled.
        epoch: Picks another bijection, at least 0.

    Returns:
        Indices in ``[0, length)``, int64, shape of ``places``; all different where the places are.
    """
    height = max(math.isqrt(length - 1), 0) + 1
    width = -(-length // height)
    # In NumPy, which does such small integer work in a third of torch's time.
    result = _shuffle(places.numpy(), height, width, key, purpose, epoch)
    while (outside := result >= length).any():
        result[outside] = _shuffle(result[outside], height, width, key, purpose, epoch)
    return torch.from_numpy(result)


class Part:
    """A random part of a set, picked by the key: what places ``start`` to ``stop`` of a keyed order lead to.

    Args:
        key: From :func:`~ddpm_data.philox.key_from`.
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


def _shuffle(values: Integers, height: int, width: int, key: Key, purpose: Purpose, epoch: int) -> Integers:
    left, right = np.divmod(values, width)
    for number in range(0, _ROUNDS_OF_SMALL if height * width < _SMALL else _ROUNDS, 2):
        left = (left + _draw(right, height, number, key, purpose, epoch)) % height
        right = (right + _draw(left, width, number + 1, key, purpose, epoch)) % width
    return left * width + right


def _draw(value: Integers, below: int, number: int, key: Key, purpose: Purpose, epoch: int) -> Integers:
    """A number in ``[0, below)`` for each value: the high half of a product with a Philox word."""
    what, low, high = (np.array([word]) for word in (purpose + 65536 * (number + 1), epoch & MASK, epoch >> 32))
    return (philox_4x32((value, what, low, high), key)[0] * below) >> 32
