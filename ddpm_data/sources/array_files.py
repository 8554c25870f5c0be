"""Datasets in one file of arrays: NumPy's formats and safetensors."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ddpm_data.sources._arrays import BackingArray, find_backing_array

Array = np.ndarray[Any, Any]


class TensorFile(Dataset[dict[str, Tensor]]):
    """Rows of the tensors in a ``.safetensors`` file, mapped into memory: latents with their labels, say.

    Items are dicts with a row of each tensor.

    Args:
        path: The file; all its tensors are of one length.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The package safetensors is missing.
        ValueError: It is no such file, or its tensors differ in length.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(".safetensors files need safetensors: pip install 'ddpm-data[latents]'") from error
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"TensorFile: there is no file {self.path.absolute()}. Change `dataset.path`.")
        try:
            self.columns: dict[str, Tensor] = load_file(self.path)
        except SafetensorError as error:
            raise ValueError(
                f"TensorFile: {self.path} is no safetensors file: {error}. Change `dataset.path`."
            ) from error
        shapes = {name: tuple(column.shape) for name, column in self.columns.items()}
        if len({shape[:1] for shape in shapes.values()} | {()}) != 2:
            raise ValueError(
                f"TensorFile: the tensors of {self.path} are {shapes}; each needs a row for every item. Change "
                "`dataset.path`."
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker maps the file itself instead of being sent its content."""
        return TensorFile, (self.path,)


class ArrayFile(Dataset[Array]):
    """Images of one shape in a NumPy file: ``.npy``, mapped into memory, or an array of an ``.npz``, read into it.

    Of an item's three axes the channels are the first or the last, as :func:`~ddpm_data.images.items.to_chw` has it.
    Pickled objects in such a file are never loaded: loading them would run their code.

    Args:
        path: The file; its array has shape ``(count, height, width)``, or four axes with the channels first or last.
        key: Which array of an ``.npz`` file; ``None`` takes the only one there is.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no NumPy file, holds pickled objects or no images, or ``key`` names none of its arrays.
    """

    def __init__(self, path: str | Path, key: str | None = None) -> None:
        self.path = Path(path).expanduser()
        self.key = key
        self.array = _loaded(self.path, key)
        if self.array.ndim not in (3, 4):
            raise ValueError(
                f"ArrayFile: {self.path} holds {self.array.dtype} of shape {self.array.shape}; images in one array "
                "have shape (count, height, width), or four axes with the channels first or last. Change "
                "`dataset.path` or `dataset.key`."
            )

    @property
    def backing_array(self) -> BackingArray | None:
        """The array, to gather whole batches from; ``None`` where torch does not have its dtype."""
        return find_backing_array(self.array, None)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Array:
        image: Array = self.array[index]
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker opens the file itself instead of being sent its content."""
        return ArrayFile, (self.path, self.key)


def _loaded(path: Path, key: str | None) -> Array:
    if not path.is_file():
        raise FileNotFoundError(f"ArrayFile: there is no file {path.absolute()}. Change `dataset.path`.")
    names: list[str] = []
    try:
        if is_zipfile(path):
            with np.load(path, allow_pickle=False) as content:
                names = content.files
                if key in names or (key is None and len(names) == 1):
                    return np.asarray(content[key or names[0]])
        elif key is None:
            return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"ArrayFile: {path} cannot be read as an array of numbers: {error} Pickled objects are never "
            "loaded, as that would run whatever code is in them. Save the images by numpy.save, or change "
            "`dataset.path`."
        ) from error
    held = f"the arrays {', '.join(names)}" if names else "one array without a name"
    raise ValueError(f"ArrayFile(key={key!r}): {path} holds {held}. Say which: `dataset.key`.")
