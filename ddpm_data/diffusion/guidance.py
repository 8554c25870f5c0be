"""Dropout of conditions for classifier-free guidance, by the example's position in the stream."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_data._checks import check_float
from ddpm_data._keys import name_arguments
from ddpm_data._nested import StructureError, leaves, map_leaves
from ddpm_data.rng.philox import Purpose, key_from, words


class ConditionDropout:
    """A callable that replaces the conditions of some training examples by a null condition.

    A model trained this way can be sampled with classifier-free guidance (Ho & Salimans 2021, Algorithm 1). Only the
    seed and an example's position decide whether it loses its condition.

    Args:
        probability: Probability that an example loses its condition, in ``[0, 1]``.
        null: The null condition, in the form of one example's condition: a label that no example has (such as the
            number of classes), an embedding or one number for all its values, a string or bytes, or a dict or list of
            these.
        seed: The seed, in ``[0, 2**64)``.

    Raises:
        TypeError: ``probability`` is not a number, or ``seed`` not a whole number.
        ValueError: ``probability`` or ``seed`` is out of range, or ``null`` is missing.
    """

    @name_arguments
    def __init__(self, probability: float, null: object = None, seed: int = 0) -> None:
        self.probability = check_float("ConditionDropout", "dataset.condition_dropout", probability)
        if not 0 <= self.probability <= 1:
            raise ValueError(
                f"condition_dropout={probability}: a probability lies in [0, 1]. Change `dataset.condition_dropout`."
            )
        if self.probability and null is None:
            raise ValueError(
                f"condition_dropout={probability}: a dropped condition needs a replacement, such as a label that no "
                "image has, an embedding or an empty string. Set `dataset.null_condition`."
            )
        self.null = null
        self._key = key_from(seed)
        self._device_nulls: dict[int, Tensor] = {}  # null conditions on the device, by the id of the user's object

    def check(self, condition: Any, class_names: Sequence[str] = ()) -> None:  # noqa: ANN401  # any collatable kind
        """Refuse a ``null`` that cannot take the place of the dataset's conditions.

        Args:
            condition: A batch of conditions; ``None`` if the dataset has none.
            class_names: The names of the labels 0, 1, 2, ... if they are known.

        Raises:
            TypeError: ``null`` has another form than the conditions.
            ValueError: There are no conditions, or ``null`` is the label of a class or does not fit the labels' dtype.
        """
        if condition is None:
            raise ValueError(
                f"condition_dropout={self.probability:g}: there is no condition to drop. Set `dataset.condition`, or "
                "set `dataset.condition_dropout` to 0."
            )
        lengths = [len(leaf) for leaf in leaves(condition) if isinstance(leaf, Tensor) and leaf.dim()]
        self(condition, torch.zeros(lengths[0] if lengths else 1, dtype=torch.int64, device="cpu"))
        null = self._convert_null(self.null, condition) if isinstance(condition, Tensor) else None
        if null is not None and not null.dim() and not null.is_floating_point() and 0 <= null < len(class_names):
            raise ValueError(
                f"null_condition={int(null)} is the label of {class_names[int(null)]}, and a dropped label must be one "
                f"that no image has, such as {len(class_names)}, the number of classes. Change "
                "`dataset.null_condition`."
            )

    def drop_strings(self, condition: Any, position: Tensor) -> Any:  # noqa: ANN401  # any collatable kind
        """Replace the strings of dropped conditions by the null string, before the batch leaves the host.

        Args:
            condition: A batch of conditions; not changed. Tensors are returned as they are.
            position: Positions in the training stream, int64, shape ``(batch,)``, on the CPU.

        Raises:
            TypeError: ``null`` has another form than the conditions.
        """
        if not self.probability or not any(isinstance(leaf, str | list | tuple) for leaf in leaves(condition)):
            return condition
        mask = self.drop_mask(position).tolist()

        def replace_leaf(leaf: object, null: object) -> object:
            if isinstance(leaf, Tensor):
                return leaf
            assert isinstance(leaf, list | tuple)
            kind = bytes if any(isinstance(text, bytes) for text in leaf) else str
            if not isinstance(null, kind):
                raise _make_null_error(null, "a string" if kind is str else "bytes")
            return [null if drop else text for drop, text in zip(mask, leaf, strict=True)]

        return _replace_leaves(replace_leaf, condition, self.null)

    def __call__(self, condition: Any, position: Tensor) -> Any:  # noqa: ANN401  # any collatable kind
        """Replace dropped conditions by the null condition, on the device that they are on.

        Strings are replaced only if ``position`` is on the CPU; otherwise :meth:`drop_strings` has done that before.

        Args:
            condition: A batch of conditions, not changed: a tensor, a list of strings or bytes, or a dict or list of
                these.
            position: Positions in the training stream, int64, shape ``(batch,)``.

        Raises:
            TypeError: ``null`` has another form than the conditions.
            ValueError: ``null`` does not fit their dtype, or they are not one for each position.
        """
        if not self.probability:
            return condition
        if position.device.type == "cpu":
            condition = self.drop_strings(condition, position)
        mask = self.drop_mask(position)

        def replace_leaf(leaf: object, null: object) -> object:
            if not isinstance(leaf, Tensor):
                return leaf
            if not leaf.dim() or len(leaf) != len(mask):
                raise ValueError(
                    f"condition_dropout={self.probability:g}: a batch of {len(mask)} images has a condition of shape "
                    f"{tuple(leaf.shape)}, and to drop some, each image needs its own. Change `dataset.condition`, or "
                    "set `dataset.condition_dropout` to 0."
                )
            return torch.where(mask.view(-1, *[1] * (leaf.dim() - 1)), self._convert_null(null, leaf), leaf)

        return _replace_leaves(replace_leaf, condition, self.null)

    def drop_mask(self, position: Tensor) -> Tensor:
        """Draw which examples lose their condition.

        Args:
            position: Positions in the training stream, int64, shape ``(batch,)``.

        Returns:
            bool, shape ``(batch,)``, on the device of ``position``.
        """
        return words(self._key, Purpose.CONDITION, "train", position)[0][:, 0] < round(self.probability * 2**32)

    def _convert_null(self, null: object, leaf: Tensor) -> Tensor:
        """Convert a null condition to a tensor of the dtype and device of ``leaf``, once for each."""
        tensor = self._device_nulls.get(id(null))
        if tensor is None or tensor.device != leaf.device or tensor.dtype != leaf.dtype:
            try:
                values = torch.as_tensor(null, device="cpu")
                values.expand(leaf.shape[1:])
            except (TypeError, ValueError, RuntimeError) as error:
                raise _make_null_error(null, f"{leaf.dtype} of shape {tuple(leaf.shape[1:])}") from error
            if values.is_floating_point() and not leaf.is_floating_point():
                raise _make_null_error(null, f"{leaf.dtype}")
            converted = values.to(leaf.dtype)
            is_whole = not leaf.is_floating_point() and not leaf.is_complex()
            if is_whole and not torch.equal(converted.to(values.dtype), values):
                raise ValueError(
                    f"null_condition={null!r} replaces conditions of {leaf.dtype}, in which it would become "
                    f"{converted.tolist()}, perhaps that of a class. Change `dataset.null_condition`, or have the "
                    "dataset give its conditions in a wider type, such as int64."
                )
            tensor = self._device_nulls[id(null)] = converted.to(leaf.device)
        return tensor


def _replace_leaves(replace: Callable[[object, object], object], condition: object, null: object) -> object:
    try:
        return map_leaves(replace, condition, null)
    except StructureError as error:
        raise _make_null_error(error.value, error.expected) from error


def _make_null_error(null: object, expected: str) -> TypeError:
    return TypeError(
        f"null_condition={null!r} replaces conditions that are {expected}, so it must have the same form. Change "
        "`dataset.null_condition`."
    )
