"""Many strings in two arrays, so that reading them leaves the memory that workers share as it is."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """An unchanging list of strings, such as the names of a dataset's files.

    A forked worker shares its parent's memory until one of them writes there. In a list of strings, reading one writes
    its reference count: after an epoch each worker would have copied the pages of all.

    Args:
        names: The strings.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        parts = [name.encode("utf-8", "surrogateescape") for name in names]  # what file systems hold need not be UTF-8
        self._content = np.frombuffer(b"".join(parts), dtype=np.uint8)
        self._ends = np.fromiter(accumulate(map(len, parts), initial=0), np.int64, len(parts) + 1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one string, or a list of several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # as a list has it: negative ones count from the end, others raise IndexError
        start, end = self._ends[place : place + 2].tolist()
        return self._content[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence, such as a list, has the same strings."""
        if not isinstance(other, Sequence) or isinstance(other, str) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(name == other_name for name, other_name in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(list(self))
