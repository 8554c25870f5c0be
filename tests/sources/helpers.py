"""Datasets in the formats of other libraries, written here, and what the processes of a run read of them."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ddpm_data import DDPMDataModule, schedules
from ddpm_data._distributed import EpochShard, World
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.iterable import IterableImages, IterableOrder
from ddpm_data.loading.loader import make_loader
from ddpm_data.loading.options import LoaderOptions
from tests.conftest import uint8_images

IMAGES = uint8_images(20, 3, 8, 6)


def module(train: Any, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset is the point
    return DDPMDataModule(train, **(dict(schedule=schedules.linear(100), batch_size=6) | options))


def served(dm: DDPMDataModule) -> list[bytes]:
    dm.setup("fit")
    return sorted(image.numpy().tobytes() for batch in dm.train_dataloader() for image in batch.images)


def rows(images: Tensor) -> list[bytes]:
    return sorted(image.contiguous().numpy().tobytes() for image in images)


def hugging_face(images: Tensor = IMAGES) -> Any:  # noqa: ANN401  # a library that may be missing
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"picture": [F.to_pil_image(image) for image in images], "label": list(range(len(images)))}
    return datasets.Dataset.from_dict(columns, features=features)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


STREAM_IMAGES = uint8_images(23, 3, 8, 6)


class Rank:
    """One process's loader of a source; ``epoch`` holds the one it is in."""

    def __init__(self, source: Any, share: EpochShard, workers: int) -> None:  # noqa: ANN401  # any source is the point
        self.epoch = epoch = [share.epoch]
        images, world = IterableImages(source, ImageProcessor(), "train"), World(share.world_size, share.rank)
        order = IterableOrder(lambda: epoch[0])
        self.loader = make_loader(images, "train", order, LoaderOptions(4, workers), world, 0)

    def read(self) -> list[bytes]:
        return [image.numpy().tobytes() for batch in self.loader for image in batch.images]


def read(source: Any, world_size: int = 1, workers: int = 0, epoch: int = 0) -> list[list[bytes]]:  # noqa: ANN401
    """What each process reads in an epoch."""
    return [Rank(source, EpochShard(epoch, world_size, rank), workers).read() for rank in range(world_size)]


def together(ranks: list[list[bytes]]) -> list[bytes]:
    return sorted(image for rank in ranks for image in rank)


LAYOUTS = [(1, 0), (1, 2), (2, 0), (2, 2), (3, 1)]  # processes, workers


def tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return str(path)


def png(image: Tensor) -> bytes:
    content = io.BytesIO()
    F.to_pil_image(image).save(content, "PNG")
    return content.getvalue()


def litdata_chunks(folder: Path, images: Tensor) -> Path:
    pytest.importorskip("litdata")
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=4)
    for n, image in enumerate(images):
        writer[n] = {"image": image.permute(1, 2, 0).numpy(), "label": n}
    writer.done()
    writer.merge(1)
    return folder


def mosaic_shards(folder: Path, images: Tensor) -> Path:
    streaming = pytest.importorskip("streaming")
    with streaming.MDSWriter(out=str(folder), columns={"image": "png", "label": "int"}, size_limit=512) as writer:
        for n, image in enumerate(images):
            writer.write({"image": F.to_pil_image(image), "label": n})
    return folder


def mosaic(folder: Path) -> Any:  # noqa: ANN401  # a library that may be missing
    """MosaicML's dataset; the memory that an earlier one of this process has left is cleaned up first."""
    streaming = pytest.importorskip("streaming")
    streaming.base.util.clean_stale_shared_memory()
    options = dict(batch_size=4, shuffle=True, shuffle_seed=3, num_canonical_nodes=1)
    return streaming.StreamingDataset(local=str(folder), **options)
