"""What only Linux has: its absence is simulated, and everything works all the same or ends in an error that says so."""

import csv
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.cli.verify import _environment
from ddpm_data.diffusion.timestep_bins import BinLoss, read_losses, write_losses
from ddpm_data.sources import ImageFiles, TarShards
from ddpm_data.sources.image_files import _sort_names
from tests.conftest import ROOT, Recorder, trainer, uint8_images
from tests.groups import PATIENCE
from tests.spawn_job import digest
from tests.warm import python

NESTED = ("a/1.png", "a-b/1.png", "a1/1.png", "B/2.png", "a/10.png", "a_b/3.png", "10/1.png", "9/1.png")


def test_nested_files_have_one_order_on_every_system(tmp_path: Path) -> None:
    """The order decides which image a position names."""
    for name in NESTED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    names = ImageFiles(tmp_path).names
    assert set(names) == set(NESTED)
    assert _sort_names(NESTED) == names


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
    with pytest.raises(OSError, match=r"No space left on device; 3.97e-06 GB are needed.*`cache_dir`"):
        cached(tmp_path).prepare_data()
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


# As a Windows of another language: neither files nor the console can hold these names unless their encoding is said.
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets an environment choose the encoding")
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
APP = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    raise ValueError("Gr\u00f6\u00dfe \u65e5\u672c")

main()
"""


def run_in_ascii(folder: Path, *arguments: str | Path) -> tuple[int, str]:
    """A Python command's status and what it printed, where the system's encoding is ASCII."""
    environment = os.environ | ASCII | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return result.returncode, result.stdout.decode("ascii")


@pytest.mark.slow
@only_linux
def test_that_encoding_is_ascii(tmp_path: Path) -> None:
    assert run_in_ascii(tmp_path, "-c", "import locale; print(locale.getencoding())") == (0, "ANSI_X3.4-1968\n")


@pytest.mark.slow
@only_linux
def test_the_comparison_keeps_names_that_the_console_cannot_show(tmp_path: Path) -> None:
    overrides = ["dataset.root=b\u00fccher/\u65e5\u672c"]
    (tmp_path / "0").mkdir()
    record = {"overrides": overrides, "status": "failed", "error": "ValueError: Gr\u00f6\u00dfe"}
    (tmp_path / "0" / "job.json").write_text(json.dumps(record), encoding="utf-8")
    status, printed = run_in_ascii(tmp_path, "-m", "ddpm_data.compare", tmp_path)
    assert status == 1  # a job has failed
    assert f"wrote {tmp_path / 'compare.csv'}" in printed
    assert r"b\xfccher/\u65e5\u672c" in printed
    assert overrides[0] in (tmp_path / "compare.md").read_text(encoding="utf-8")
    with (tmp_path / "compare.csv").open(encoding="utf-8", newline="") as file:
        assert "Gr\u00f6\u00dfe" in next(csv.DictReader(file))["ended"]


@pytest.mark.slow
@only_linux
def test_a_sweep_goes_on_after_an_error_that_the_console_cannot_show(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    jobs = "+hydra.callbacks.jobs._target_=ddpm_data.hydra.JobRecords"
    status, printed = run_in_ascii(tmp_path, "app.py", "-m", "+number=1,2", jobs, "hydra.sweep.dir=runs")
    assert status == 1
    assert "2 of 2 jobs failed:" in printed, printed
    for number in "01":
        assert "Gr\u00f6\u00dfe \u65e5\u672c" in (tmp_path / "runs" / number / "error.txt").read_text(encoding="utf-8")


def test_tar_shards_are_found_by_paths_with_backslashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    for number in range(2):
        tarfile.open(f"shards/{number}.tar", "w").close()
    monkeypatch.setattr(os, "sep", "\\")
    assert TarShards("shards\\{0..1}.tar").shards == ["shards/0.tar", "shards/1.tar"]  # and both are there
    with pytest.raises(FileNotFoundError, match=r"shards/2\.tar"):
        TarShards("shards\\2.tar")
    with pytest.raises(ValueError, match=r"the drive of c:/shards/0\.tar for a protocol.*`shards`"):
        TarShards("c:\\shards\\{0..1}.tar")


def in_use(source: Path, target: Path) -> None:
    raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))


def test_a_table_that_is_open_elsewhere_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (BinLoss(epoch, 10 * epoch, 0, 9, 0.0, 0.5, 20) for epoch in range(2))
    path = tmp_path / "timestep_loss.csv"
    write_losses([first], path)
    with monkeypatch.context() as windows:
        windows.setattr(os, "replace", in_use)
        with pytest.warns(UserWarning, match=r"timestep_loss\.csv cannot be replaced.*in .*timestep_loss\.csv\.part"):
            write_losses([first, second], path)
    assert read_losses(path) == [first]
    assert read_losses(path.with_suffix(".csv.part")) == [first, second]
    write_losses([first, second], path)
    assert read_losses(path) == [first, second]
    assert [file.name for file in tmp_path.iterdir()] == ["timestep_loss.csv"]


@pytest.mark.slow
def test_one_stream_where_processes_can_only_be_spawned(tmp_path: Path) -> None:
    """Training without a cache and with one, and the check command, as macOS and Windows would run them."""
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(uint8_images(12, 10, 9, 3)):
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / f"{number}.png")
    command = [python(), "-m", "tests.spawn_job", str(tmp_path / "images"), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith(("cores", "triples", "status"))]
    here = digest(str(tmp_path / "images"), str(tmp_path), workers=0, cache=None)
    assert lines == [f"cores {os.cpu_count()}", f"triples {here}", f"triples {here}", "status 0"]


def test_a_way_to_start_workers_that_the_system_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(
        ValueError, match=r"'fork'\): on this system workers start by spawn\. Change `multiprocessing_context`"
    ):
        DDPMDataModule(
            uint8_images(4, 3, 8, 8),
            schedule=schedules.linear(10),
            num_workers=1,
            multiprocessing_context="fork",
        )


class Stuck:
    """Three images; a worker that is asked for the last one hangs."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        if index == 2 and get_worker_info():
            time.sleep(PATIENCE)
        return uint8_images(1, 3, 8, 8)[0]


@pytest.mark.slow
def test_shared_memory_is_spoken_of_only_where_it_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("map_style", "worker"):
        monkeypatch.setattr(f"ddpm_data.loading.{module}.SHARED_MEMORY", tmp_path / "no such folder")
    datamodule = DDPMDataModule(Stuck(), schedule=schedules.linear(10), num_workers=1, timeout=1)
    with pytest.raises(RuntimeError, match=r"Check the memory and the dataset"):
        trainer(tmp_path).fit(Recorder(), datamodule=datamodule)


def test_torchrun_is_not_asked_for_libuv_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's issue 139990; what the user has set stays."""
    monkeypatch.delenv("USE_LIBUV", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert "USE_LIBUV" not in _environment()
    monkeypatch.setattr(sys, "platform", "win32")
    assert _environment()["USE_LIBUV"] == "0"
    monkeypatch.setenv("USE_LIBUV", "1")
    assert _environment()["USE_LIBUV"] == "1"
