"""Datasets of other libraries that decode whole images, read in a way that leaves the decoding to us.

torchvision's folders and Hugging Face's image columns decode an image in all its pixels before they hand it over. Its
file is there, though, and :func:`~ddpm_data.images.decode.decode_image` reads a JPEG at a half, a quarter or an eighth.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from ddpm_data.images.decode import mark_as_rgb
from ddpm_data.sources._arrays import MapDataset
from ddpm_data.sources._epochs import changes_with_epoch
from ddpm_data.sources._names import Names
from ddpm_data.sources._opening import open_image, open_image_file


def without_decoding(dataset: MapDataset) -> MapDataset:
    """Return a dataset of the same items, whose images are not decoded yet, where a dataset's way of reading is known.

    It is known for these, and for torch's ``Subset`` and ``ConcatDataset`` of them:

    - torchvision's ``DatasetFolder`` and ``ImageFolder`` with the default loader and without a ``transform``; labels
      and ``target_transform`` are theirs
    - Hugging Face datasets with image columns, without a format or transform of their own

    Images are turned upright, and transparency is shown, as for :class:`~ddpm_data.sources.ImageFiles`. Those of
    torchvision's loader have three channels, as it makes them.

    Args:
        dataset: Any map-style dataset; it is not changed.

    Returns:
        The dataset itself where it is of another kind, or changes with the epoch.
    """
    if changes_with_epoch(dataset):  # what is read here would be that of one epoch
        return dataset
    if isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        inner = _map_style(dataset.dataset)
        undecoded = without_decoding(inner)
        return dataset if undecoded is inner else Subset(cast(Any, undecoded), dataset.indices)
    if isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__:
        parts = [_map_style(part) for part in dataset.datasets]
        undecoded_parts = [without_decoding(part) for part in parts]
        is_same = all(part is original for part, original in zip(undecoded_parts, parts, strict=True))
        return dataset if is_same else ConcatDataset(cast(Any, undecoded_parts))
    if _is_plain_folder(dataset):
        return UndecodedFolder(dataset)
    if columns := _list_image_columns(dataset, "Dataset"):
        return UndecodedColumns(dataset, columns)
    return dataset


def stream_without_decoding(
    source: Iterable[object], split: Callable[[Iterable[object]], Iterable[object]]
) -> Iterable[object]:
    """Do for iterable sources what :func:`without_decoding` does: for streamed Hugging Face datasets.

    Args:
        source: Any iterable dataset; it is not changed.
        split: Returns the part of a source that this process reads. A source is split before its images are opened.
    """
    columns = _list_image_columns(source, "IterableDataset")
    if not columns:
        return split(source)
    return UndecodedStream(split(_cast_to_bytes(source, columns)), columns)


class UndecodedFolder(Dataset[tuple[Image.Image, Any]]):
    """The items of a torchvision ``DatasetFolder``, their images not decoded.

    Args:
        folder: The dataset, with the default loader and without a ``transform``.
    """

    def __init__(self, folder: Any) -> None:  # noqa: ANN401  # torchvision has no types
        self.folder = folder
        self._paths = Names(str(path) for path, _ in folder.samples)
        targets = [target for _, target in folder.samples]
        are_ints = all(type(target) is int for target in targets)
        self._targets: Sequence[Any] = array("q", targets) if are_ints else targets

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image = mark_as_rgb(open_image_file(Path(self._paths[index])))
        target, transform = self._targets[index], self.folder.target_transform
        return image, target if transform is None else transform(target)


class UndecodedColumns(Dataset[dict[str, Any]]):
    """The items of a Hugging Face ``Dataset``, their images not decoded.

    Args:
        dataset: The dataset.
        columns: The feature of each image column.
    """

    def __init__(self, dataset: Any, columns: Mapping[str, Any]) -> None:  # noqa: ANN401  # an extra's type
        self.columns = columns
        self.rows = _cast_to_bytes(dataset, columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _open_columns(self.rows[index], self.columns)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several items, read at once."""
        return [_open_columns(row, self.columns) for row in self.rows.__getitems__(list(indices))]


class UndecodedStream:
    """The items of a Hugging Face ``IterableDataset``, their images not decoded.

    Args:
        rows: The dataset, its image columns cast to bytes and paths.
        columns: The feature of each image column.
    """

    def __init__(self, rows: Iterable[Any], columns: Mapping[str, Any]) -> None:
        self.rows = rows
        self.columns = columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            yield _open_columns(row, self.columns)


def _map_style(dataset: object) -> MapDataset:
    return cast(MapDataset, dataset)  # torch's type of a part says less than what it has


def _is_plain_folder(dataset: object) -> bool:
    # Whoever has such a dataset has imported the module.
    module: Any = sys.modules.get("torchvision.datasets.folder")
    if module is None or not isinstance(dataset, module.DatasetFolder):
        return False
    is_plain = type(dataset).__getitem__ is module.DatasetFolder.__getitem__ and not hasattr(dataset, "__getitems__")
    return is_plain and dataset.transform is None and dataset.loader in (module.default_loader, module.pil_loader)


def _list_image_columns(dataset: object, kind: str) -> dict[str, Any]:
    """Return the features of a Hugging Face dataset's image columns, if its items are as they are stored."""
    module: Any = sys.modules.get("datasets")
    if module is None or type(dataset) is not getattr(module, kind, None):
        return {}
    formatting = dataset.format["type"] if kind == "Dataset" else dataset._formatting  # type: ignore[attr-defined]
    features = getattr(dataset, "features", None)
    if formatting is not None or features is None:
        return {}
    return {
        name: feature
        for name, feature in features.items()
        if type(feature) is module.Image and feature.decode and feature.mode is None
    }


def _cast_to_bytes(dataset: Any, columns: Mapping[str, Any]) -> Any:  # noqa: ANN401  # an extra's types
    for name, feature in columns.items():
        dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def _open_columns(row: dict[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _open_stored(value, columns[name]) if name in columns else value  # a column may have been left out
        for name, value in row.items()
    }


def _open_stored(value: Any, feature: Any) -> Any:  # noqa: ANN401  # an extra's types
    """Open a stored image, which is a dict of its bytes and path, or ``None``."""
    if not isinstance(value, dict):
        return value
    path, content = value["path"], value["bytes"]
    if content is not None:
        return open_image(content, Path(path or "").suffix.lower(), path or "")
    if path is not None and Path(path).is_file():
        return open_image_file(Path(path))
    return feature.decode_example(value)  # somewhere on the network
