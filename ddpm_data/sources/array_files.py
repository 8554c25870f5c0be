"""Datasets stored as arrays in one file: NumPy's formats and safetensors."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data._checks import check_path
from ddpm_data._keys import name_arguments
from ddpm_data.sources._arrays import BackingArray, find_backing_array

Array = np.ndarray[Any, Any]


class TensorFile(Dataset[dict[str, Tensor]]):
    """A dataset of the rows of a ``.safetensors`` file, such as latents with their labels.

    An item is a dict with one row of each tensor. The file is memory-mapped.

    Args:
        path: The file; all its tensors have the same length.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: The package safetensors is missing.
        TypeError: ``path`` is no path.
        ValueError: ``path`` is empty; the file is no safetensors file, or its tensors differ in length.
    """

    @name_arguments
    def __init__(self, path: str | Path) -> None:
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(".safetensors files need safetensors: pip install 'ddpm-data[latents]'") from error
        self.path = check_path("TensorFile", "dataset.path", path)
        if not self.path.is_file():
            raise FileNotFoundError(f"TensorFile: there is no file {self.path.absolute()}. Change `dataset.path`.")
        try:
            self._stored: dict[str, Tensor] = load_file(self.path)
        except SafetensorError as error:
            raise ValueError(
                f"TensorFile: {self.path} is no safetensors file: {error}. Change `dataset.path`."
            ) from error
        self.columns = dict(self._stored)
        shapes = {name: tuple(column.shape) for name, column in self.columns.items()}
        if len({shape[:1] for shape in shapes.values()} | {()}) != 2:
            raise ValueError(
                f"TensorFile: the tensors of {self.path} have shapes {shapes}, but each needs one row per item. Change "
                "`dataset.path`."
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def __getstate__(self) -> dict[str, object]:
        """Leave out the file's tensors, so that a worker maps the file instead of receiving its content."""
        changed = {name: column for name, column in self.columns.items() if column is not self._stored.get(name)}
        return self.__dict__ | {"_stored": None, "columns": (list(self.columns), changed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        names, changed = state["columns"]
        self.__dict__.update(state)
        self._stored = TensorFile(self.path)._stored
        self.columns = {name: changed.get(name, self._stored.get(name)) for name in names}


class ArrayFile(Dataset[Array]):
    """A dataset of images of one shape in a NumPy file.

    A ``.npy`` file is memory-mapped; an array of an ``.npz`` file is read into memory. Channels may come first or last:
    :func:`~ddpm_data.images.items.to_chw` tells them apart. Pickled objects in a file are never loaded, since that
    would run their code.

    Args:
        path: The file; its array has shape ``(count, height, width)``, or four axes with the channels first or last.
        key: Name of the array in an ``.npz`` file; ``None`` takes the only array.

    Raises:
        FileNotFoundError: The file does not exist.
        TypeError: ``path`` is no path.
        ValueError: ``path`` is empty; the file is no NumPy file, holds pickled objects or no images, or has no array
            called ``key``.
    """

    @name_arguments
    def __init__(self, path: str | Path, key: str | None = None) -> None:
        self.path = check_path("ArrayFile", "dataset.path", path)
        self.key = key
        self.array = self._stored = _load_array(self.path, key)
        if self.array.ndim not in (3, 4):
            raise ValueError(
                f"ArrayFile: {self.path} holds {self.array.dtype} of shape {self.array.shape}, but an array of images "
                "has shape (count, height, width), or four axes with the channels first or last. Change "
                "`dataset.path` or `dataset.key`."
            )

    @property
    def backing_array(self) -> BackingArray | None:
        """The array that batches are gathered from; ``None`` if torch does not have its dtype."""
        return find_backing_array(self.array, None)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Array:
        image: Array = self.array[index]
        return image

    def __getstate__(self) -> dict[str, object]:
        """Leave out the file's array, so that a worker opens the file instead of receiving its content."""
        array = None if self.array is self._stored else self.array
        return self.__dict__ | {"_stored": None, "array": array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stored = _load_array(self.path, self.key)
        if self.array is None:
            self.array = self._stored


def _load_array(path: Path, key: str | None) -> Array:
    if not path.is_file():
        raise FileNotFoundError(f"ArrayFile: there is no file {path.absolute()}. Change `dataset.path`.")
    names: list[str] = []
    try:
        if is_zipfile(path):
            with np.load(path, allow_pickle=False) as archive:
                names = archive.files
                if key in names or (key is None and len(names) == 1):
                    return np.asarray(archive[key or names[0]])
        elif key is None:
            return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"ArrayFile: {path} cannot be read as an array of numbers: {error} Pickled objects are never "
            "loaded, since that would run any code in them. Save the images with numpy.save, or change `dataset.path`."
        ) from error
    unnamed = "no array" if is_zipfile(path) else "one array without a name"
    content = f"the arrays {', '.join(names)}" if names else unnamed
    raise ValueError(f"ArrayFile(key={key!r}): {path} holds {content}. Say which: `dataset.key`.")
