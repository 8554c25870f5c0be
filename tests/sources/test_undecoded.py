"""torchvision's folders and Hugging Face's image columns: the pixels of ImageFiles, and labels of their own."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import DatasetFolder, FakeData, ImageFolder
from torchvision.datasets.folder import default_loader

from ddpm_data._distributed import EpochShard
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles
from ddpm_data.sources._undecoded import without_decoding

SIZE, SHARD = 32, EpochShard(0, 1, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of several sizes, and files that torchvision and we might read differently, in three classes."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)

    def picture(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
        coarse = random.integers(0, 256, (height // 10, width // 10, channels), dtype=np.uint8)
        return np.kron(coarse, np.ones((10, 10, 1), np.uint8)).squeeze()

    turned = Image.Exif()
    turned[0x0112] = 6
    files: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("00.jpg", Image.fromarray(picture(300, 420)), {}),
        ("01.jpg", Image.fromarray(picture(310, 200)), {"exif": turned}),
        ("02.jpg", Image.fromarray(picture(200, 300, 1)), {}),
        ("03.jpg", Image.fromarray(picture(200, 300)).convert("CMYK"), {}),
        ("04.png", Image.fromarray(picture(60, 70, 4)), {}),
        ("05.png", Image.fromarray(picture(60, 70, 1).astype(np.uint16) * 257), {}),
        ("06.png", Image.fromarray(picture(60, 70)).quantize(16), {"transparency": 3}),
        ("07.webp", Image.fromarray(picture(60, 70)), {"lossless": True}),
        ("08.jpg", Image.fromarray(picture(60, 70)), {}),
    ]
    for number, (name, image, options) in enumerate(files):
        path = root / "abc"[number % 3] / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, **options)
    (root / "c" / "08.jpg").rename(root / "c" / "08.png")  # of another format than its suffix says
    return root


def pixels(dataset: Any, **options: Any) -> Tensor:  # noqa: ANN401  # any dataset
    images = MapStyleImages(dataset, ImageProcessor(**(dict(image_size=SIZE, channels=3) | options)), "train")
    return images.batch(torch.arange(len(dataset))).images


def plain(folder: Path, **options: Any) -> ImageFolder:  # noqa: ANN401  # torchvision's
    return ImageFolder(str(folder), **options)


FOLDERS: dict[str, Any] = {
    "ImageFolder": plain,
    "DatasetFolder": lambda root: DatasetFolder(str(root), default_loader, extensions=(".jpg", ".png", ".webp")),
    "a path": lambda root: ImageFolder(root),
    "subset": lambda root: Subset(plain(root), range(9)),
    "parts": lambda root: ConcatDataset([Subset(plain(root), range(4)), Subset(plain(root), range(4, 9))]),
}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("options", [{}, dict(image_size=(48, 20)), dict(resize="stretch"), dict(channels=1)])
def test_a_folder_has_the_pixels_of_image_files(kind: str, options: dict[str, Any], folder: Path) -> None:
    assert torch.equal(pixels(FOLDERS[kind](folder), **options), pixels(ImageFiles(folder), **options))


def test_its_images_have_three_channels_as_its_loader_makes_them(folder: Path) -> None:
    images = pixels(plain(folder), channels=None)
    assert torch.equal(images, pixels(ImageFiles(folder), channels=3))


@pytest.mark.parametrize("target_transform", [None, lambda label: label + 10])
def test_labels_are_the_folders_own(target_transform: Any, folder: Path) -> None:  # noqa: ANN401  # a function
    dataset = plain(folder, target_transform=target_transform)
    processor = ImageProcessor(image_size=SIZE, channels=3)
    for data in (dataset, Subset(dataset, [8, 0, 4])):
        images = MapStyleImages(data, processor, "train", conditions=Conditions(1))
        labels = [data[index][1] for index in range(len(data))]
        assert images.batch(torch.arange(len(data))).condition.tolist() == labels
        if target_transform is None:  # the other one, a lambda, cannot be pickled
            assert pickle.loads(pickle.dumps(images)).batch([0]).condition.tolist() == labels[:1]


class Changed(ImageFolder):  # type: ignore[misc]  # torchvision has no types
    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  # as there
        image, label = super().__getitem__(index)
        return image.rotate(90), label


def test_what_does_more_than_read_files_is_left_to_do_so(folder: Path) -> None:
    def invert(image: Image.Image) -> Image.Image:
        return image.point(lambda level: 255 - level)

    for dataset in (
        plain(folder, transform=invert),
        plain(folder, loader=lambda path: invert(default_loader(path))),
        Changed(str(folder)),
        FakeData(4, transform=None),
        [1, 2, 3],
    ):
        assert without_decoding(dataset) is dataset
        for wrapped in (Subset(dataset, [0]), ConcatDataset([dataset, dataset])):  # type: ignore[type-var]
            assert without_decoding(wrapped) is wrapped
    first = ImageProcessor(image_size=SIZE)(plain(folder)[0][0])
    assert torch.equal(pixels(plain(folder, transform=invert))[0], 255 - first)


def test_jpegs_are_decoded_at_a_reduced_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 x 420 pixels, wanted at 32 x 45: a quarter of the sides is enough."""
    image, _ = without_decoding(plain(folder))[0]
    assert isinstance(image, ImageFile.ImageFile)
    ImageProcessor(image_size=SIZE)(image)
    sizes = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: sizes.append(image.size) or load(image))
    monkeypatch.setattr("ddpm_data.images._simplejpeg.decode_jpeg", lambda image, target: None)
    pixels(Subset(plain(folder), [0]))
    assert set(sizes) == {(105, 75)}


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"not an image")
    with pytest.raises(OSError, match=r"train\[0\].*0\.jpg cannot be read as an image: it is of no format"):
        pixels(plain(tmp_path))


def columns(folder: Path, kind: str) -> Any:  # noqa: ANN401  # an extra's
    datasets = pytest.importorskip("datasets")
    paths = [str(folder / name) for name in ImageFiles(folder).names]
    features = datasets.Features(
        {"image": datasets.Image(), "mask": datasets.Image(), "name": datasets.Value("string")}
    )
    images: list[Any] = list(paths)
    if kind == "bytes":
        images = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    columns = {"image": images, "mask": images, "name": paths}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("kind", ["bytes", "paths"])
def test_hugging_faces_images_have_the_pixels_of_image_files(kind: str, folder: Path) -> None:
    data = columns(folder, kind)
    expected = pixels(ImageFiles(folder))
    assert torch.equal(pixels(data, image_key="image"), expected)
    assert torch.equal(pixels(data.select([3, 1]), image_key="image"), expected[[3, 1]])
    assert torch.equal(pixels(data.rename_column("mask", "other"), image_key="other"), expected)
    processor = ImageProcessor("image", SIZE, channels=3)
    stream = IterableImages(data.to_iterable_dataset(), processor, "train", Conditions("name"))
    for (image, name, _), row, path in zip(stream.shard(SHARD), expected, data["name"], strict=True):
        assert torch.equal(image, row)
        assert name == path
    assert isinstance(data[0]["image"], Image.Image)  # as it was


@pytest.mark.parametrize("change", ["format", "transform", "mode", "undecoded", "map"])
def test_hugging_faces_own_formats_and_transforms_stay(change: str, folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = columns(folder, "bytes")
    if change == "format":
        data = data.with_format("numpy")
    if change == "transform":
        data = data.with_transform(lambda batch: {"image": [image.convert("L") for image in batch["image"]]})
    if change == "mode":
        data = data.cast_column("image", datasets.Image(mode="L")).remove_columns("mask")
    if change == "undecoded":
        data = data.remove_columns(["image", "mask"])
    if change != "map":
        assert without_decoding(data) is data
    else:
        data = data.map(lambda row: {"image": row["image"].convert("L")})
        assert torch.equal(pixels(data, image_key="image"), pixels([row["image"] for row in data]))


def test_a_missing_image_of_hugging_face_is_named(folder: Path) -> None:
    data = columns(folder, "bytes").select([0])
    empty = data.from_dict({"image": [None], "mask": [None], "name": ["x"]}, features=data.features)
    with pytest.raises(ValueError, match=r"train\[0\]: there is no image at 'image'; .*NoneType.*`dataset\.image_key`"):
        pixels(empty, image_key="image")
    broken = data.from_dict(
        {"image": [{"bytes": b"no image", "path": "a.jpg"}]}, data.features.__class__({"image": data.features["image"]})
    )
    with pytest.raises(OSError, match=r"train\[0\]: a\.jpg cannot be read as an image: it is of no format"):
        pixels(broken)


def test_two_image_columns_move_together(folder: Path) -> None:
    data = columns(folder, "bytes")
    processor = ImageProcessor("image", SIZE, channels=3)
    conditions = Conditions("mask", {"mask": {"interpolation": "bilinear", "channels": 3}}, processor)
    batch = MapStyleImages(data, processor, "train", conditions=conditions).batch(range(len(data)))
    assert torch.equal(batch.condition, batch.images)


class Curriculum(ImageFolder):
    """Two of its files in each epoch."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.all = self.samples
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.samples = self.all[2 * epoch : 2 * epoch + 2]


@pytest.mark.parametrize(
    "wrap", [lambda data: data, lambda data: Subset(data, [1, 0]), lambda data: ConcatDataset([data])]
)
def test_a_folder_that_changes_with_the_epoch_is_read_as_it_changes(folder: Path, wrap: Any) -> None:  # noqa: ANN401  # datasets
    data = wrap(Curriculum(folder))
    assert without_decoding(data) is data
    assert without_decoding(wrap(ImageFolder(folder))) is not data
