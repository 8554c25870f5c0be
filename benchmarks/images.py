"""Images to measure with, made when they are needed: photographs in files, and CIFAR-10's files without CIFAR-10."""

import pickle
import random
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image
from torchvision import datasets


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEG files of 300 to 450 pixels per side, cut out of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    (folder / "all").mkdir(parents=True)
    photographs = [Image.fromarray(values) for values in load_sample_images().images]
    generator = random.Random(0)
    for number in range(count):
        width, height = generator.randint(300, 450), generator.randint(300, 420)
        left, top = generator.randint(0, 640 - width), generator.randint(0, 427 - height)
        picture = photographs[number % 2].crop((left, top, left + width, top + height))
        picture.save(folder / "all" / f"{number}.jpg")


class LocalCIFAR10(datasets.CIFAR10):  # type: ignore[misc]  # torchvision ships no type hints
    """CIFAR10 of files that :func:`write_cifar` made: torchvision's own code without its checksums."""

    train_list = (("data_batch", None),)
    meta = MappingProxyType({"filename": "batches.meta", "key": "label_names", "md5": None})

    def _check_integrity(self) -> bool:
        return True


def write_cifar(root: Path, count: int) -> None:
    """Write random pixels in the format of CIFAR-10's files."""
    folder = root / LocalCIFAR10.base_folder
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)
    for name, content in (
        ("data_batch", {"data": values, "labels": [0] * count}),
        ("batches.meta", {"label_names": ["any"]}),
    ):
        (folder / name).write_bytes(pickle.dumps(content))
