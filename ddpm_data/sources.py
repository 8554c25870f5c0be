"""Datasets of our own: a folder of images, a file of arrays, and the offline digits of the main job."""

import re
from bisect import bisect_right
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from ddpm_data.arrays import Stack, stack_behind
from ddpm_data.decoding import unreadable

Array = np.ndarray[Any, Any]
# EPS is a program, which PIL has Ghostscript run; of the others it reads no pixels by itself.
_NOT_READ = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


class ImageFiles(Dataset[Image.Image]):
    """Every image file under a folder, flat or nested, in natural order (``2.png`` before ``10.png``).

    Items are PIL images not yet decoded, so that whoever knows the size that is wanted can have a JPEG decoded at a
    half, a quarter or an eighth (:func:`~ddpm_data.decoding.decoded`). Labels are not read from folder names; hidden
    files and folders are left out, and so is EPS, which is a program.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: It holds no file whose ending names an image format PIL reads.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"ImageFiles: there is no folder {self.root.absolute()}. Change `dataset.root`.")
        kinds = _formats()
        endings = {ending for ending, kind in Image.registered_extensions().items() if kind in kinds or kind == "MPO"}
        names = (path.relative_to(self.root) for path in self.root.rglob("*") if path.suffix.lower() in endings)
        self.names = sorted((str(name) for name in names if not _hidden(name)), key=_natural)
        if not self.names:
            raise ValueError(
                f"ImageFiles: {self.root.absolute()} holds no image files (.jpg, .png, .webp, ...), nor do its "
                "folders. Change `dataset.root`."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        path = self.root / self.names[index]
        try:
            image = _opened(path.read_bytes(), path.suffix.lower())
        except MemoryError:
            raise
        except Exception as error:  # PIL's errors on damaged files are of many kinds
            raise unreadable(path, error) from error
        image.filename = str(path)  # type: ignore[attr-defined]  # PIL's files have one, for errors to name
        return image


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

    Of an item's three axes the channels are the first or the last, as :func:`~ddpm_data.items.pixels` has it.
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
    def stack(self) -> Stack | None:
        """The array, to gather whole batches from; ``None`` where torch does not have its dtype."""
        return stack_behind(self.array, None)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Array:
        image: Array = self.array[index]
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker opens the file itself instead of being sent its content."""
        return ArrayFile, (self.path, self.key)


def digits() -> TensorDataset:
    """The 1,797 handwritten digits that ship with scikit-learn (UCI; Alpaydin & Kaynak 1998), 8 x 8 pixels, grey.

    Returns:
        Items ``(image, label)``: uint8 of shape ``(1, 8, 8)``, the 17 levels spread over ``[0, 255]``; int64 in 0..9.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("dataset=digits ships with scikit-learn: pip install 'ddpm-data[demo]'") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images)[:, None]  # float64, whole numbers 0 to 16
    return TensorDataset((images * (255 / 16)).round().to(torch.uint8), torch.from_numpy(bunch.target).long())


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


def _formats() -> list[str]:
    Image.init()  # else there are only those that something else happens to have imported
    return [kind for kind in Image.OPEN if kind not in _NOT_READ]


def _opened(content: bytes, ending: str) -> Image.Image:
    """An image whose header has been read; of bytes, so that no file stays open that is never decoded."""
    kind = Image.registered_extensions()[ending].replace("MPO", "JPEG")  # which reads those too
    try:
        return Image.open(BytesIO(content), formats=[kind])  # asking every format takes as long as a small image
    except UnidentifiedImageError:
        return Image.open(BytesIO(content), formats=_formats())  # a name may be wrong


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that orders runs of digits by their value; the last place settles ``01`` against ``1``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in parts] + [(0, name)]
