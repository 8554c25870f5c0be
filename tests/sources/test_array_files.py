"""Arrays in .npy and .npz files: served by whole batches, and nothing in them is run."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ArrayFile
from tests.sources.helpers import IMAGES, Evil, module, rows, served
from tests.test_configs import composed

CHW = IMAGES.numpy()


HWC = np.ascontiguousarray(CHW.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("array", [CHW, HWC, CHW[:, 0], np.asfortranarray(HWC)], ids=["CHW", "HWC", "HW", "Fortran"])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_an_array_in_a_file_is_served_by_whole_batches(array: Any, ending: str, tmp_path: Path) -> None:  # noqa: ANN401
    path = tmp_path / f"images.{ending}"
    if ending == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, array)
    data = ArrayFile(path)
    assert isinstance(data.array, np.memmap) == (ending == "npy")
    images = MapStyleImages(data, ImageProcessor(), "train")
    assert images.inspect().is_stored
    assert served(module(data)) == rows(IMAGES[:, :1] if array.ndim == 3 else IMAGES)
    assert len(pickle.dumps(data)) < 1000  # a worker that is not forked maps the file itself
    assert np.array_equal(pickle.loads(pickle.dumps(data)).array, array)


class Inverted(ArrayFile):
    def __init__(self, path: Path, top: int) -> None:
        super().__init__(path)
        self.top = top

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  # an array
        return self.top - super().__getitem__(index)


def test_a_class_of_your_own_and_a_part_of_the_array_travel_as_they_are(tmp_path: Path) -> None:
    """Workers that are not forked were sent the path alone."""
    np.save(tmp_path / "a.npy", CHW)
    whole = Inverted(tmp_path / "a.npy", 255)
    for data in (pickle.loads(pickle.dumps(whole)), copy.copy(whole)):
        assert type(data) is Inverted
        assert isinstance(data.array, np.memmap)
        assert np.array_equal(data[3], 255 - CHW[3])
    part = ArrayFile(tmp_path / "a.npy")
    part.array = part.array[4:]
    assert np.array_equal(pickle.loads(pickle.dumps(part)).array, CHW[4:])


def test_arrays_by_config_and_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", images=CHW / np.float32(255), labels=np.arange(20))
    at = ["dataset=arrays", f"dataset.path={tmp_path / 'two.npz'}", "dataset.value_range=[0,1]"]
    dm = instantiate(composed(*at, "dataset.key=images", "dataset.val=null").datamodule)
    assert served(dm) == rows(IMAGES)


def test_files_that_are_no_arrays_of_images_are_refused(tmp_path: Path) -> None:
    evil, objects = tmp_path / "run", np.array([Evil(tmp_path / "run")] * 3, dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", objects)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Evil(evil)))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.npy").touch()
    for name in ("objects.npy", "objects.npz", "pickle.npy", "cut.npz", "empty.npy"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read.*never loaded.*`path`"):
            ArrayFile(tmp_path / name)
    assert not evil.exists()
    np.load(tmp_path / "pickle.npy", allow_pickle=True)
    assert evil.exists()  # the payload works
    np.savez(tmp_path / "two.npz", a=CHW, b=HWC)
    np.save(tmp_path / "flat.npy", np.zeros(5))
    for name, key, says in (
        ("two.npz", None, r"key=None.*the arrays a, b\. Say which: `key`"),
        ("two.npz", "c", r"key='c'.*the arrays a, b\. Say which"),
        ("flat.npy", "a", r"key='a'.*one array without a name"),
        ("flat.npy", None, r"float64 of shape \(5,\).*`path`"),
    ):
        with pytest.raises(ValueError, match=says):
            ArrayFile(tmp_path / name, key)
    with pytest.raises(FileNotFoundError, match=r"`path`"):
        ArrayFile(tmp_path / "none.npy")
