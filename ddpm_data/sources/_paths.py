"""The file behind an item, for error messages."""

from bisect import bisect_right

from torch.utils.data import ConcatDataset, Subset

from ddpm_data.sources.image_files import ImageFiles


def path_of(dataset: object, index: int) -> str | None:
    """The file that an item of :class:`ImageFiles` or torchvision's folders is read from, also by way of subsets."""
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
