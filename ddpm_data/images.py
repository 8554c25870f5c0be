"""Any map-style dataset seen as uint8 CHW images: item by item, or whole batches from the array behind it."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ddpm_data.arrays import Gatherable, MapDataset, stack_behind
from ddpm_data.permutation import Part, permute
from ddpm_data.philox import Key, Purpose
from ddpm_data.policy import ImagePolicy, no_range

T = TypeVar("T")


class Images(Dataset[Tensor]):
    """A map-style dataset, or some of it, seen as uint8 CHW images.

    Args:
        dataset: Anything with ``__getitem__`` and ``__len__``; its ``__getitems__``, if any, fetches whole batches.
        policy: How an item becomes an image.
        name: What to call it in errors.
        part: Which items belong to the set; ``None`` is all. Indices are the dataset's all the same.
        cache: All the dataset's images as the policy wants them, if they have been decoded before.
    """

    def __init__(
        self,
        dataset: MapDataset,
        policy: ImagePolicy,
        name: str,
        part: Part | None = None,
        cache: Gatherable | None = None,
    ) -> None:
        self.dataset = dataset
        self.policy = policy
        self.name = name
        self.part = part
        self.cache = cache
        self.is_stored = False  # whether an array holds the images as they are wanted; known once they are checked
        self._stack = stack_behind(dataset, policy.image_key)

    def __len__(self) -> int:
        return len(self.dataset) if self.part is None else len(self.part)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Images of several of the dataset's items, each uint8, shape ``(channels, height, width)``."""
        if self.cache is not None:
            return list(self.cache.gather(torch.as_tensor(indices)))
        return [read(f"{self.name}[{index}]", self.policy, item) for index, item in self._items(indices)]

    def raw(self, indices: Sequence[int]) -> list[Tensor]:
        """Images of several items in their own dtype, not yet as the policy wants them."""
        return [read(f"{self.name}[{index}]", self.policy.pixels, item) for index, item in self._items(indices)]

    def batch(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Tensor:
        """The same images as one tensor, uint8, shape ``(batch, channels, height, width)``, contiguous.

        Raises:
            TypeError: An item holds no image.
            ValueError: An image cannot be converted, or images differ in shape.
        """
        wanted = torch.as_tensor(indices)
        if self.cache is not None:
            return self.cache.gather(wanted)
        if self._stack is not None:
            with suppress(ValueError):  # one by one, below, it comes with the item's index
                return self.policy.fit(self._stack.gather(wanted)).contiguous()
        images = self.__getitems__(wanted.tolist())
        same_shape(self.name, wanted.tolist(), images)
        batch: Tensor = default_collate(images)  # in a worker it stacks straight into shared memory
        return batch

    def check(self) -> None:
        """Look at up to 128 items (all, if there are no more) and raise what a batch would raise, but now.

        Raises:
            TypeError: An item holds no image.
            ValueError: Nothing there, an image the policy cannot convert, or images of several shapes.
        """
        if len(self) == 0:
            raise ValueError(
                f"{self.name} is empty: there is nothing to draw a batch from. Check `dataset.{self.name}`."
            )
        # Where size and channels are both asked for, shapes cannot differ, and a few looks tell type and range.
        count = min(len(self), 8 if self.policy.image_size and self.policy.channels else 128)
        shuffled = permute(torch.arange(count), len(self), Key(0, 0), Purpose.CHECK)  # even steps would meet patterns
        places = torch.tensor(sorted({0, len(self) - 1, *shuffled.tolist()}))
        indices = (places if self.part is None else self.part.indices(places)).tolist()
        raw = self.raw(indices)
        self._check_range(raw)
        if self._stack is not None and not _same(self._stack.gather(torch.tensor(indices)), raw):
            self._stack = None  # the dataset makes something else of its array
        named = zip(indices, raw, strict=True)
        images = [read(f"{self.name}[{index}]", self.policy.fit, image) for index, image in named]
        same_shape(self.name, indices, images)
        self.is_stored = self._stack is not None and _same(images, raw)

    def _check_range(self, raw: list[Tensor]) -> None:
        if self.policy.value_range is not None or raw[0].dtype in (torch.uint8, torch.bool):
            return
        low = min(float(image.double().min()) for image in raw)
        high = max(float(image.double().max()) for image in raw)
        seen = f"{self.name} holds {raw[0].dtype} images, and the {len(raw)} looked at span"
        raise ValueError(no_range(seen, low, high))

    def __getstate__(self) -> dict[str, object]:
        """A worker finds the array anew in its own copy of the dataset."""
        return self.__dict__ | {"_stack": self._stack is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stack = stack_behind(self.dataset, self.policy.image_key) if state["_stack"] else None

    def _items(self, indices: Sequence[int]) -> list[tuple[int, object]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(list(indices)) if callable(fetch) else [self.dataset[index] for index in indices]
        return list(zip(indices, items, strict=True))


def _same(some: Iterable[Tensor], others: Sequence[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def read(where: str, convert: Callable[[T], Tensor], value: T) -> Tensor:
    """Convert a value to an image, or say where the one that cannot be comes from.

    Raises:
        OSError, TypeError, ValueError: What ``convert`` raised, with ``where`` before its message.
    """
    try:
        return convert(value)
    except (TypeError, ValueError, OSError) as error:
        # Not type(error): the constructors of some subclasses want more than a message.
        kind = next(kind for kind in (TypeError, ValueError, OSError) if isinstance(error, kind))
        raise kind(f"{where}: {error}") from error


def same_shape(name: str, indices: Sequence[int], images: Sequence[Tensor]) -> None:
    """Refuse images that could not share a batch.

    Raises:
        ValueError: Two shapes differ; both are named, with the key to set.
    """
    for index, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(differing(name, indices[0], images[0].shape, index, image.shape))


def differing(name: str, index: int, shape: torch.Size, other: int, other_shape: torch.Size) -> str:
    """What to say of two images that could not share a batch."""
    key = "channels" if shape[0] != other_shape[0] else "image_size"
    return (
        f"{name}[{index}] is {tuple(shape)} and {name}[{other}] is {tuple(other_shape)} (channels, height, width): "
        f"images of a batch must share a shape. Set `dataset.{key}`."
    )
