"""What workers hand batches over in: conditions count too, and where it is full the message says so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.loading import map_style
from tests.conftest import ROOT, uint8_images
from tests.groups import finished
from tests.warm import python

PIXELS = uint8_images(40, 3, 8, 8)
EMBEDDING = 2**18 * 4  # bytes
JOB = """
import sys
import torch
from torch.utils.data import IterableDataset
from ddpm_data import DDPMDataModule, schedules

class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2**18)) for _ in range(40))

class Items(list):
    pass

class Pictures(IterableDataset):
    def __iter__(self):
        return (torch.zeros(3, 1024, 1024, dtype=torch.uint8) for _ in range(40))

for train, condition in ((Items(Stream()), 1), (Stream(), 1), (Pictures(), None)):
    try:
        options = dict(image_key=0, condition=1) if condition else {}
        options |= dict(num_workers=1, compile=False)
        dm = DDPMDataModule(train, schedule=schedules.linear(10), batch_size=16, **options)
        dm.setup("fit")
        for _ in dm.train_dataloader():
            pass
    except Exception as error:
        print("SAID", str(error).splitlines()[-1] or str(error).splitlines()[-2])
"""
CELL = """
import torch
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from ddpm_data import DDPMDataModule, schedules

class Cell(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(8, 3, 8, 8, dtype=torch.uint8))

for train in (Cell(), Subset(Cell(), [0, 1]), Stream(), TensorDataset(torch.zeros(8, 3, 8, 8, dtype=torch.uint8))):
    try:
        dm = DDPMDataModule(train, schedule=schedules.linear(10), num_workers=1, multiprocessing_context=METHOD)
        dm.setup("fit")
        print("SAID", sum(len(batch.images) for batch in dm.train_dataloader()))
    except ValueError as error:
        print("SAID", error)
"""


def said(printed: str) -> list[str]:
    return [line.removeprefix("SAID ") for line in printed.splitlines() if line.startswith("SAID ")]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="only Linux says how much there is")
def test_the_estimate_counts_conditions(cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = list(zip(PIXELS, torch.zeros(40, EMBEDDING // 4), ["text"] * 40, strict=True))
    folder = tmp_path if cached else None
    dm = DDPMDataModule(
        data, schedule=schedules.linear(10), batch_size=16, num_workers=2, image_key=0, condition=1, cache_dir=folder
    )
    dm.setup("fit")
    needed = 2 * 2 * 16 * (3 * 8 * 8 + EMBEDDING)
    usage = map_style.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(map_style.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    dm.train_dataloader()
    monkeypatch.setattr(map_style.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match=r"need 67\.1 MB of shared memory"):
        dm.train_dataloader()


@pytest.mark.slow
def test_a_full_shared_memory_is_not_blamed_on_the_conditions(tmp_path: Path) -> None:
    """8 MB of it, in a name space of its own."""
    (tmp_path / "job.py").write_text(JOB)
    mount = "mount -t tmpfs -o size=8M tmpfs /dev/shm"
    if not Path("/dev/shm").is_dir() or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("needs a name space of its own")
    command = f"{mount} && {sys.executable} {tmp_path / 'job.py'}"
    _, printed = finished(["unshare", "-m", "sh", "-c", command], ROOT, 200)
    estimate, *found = said(printed)
    assert "33.6 MB of shared memory" in estimate
    assert len(found) == 2
    assert all("does not fit into shared memory" in line and "`batch_size`" in line for line in found), printed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn"])  # forkserver imports the class in the same way
def test_a_class_of_a_notebooks_cell_is_named(method: str, tmp_path: Path) -> None:
    """The worker ended at once, and memory was blamed."""
    code, printed = finished([python(), "-c", CELL.replace("METHOD", repr(method))], ROOT, 300)
    assert code == 0, printed[-3000:]
    item, part, stream, tensors = said(printed)
    for name, message in (("Cell", item), ("Cell", part), ("Stream", stream)):
        assert f"cannot import {name}, defined in a notebook's cell" in message
        assert "`num_workers`" in message
    assert tensors == "8"
    (tmp_path / "job.sh").write_text(f"{python()} < {tmp_path / 'job.py'}")
    (tmp_path / "job.py").write_text(CELL.replace("METHOD", repr(method)))
    _, printed = finished(["sh", str(tmp_path / "job.sh")], ROOT, 300)
    assert all("cannot import the main module's file <stdin>" in line for line in said(printed))
    assert len(said(printed)) == 4
