"""Conditions dropped for classifier-free guidance, by the example's place in the stream."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddpm_data._checks import check_float
from ddpm_data._nested import StructureError, leaves, map_leaves
from ddpm_data.rng.philox import Purpose, key_from, words


class ConditionDropout:
    """Replace some training examples' conditions by a null one.

    For classifier-free guidance (Ho & Salimans 2021, Algorithm 1). Which ones follows from the seed and their positions
    alone.

    Args:
        probability: Of losing its condition, in ``[0, 1]``.
        null: What it is replaced by, in the condition's own form without the batch: a label that no example has (the
            number of classes, say), an embedding or one number for all of it, a string, or a dict or list of these.
        seed: In ``[0, 2**64)``.

    Raises:
        TypeError: ``probability`` is no number.
        ValueError: It is out of range, or ``null`` is missing.
    """

    def __init__(self, probability: float, null: object = None, seed: int = 0) -> None:
        self.probability = check_float("ConditionDropout", "dataset.condition_dropout", probability)
        if not 0 <= self.probability <= 1:
            raise ValueError(
                f"condition_dropout={probability}: a probability lies in [0, 1]. Change `dataset.condition_dropout`."
            )
        if self.probability and null is None:
            raise ValueError(
                f"condition_dropout={probability}: there must be something that stands for no condition: a label that "
                "no image has, an embedding, an empty string. Set `dataset.null_condition`."
            )
        self.null = null
        self._key = key_from(seed)
        self._moved: dict[int, Tensor] = {}  # null embeddings on the device, by their object

    def check(self, condition: Any) -> None:  # noqa: ANN401  # any collatable kind
        """Refuse a ``null`` that could not take the place of such conditions.

        Raises:
            TypeError: It has another form.
            ValueError: There are none.
        """
        if condition is None:
            raise ValueError(
                f"condition_dropout={self.probability:g}: there is no condition to drop. Set `dataset.condition`, or "
                "leave `dataset.condition_dropout` 0."
            )
        self(condition, torch.zeros(1, dtype=torch.int64))

    def drop_strings(self, condition: Any, position: Tensor) -> Any:  # noqa: ANN401  # any collatable kind
        """The conditions with those strings replaced that are to be, before the batch leaves the host."""
        if not self.probability or not any(isinstance(leaf, str | list | tuple) for leaf in leaves(condition)):
            return condition
        dropped = self.drop_mask(position).tolist()

        def replace_leaf(leaf: object, null: object) -> object:
            if isinstance(leaf, Tensor):
                return leaf
            if not isinstance(null, str):
                raise _unlike(null, "a string")
            assert isinstance(leaf, list | tuple)
            return [null if drop else text for drop, text in zip(dropped, leaf, strict=True)]

        return _replace_leaves(replace_leaf, condition, self.null)

    def __call__(self, condition: Any, position: Tensor) -> Any:  # noqa: ANN401  # any collatable kind
        """The conditions with those tensors replaced that are to be, on whatever device they are.

        Args:
            condition: As batched, or a nest of tensors and lists of strings; not changed.
            position: Places in the training stream, int64, shape ``(batch,)``.

        Raises:
            TypeError: ``null`` has another form than the conditions.
        """
        if not self.probability:
            return condition
        if position.device.type == "cpu":
            condition = self.drop_strings(condition, position)
        dropped = self.drop_mask(position)

        def replace_leaf(leaf: object, null: object) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            return torch.where(dropped.view(-1, *[1] * (leaf.dim() - 1)), self._like(leaf, null), leaf)

        return _replace_leaves(replace_leaf, condition, self.null)

    def drop_mask(self, position: Tensor) -> Tensor:
        """Which examples lose their condition: bool, shape ``(batch,)``."""
        return words(self._key, Purpose.CONDITION, "train", position)[0][:, 0] < round(self.probability * 2**32)

    def _like(self, leaf: Tensor, null: object) -> Tensor:
        known = self._moved.get(id(null))
        if known is None or known.device != leaf.device or known.dtype != leaf.dtype:
            try:
                values = torch.as_tensor(null)
                values.expand(leaf.shape[1:])
            except (TypeError, ValueError, RuntimeError) as error:
                raise _unlike(null, f"{leaf.dtype} of shape {tuple(leaf.shape[1:])}") from error
            if values.is_floating_point() and not leaf.is_floating_point():
                raise _unlike(null, f"{leaf.dtype}")
            known = self._moved[id(null)] = values.to(leaf.device, leaf.dtype)
        return known


def _replace_leaves(replace: Callable[[object, object], object], condition: object, null: object) -> object:
    try:
        return map_leaves(replace, condition, null)
    except StructureError as error:
        raise _unlike(error.value, error.expected) from error


def _unlike(null: object, wanted: str) -> TypeError:
    return TypeError(
        f"null_condition={null!r} stands for conditions that are {wanted}, and must be like one of them. Change "
        "`dataset.null_condition`."
    )
