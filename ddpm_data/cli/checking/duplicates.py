"""Items that are there twice, in one set or in two, by 8-byte digests of their content."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class Duplicates(NamedTuple):
    """Items that repeat an earlier one.

    Attributes:
        places: Theirs, ascending.
        origins: For each, the place of the first item that is the same.
    """

    places: Array
    origins: Array


def digest(content: Tensor | str) -> int:
    """8 bytes that tell an image's values, or a file's name, from others: a million have a chance of 3e-8 to clash.

    Args:
        content: Values of any dtype and of at least one dimension, or a name.
    """
    hashed = blake2b(digest_size=8)
    if isinstance(content, str):
        hashed.update(content.encode("utf-8", "surrogateescape"))
    else:
        hashed.update(f"{content.dtype} {tuple(content.shape)}".encode())
        hashed.update(content.contiguous().view(torch.uint8).numpy().data)
    return int.from_bytes(hashed.digest(), "little")


def find_duplicates(digests: Array) -> Duplicates:
    """Which items repeat an earlier one.

    Args:
        digests: Of all items, uint64, shape ``(count,)``.
    """
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    origins = first[group]
    places = np.flatnonzero(origins != np.arange(len(digests)))
    return Duplicates(places, origins[places])


def find_leakage(sets: Sequence[Array]) -> list[tuple[tuple[int, int], Duplicates]]:
    """Which items of later sets are in earlier ones, for each two sets: the numbers of these, and their items.

    Args:
        sets: Digests of each set's items. An item in several earlier sets counts for the first of them.
    """
    starts = np.cumsum([0, *map(len, sets)])
    places, origins = find_duplicates(np.concatenate([np.empty(0, "u8"), *sets]))
    later, earlier = (np.searchsorted(starts, some, "right") - 1 for some in (places, origins))
    found = []
    for one in range(len(sets)):
        for other in range(one + 1, len(sets)):
            both = (earlier == one) & (later == other)
            found.append(((one, other), Duplicates(places[both] - starts[other], origins[both] - starts[one])))
    return found
