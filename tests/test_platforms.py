"""What only Linux has: its absence is simulated, and everything works all the same or ends in an error that says so."""

import errno
import os
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
import torch
from PIL import Image

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.sources import ImageFiles
from ddpm_data.sources.image_files import _sorted_names

NESTED = ("a/1.png", "a-b/1.png", "a1/1.png", "B/2.png", "a/10.png", "a_b/3.png", "10/1.png", "9/1.png")


def test_nested_files_have_one_order_on_every_system(tmp_path: Path) -> None:
    """The order decides which image a position names."""
    for name in NESTED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    names = ImageFiles(tmp_path).names
    assert set(names) == set(NESTED)
    assert _sorted_names(map(PureWindowsPath, NESTED)) == names
    assert _sorted_names(map(PurePosixPath, NESTED)) == names


def cached(folder: Path) -> DDPMDataModule:
    """A DataModule whose images are decoded into a cache in this folder: 20 of 3 x 8 x 8 bytes."""
    items = [torch.full((3, 8, 8), index, dtype=torch.uint8) for index in range(20)]
    return DDPMDataModule(items, schedule=schedules.linear(10), cache_dir=folder, num_workers=1)


def unsupported(descriptor: int, offset: int, size: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture(params=["no such call", "a file system without it"])
def no_fallocate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk space cannot be reserved: by macOS and Windows, or by a file system."""
    if request.param == "no such call":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)


@pytest.mark.usefixtures("no_fallocate")
def test_a_cache_is_made_where_disk_space_cannot_be_reserved(tmp_path: Path) -> None:
    module = cached(tmp_path)
    module.prepare_data()
    module.setup("fit")
    images = module.splits.images("train").batch(torch.arange(20)).images  # type: ignore[union-attr]  # map-style
    assert images[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.usefixtures("no_fallocate")
def test_a_full_disk_is_said_before_the_work_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(path)._replace(free=1000) if path == tmp_path else usage(path)
    )
    with pytest.raises(OSError, match=r"No space left on device; 3.97e-06 GB are needed.*`loader.cache_dir`"):
        cached(tmp_path).prepare_data()
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
