"""The compact list of names is a list of strings to everyone who reads it."""

import copy
import pickle
import sys

import numpy as np
import pytest

from ddpm_data.sources._names import Names

NAMES = ["1.png", "cats/ä.jpg", "", "日本/画像.webp", b"latin-\xe9.png".decode("utf-8", "surrogateescape"), "1.png"]


def test_it_is_the_list_that_it_was_made_of() -> None:
    names = Names(NAMES)
    assert names == NAMES
    assert NAMES == names
    assert names == Names(iter(NAMES))
    assert names != NAMES[:-1]
    assert names != [*NAMES[:-1], "2.png"]
    assert names != "1.png"
    assert [*names] == NAMES
    assert [names[place] for place in range(-len(NAMES), len(NAMES))] == NAMES * 2
    assert names[np.int64(3)] == NAMES[3]
    assert names[1:4] == NAMES[1:4]
    assert names[::-2] == NAMES[::-2]
    assert (names.index("cats/ä.jpg"), names.count("1.png"), "" in names, "x" in names) == (1, 2, True, False)
    assert repr(names) == repr(NAMES)
    assert pickle.loads(pickle.dumps(names)) == copy.deepcopy(names) == NAMES
    assert len(Names()) == 0
    assert Names() == []


@pytest.mark.parametrize("place", [len(NAMES), -len(NAMES) - 1])
def test_a_place_beyond_its_ends_is_an_error(place: int) -> None:
    with pytest.raises(IndexError):
        Names(NAMES)[place]


def test_it_keeps_no_object_per_name() -> None:
    """Whose reference count a worker would write, and so copy its page."""
    names = Names(f"folder/{number:06}.png" for number in range(1000))
    parts = [value for value in vars(names).values()]
    assert all(isinstance(part, np.ndarray) and part.dtype != object for part in parts)
    assert sum(part.nbytes for part in parts) < 1000 * 30
    assert names[5] is not names[5]
    assert sys.getrefcount(parts[0]) < 10
