"""Walk over nested conditions: dicts, lists and tuples of tensors and of lists of strings or bytes.

A list of these is a leaf, since that is what ``torch.utils.data.default_collate`` makes of one string per example.
"""

from collections.abc import Callable, Mapping
from typing import Any


class StructureError(TypeError):
    """Two nested values differ in structure.

    Args:
        expected: The structure that the value should have, in words.
        value: The value.
    """

    def __init__(self, expected: str, value: object) -> None:
        super().__init__(f"{expected} is needed, not {value!r}")
        self.expected = expected
        self.value = value


def map_leaves(function: Callable[..., Any], tree: Any, *others: Any) -> Any:  # noqa: ANN401  # nested values of any kind
    """Call a function with each leaf, and rebuild the structure from what it returns.

    Args:
        function: Takes a leaf of ``tree`` and the parts of ``others`` in the same place.
        tree: Nested dicts, lists and tuples, in which tuples become lists; ``None`` stays ``None``.
        others: Values nested at least as deep as ``tree``, in the same way.

    Raises:
        StructureError: One of ``others`` is nested differently.
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        for other in others:
            if not isinstance(other, Mapping) or set(other) != set(tree):
                raise StructureError(f"a dict of {', '.join(map(repr, tree))}", other)
        return {key: map_leaves(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    if not isinstance(tree, list | tuple) or all(isinstance(value, str | bytes) for value in tree):
        return function(tree, *others)
    for other in others:
        if not isinstance(other, list | tuple) or len(other) != len(tree):
            raise StructureError(f"a list of {len(tree)}", other)
    return [map_leaves(function, *values) for values in zip(tree, *others, strict=True)]


def leaves(tree: Any) -> list[Any]:  # noqa: ANN401  # nested values of any kind
    """List the leaves, in the order of the dicts and lists."""
    collected: list[Any] = []
    map_leaves(collected.append, tree)
    return collected
