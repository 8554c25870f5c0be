"""Datasets that change with the epoch, and how they are told which one comes next."""

from collections.abc import Iterator

from torch.utils.data import ConcatDataset, Subset


def tell_epoch(source: object, epoch: int) -> None:
    """Tell a source, or a sampler, which epoch comes next, if it wants to know.

    That is by its ``set_epoch`` method, or by those of the datasets in a ``Subset`` or ``ConcatDataset``. MosaicML's
    datasets have none, and count in ``next_epoch`` how often they were gone through. A run that resumes in a later
    epoch has to set that, or it would see the images of epoch 0.
    """
    if callable(set_epoch := getattr(source, "set_epoch", None)):
        set_epoch(epoch)
    elif isinstance(getattr(source, "next_epoch", None), int):
        source.next_epoch = epoch  # type: ignore[attr-defined]  # asked for above
    else:
        for part in _list_parts(source):
            tell_epoch(part, epoch)


def changes_with_epoch(dataset: object) -> bool:
    """Return whether a map-style dataset, or a part of it, has a ``set_epoch`` method."""
    return next(_find_listeners(dataset), None) is not None


class EpochTeller:
    """Tells map-style datasets their epoch: once for each change, however many stages share a dataset."""

    def __init__(self) -> None:
        self._told: dict[int, int] = {}  # by the id of the dataset

    def tell(self, dataset: object, epoch: int) -> None:
        """Have a dataset give the items of one epoch from now on.

        Args:
            dataset: Its ``set_epoch`` is called, if it has one, or those of the datasets in a ``Subset`` or
                ``ConcatDataset``.
            epoch: The epoch of the training stream; in evaluation 0, which is the same in every epoch.
        """
        for listener in _find_listeners(dataset):
            if self._told.get(id(listener)) != epoch:
                tell_epoch(listener, epoch)
                self._told[id(listener)] = epoch

    def __getstate__(self) -> dict[str, object]:
        """Forget what was told: in another process, datasets have other ids."""
        return {"_told": {}}


def _find_listeners(dataset: object) -> Iterator[object]:
    if callable(getattr(dataset, "set_epoch", None)):
        yield dataset
    else:
        for part in _list_parts(dataset):
            yield from _find_listeners(part)


def _list_parts(dataset: object) -> list[object]:
    if isinstance(dataset, Subset):
        return [dataset.dataset]
    return [*dataset.datasets] if isinstance(dataset, ConcatDataset) else []
