"""Find duplicate items, in one dataset or in two, by 8-byte digests of their content."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ddpm_data._bytes import bytes_of

Array = np.ndarray[Any, Any]


class Duplicates(NamedTuple):
    """Items that repeat an earlier one.

    Attributes:
        copies: Indices of the items that repeat one, ascending, int64, shape ``(count,)``.
        originals: For each copy, the index of the first item that is the same; dtype and shape of ``copies``.
    """

    copies: Array
    originals: Array


def digest(content: Tensor | Iterable[Tensor] | str) -> int:
    """Compute 8 bytes that identify an image's values or a file's name.

    Among a million different contents, two share a digest with a probability of 3e-8.

    Args:
        content: Values of any dtype and at least one dimension, at once or in parts, or a name.
    """
    hasher = blake2b(digest_size=8)
    if isinstance(content, str):
        hasher.update(content.encode("utf-8", "surrogateescape"))
    else:
        for part in [content] if isinstance(content, Tensor) else content:
            hasher.update(f"{part.dtype} {tuple(part.shape)}".encode())
            hasher.update(bytes_of(part).data)
    return int.from_bytes(hasher.digest(), "little")


def find_duplicates(digests: Array) -> Duplicates:
    """Find the items that repeat an earlier one.

    Args:
        digests: One digest per item, uint64, shape ``(count,)``.
    """
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    originals = first[group]
    copies = np.flatnonzero(originals != np.arange(len(digests)))
    return Duplicates(copies, originals[copies])


def find_leakage(sets: Sequence[Array]) -> list[tuple[tuple[int, int], Duplicates]]:
    """Find the items of each dataset that an earlier dataset has too.

    Args:
        sets: The digests of each dataset's items, uint64. An item that several earlier datasets have counts for the
            first of them.

    Returns:
        For each two datasets their numbers, the earlier one first, and their common items: copies in the later one,
        originals in the earlier one.
    """
    starts = np.cumsum([0, *map(len, sets)])
    copies, originals = find_duplicates(np.concatenate([np.empty(0, "u8"), *sets]))
    copy_set, original_set = (np.searchsorted(starts, indices, "right") - 1 for indices in (copies, originals))
    pairs = []
    for earlier in range(len(sets)):
        for later in range(earlier + 1, len(sets)):
            is_common = (original_set == earlier) & (copy_set == later)
            common = Duplicates(copies[is_common] - starts[later], originals[is_common] - starts[earlier])
            pairs.append(((earlier, later), common))
    return pairs
