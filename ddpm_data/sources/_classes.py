"""The names of a dataset's classes, for messages."""

from collections.abc import Mapping, Sequence

from torch.utils.data import ConcatDataset, Subset

from ddpm_data.types import ItemKey


def class_names(dataset: object, key: ItemKey | None) -> Sequence[str]:
    """Return the names of the labels 0, 1, 2, ... that items hold at ``key``; nothing where they are unknown.

    Those of :class:`~ddpm_data.sources.ImageFiles`, of torchvision's datasets and of Hugging Face's ``ClassLabel`` are
    known, also inside ``Subset`` and ``ConcatDataset``.

    Args:
        dataset: Any dataset.
        key: Index into a tuple, or key of a dict, at which an item holds its label.
    """
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset, key)
    if isinstance(dataset, ConcatDataset):
        first, *others = [class_names(part, key) for part in dataset.datasets]
        return first if all(other == first for other in others) else []
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        names = getattr(features.get(key), "names", None)
    else:  # torchvision's items are (image, label)
        names = getattr(dataset, "classes", None) if key == 1 else None
        names = names if getattr(dataset, "target_transform", None) is None else None  # which changes the labels
    are_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return names if are_names and names is not None else []
