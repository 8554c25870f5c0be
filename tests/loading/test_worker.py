"""With workers, nothing of a dataset's runs in the parent: what it opens with its first item is never inherited."""

import os
import re
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.callbacks import NoisingStrip
from ddpm_data.cli.check import main as check
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.loading.worker import (
    _FINALIZERS,
    _SECONDS_AFTER_SIGTERM,
    _end_all_workers,
    call_in_worker,
    end_with_process,
)
from tests.conftest import ROOT, Recorder, trainer
from tests.groups import PATIENCE, finished
from tests.warm import python

COUNT, SIDE = 300, 8


class Records(torch.utils.data.Dataset[dict[str, Any]]):
    """Images in one file, which is opened with the first item and read by seeking, as many datasets are.

    Each item's process is noted in a file of its own. An opened file cannot be pickled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: BinaryIO | None = None

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        (self.folder / "pids").mkdir(exist_ok=True)
        (self.folder / "pids" / str(os.getpid())).touch()
        if self.file is None:
            self.file = (self.folder / "images.bin").open("rb", buffering=0)
        self.file.seek(index * SIDE * SIDE)
        image = np.frombuffer(self.file.read(SIDE * SIDE), dtype=np.uint8).reshape(SIDE, SIDE)
        return {"image": image, "label": index}


def records() -> Records:
    """For the check command, which reads its folder from the environment."""
    return Records(Path(os.environ["RECORDS"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file whose image ``index`` has the value ``index % 251`` in every pixel."""
    values = np.repeat((np.arange(COUNT) % 251).astype(np.uint8), SIDE * SIDE)
    (tmp_path / "images.bin").write_bytes(values.tobytes())
    return tmp_path


def readers(folder: Path) -> set[int]:
    """The processes that have called ``__getitem__``."""
    return {int(path.name) for path in (folder / "pids").iterdir()}


def module(folder: Path, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any option
    data = Records(folder)
    base = dict(image_key="image", condition="label", schedule=schedules.linear(10), batch_size=32, num_workers=2)
    return DDPMDataModule(data, **(base | options))  # type: ignore[arg-type]  # any option


def looks_at_setup(folder: Path) -> None:
    module(folder, val=0.2).setup("fit")


def looks_for_dropout(folder: Path) -> None:
    module(folder, condition_dropout=0.5, null_condition=-1).setup("fit")


def looks_for_the_cache(folder: Path) -> None:
    dm = module(folder, cache_dir=folder / "cache", num_workers=0)
    dm.prepare_data()
    dm.setup("fit")


def looks_of_a_fit(folder: Path) -> None:
    strip = NoisingStrip(folder=folder)
    model = Conditioned()
    trainer(folder, callbacks=[strip], max_epochs=1).fit(model, datamodule=module(folder, val=0.2))
    assert (folder / "noising.png").exists()
    assert len(model.labels) == COUNT * 4 // 5


class Conditioned(Recorder):
    """Keeps nothing but the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: set[int] = set()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # a ConditionedTriple
        self.labels |= set(batch.condition.tolist())
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401  # a ConditionedTriple
        return


@pytest.mark.slow
@pytest.mark.parametrize("look", [looks_at_setup, looks_for_dropout, looks_for_the_cache, looks_of_a_fit])
def test_no_look_runs_in_the_parent(look: Callable[[Path], None], folder: Path) -> None:
    look(folder)
    assert readers(folder)
    assert os.getpid() not in readers(folder)


@pytest.mark.slow
def test_the_check_command_looks_in_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECORDS", str(folder))
    source = "+dataset.train={_target_:tests.loading.test_worker.records}"
    words = ["dataset=base", source, "dataset.image_key=image", "dataset.channels=1", "dataset.val=0.5"]
    assert check(["--num-workers", "2", "--output-dir", str(folder / "check"), *words]) == 0
    assert os.getpid() not in readers(folder)


def test_without_workers_the_parent_is_the_worker(folder: Path) -> None:
    module(folder, num_workers=0).setup("fit")
    assert readers(folder) == {os.getpid()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("cached", [False, True])
def test_workers_read_what_is_in_the_file(cached: bool, folder: Path) -> None:
    """A file offset shared by forked workers gave wrong images, without a word."""
    options = {"cache_dir": folder / "cache"} if cached else {}
    for epoch in range(2):
        dm = module(folder, num_workers=4, batch_size=4, **options)
        dm.prepare_data()
        dm.setup("fit")
        loader = dm.train_dataloader()
        loader.set_epoch(epoch)
        read = 0
        for batch in loader:
            expected = (batch.meta.condition % 251).to(torch.uint8)
            assert torch.equal(batch.images, expected[:, None, None, None].expand(-1, 1, SIDE, SIDE))
            read += len(batch.images)
        assert read == COUNT


@pytest.mark.slow
def test_spawned_workers_are_sent_a_dataset_that_has_opened_nothing(folder: Path) -> None:
    """An opened file cannot be pickled."""
    script = folder / "run.py"
    script.write_text(
        f"""
from pathlib import Path
from tests.loading.test_worker import module

if __name__ == "__main__":
    dm = module(Path({str(folder)!r}), num_workers=1, multiprocessing_context="spawn")
    dm.setup("fit")
    print(sum(len(batch.images) for batch in dm.train_dataloader()))
"""
    )
    code, output = finished([python(), str(script)], ROOT, timeout=PATIENCE)
    assert (code, output.split()[-1]) == (0, str(COUNT)), output


class Deep(IterableDataset[Any]):
    """Images of 12 bits in 16."""

    def __iter__(self) -> Iterator[Any]:
        yield from [Image.fromarray(np.full((8, 8), 4095, np.uint16))] * 4


@pytest.mark.slow
@pytest.mark.parametrize("names", [None, {"dataset": "my.data"}], ids=["Python", "an app"])
def test_spawned_workers_name_keys_as_the_main_process_does(names: dict[str, str] | None, tmp_path: Path) -> None:
    """The warning arises in the worker, so it is printed there."""
    script = tmp_path / "run.py"
    script.write_text(
        f"""
from ddpm_data import DDPMDataModule, schedules
from tests.loading.test_worker import Deep

if __name__ == "__main__":
    options = dict(schedule=schedules.linear(10), batch_size=4, num_workers=1, multiprocessing_context="spawn")
    dm = DDPMDataModule(Deep(), image_size=8, **options)
    dm.key_names = {names!r}
    dm.setup("fit")
    assert sum(len(batch.images) for batch in dm.train_dataloader()) == 4
"""
    )
    code, output = finished([python(), str(script)], ROOT, timeout=PATIENCE)
    assert code == 0, output
    found = re.findall(r"set `(\S*value_range)` to", output)
    assert set(found) == {"value_range" if names is None else "my.data.value_range"}, output


def leave_workers_at_work(folder: Path) -> None:
    """Iterate over one loader to the end, and begin with another, in a loop of our own. Both keep their workers."""
    kept = []
    for persistent in (True, False):
        dm = module(folder, num_workers=2, batch_size=16, persistent_workers=persistent)
        dm.setup("fit")
        kept += [loader := dm.train_dataloader(), batches := iter(loader)]
        next(batches)
        if persistent:
            assert len(list(batches)) == COUNT // 16
    KEPT.append(kept)
    print(time.time())


KEPT: list[Any] = []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no worker outlasts a signal there")
@pytest.mark.parametrize("where", ["script", "process"])
def test_a_process_that_leaves_workers_at_work_ends_at_once(where: str, folder: Path) -> None:
    """Python ends them by SIGTERM, which they outlast for half a minute."""
    calls = {
        "script": "leave_workers_at_work(folder)",
        "process": "process = Process(target=leave_workers_at_work, args=(folder,)); process.start(); process.join()",
    }
    code = f"""
from multiprocessing import Process
from pathlib import Path
from tests.loading.test_worker import leave_workers_at_work
folder = Path({str(folder)!r})
{calls[where]}
"""
    status, output = finished([python(), "-c", code], ROOT, timeout=PATIENCE)
    *_, printed = output.split()
    assert (status, len(output.split())) == (0, 1), output
    assert time.time() - float(printed) < _SECONDS_AFTER_SIGTERM - 5


def test_a_loader_that_keeps_its_workers_is_ended_once_whatever_its_epochs(folder: Path) -> None:
    dm = module(folder, batch_size=100)
    dm.setup("fit")
    loader, before = dm.train_dataloader(), len(_FINALIZERS)
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert len(list(loader)) == 3
        assert len(_FINALIZERS) == before + 1


def test_an_iterator_that_cannot_be_ended_does_not_keep_the_others_alive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Batches:
        ended = False

        def _shutdown_workers(self) -> None:
            self.ended = True
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("ddpm_data.loading.worker._FINALIZERS", weakref.WeakKeyDictionary())
    both = Batches(), Batches()
    for batches in both:
        end_with_process(batches)
    _end_all_workers()
    assert [batches.ended for batches in both] == [True, True]
    assert capsys.readouterr().err.count("RuntimeError: can't start new thread") == 2


class Picky(Records):
    """Its first item is no image."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) if index else {"image": "no image", "label": 0}


def test_an_error_in_the_worker_names_the_item_and_keeps_its_cause(folder: Path) -> None:
    dm = DDPMDataModule(Picky(folder), image_key="image", schedule=schedules.linear(10), num_workers=1)
    with pytest.raises(ValueError, match=r"^train\[0\]: there is no image at 'image'") as raised:
        dm.setup("fit")
    assert "find_image" in raised.value.__notes__[0]


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module(folder).setup("fit")
    assert torch.equal(torch.get_rng_state(), before)


def test_warnings_and_values_come_back() -> None:
    options = LoaderOptions(1, num_workers=1)
    with pytest.warns(UserWarning, match="seen in the worker"):
        value = call_in_worker(options, "train", warn_and_return, torch.arange(3))
    assert torch.equal(value[0], torch.arange(3))
    assert value[1] != os.getpid()


class OddWarning(DeprecationWarning):
    """As scikit-learn's InconsistentVersionWarning: it cannot be made of its message."""

    def __init__(self, *, name: str) -> None:
        super().__init__(f"{name} is old")


def warn_oddly() -> int:
    class LocalWarning(RuntimeWarning):
        """Cannot be pickled."""

    warnings.warn(OddWarning(name="a scaler"), stacklevel=2)
    warnings.warn("by itself", LocalWarning, stacklevel=2)
    return 7


def test_warnings_of_a_class_that_does_not_travel_come_back_too() -> None:
    with (
        pytest.warns(DeprecationWarning, match="OddWarning: a scaler is old"),
        pytest.warns(RuntimeWarning, match="LocalWarning: by itself"),
    ):
        assert call_in_worker(LoaderOptions(1, num_workers=1, timeout=60), "train", warn_oddly) == 7


def warn_and_return(tensor: Tensor) -> tuple[Tensor, int]:
    warnings.warn("seen in the worker", stacklevel=2)
    return tensor, os.getpid()
