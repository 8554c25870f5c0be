"""Conditions of several examples as one batch."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from ddpm_data._nested import leaves


def collate_conditions(name: str, conditions: Sequence[object]) -> Any:  # noqa: ANN401  # any collatable kind
    """Make one batch of several examples' conditions, as ``torch.utils.data.default_collate`` does.

    Args:
        name: What errors call the dataset.
        conditions: One per example.

    Raises:
        TypeError: The conditions have a type that cannot be batched, or different shapes.
    """
    try:
        batch = default_collate(list(conditions))
        if any(isinstance(leaf, Tensor) and leaf.is_quantized for leaf in leaves(batch)):
            raise TypeError("quantized tensors would take the scale of the first: dequantize() them")
        return batch
    except (TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise TypeError(
            f"the conditions of {name} do not make a batch ({next(iter(str(error).splitlines()), '')}): numbers, "
            "strings, tensors or arrays of one shape, or dicts or tuples of these, are needed. Change "
            "`dataset.condition`, or have the dataset give one of these. For images of several sizes or channels set "
            "`dataset.image_size` and `dataset.condition_images`."
        ) from error
