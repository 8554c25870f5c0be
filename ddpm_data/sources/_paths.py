"""The file behind an item, for error messages."""

from bisect import bisect_right

from torch.utils.data import ConcatDataset, Subset

from ddpm_data.sources.image_files import ImageFiles


def path_of(dataset: object, index: int) -> str | None:
    """Return the file that an item is read from, or ``None`` if it is unknown.

    The files of :class:`ImageFiles` and of torchvision's folder datasets are known, also inside ``Subset`` and
    ``ConcatDataset``.

    Args:
        dataset: Any map-style dataset.
        index: The item's index in it.
    """
    try:
        return _find_path(dataset, index)
    except (IndexError, KeyError, TypeError):  # there is no such item, which is what the error is about
        return None


def _find_path(dataset: object, index: int) -> str | None:
    if isinstance(dataset, Subset):
        return _find_path(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        index += len(dataset) * (index < 0)
        number = bisect_right(dataset.cumulative_sizes, index)
        return _find_path(dataset.datasets[number], index - [0, *dataset.cumulative_sizes][number])
    if isinstance(dataset, ImageFiles):
        return str(dataset.root / dataset.names[index])
    samples = getattr(dataset, "samples", None)
    sample = samples[index] if isinstance(samples, list) else None
    return sample[0] if isinstance(sample, tuple) and isinstance(sample[0], str) else None
