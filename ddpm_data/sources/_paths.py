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
    if isinstance(dataset, Subset):
        return path_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        number = bisect_right(dataset.cumulative_sizes, index)
        return path_of(dataset.datasets[number], index - [0, *dataset.cumulative_sizes][number])
    if isinstance(dataset, ImageFiles):
        return str(dataset.root / dataset.names[index])
    samples = getattr(dataset, "samples", None)
    sample = samples[index] if isinstance(samples, list) and index < len(samples) else None
    return sample[0] if isinstance(sample, tuple) and isinstance(sample[0], str) else None
