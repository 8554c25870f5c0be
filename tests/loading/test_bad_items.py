"""Items that cannot be used: named, or replaced and counted; workers that die or hang; ranks that fail alone."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.bad_items import BadItem, BadItemCounter
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles
from ddpm_data.sources._paths import path_of
from tests.conftest import ROOT, Recorder, trainer
from tests.groups import PATIENCE, started
from tests.warm import python

BROKEN = (3, 4, 17, 39)


class Custom(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


class Faulty(Dataset[Any]):
    """Forty items by their number, some of which cannot be had."""

    def __init__(self, broken: tuple[int, ...] = BROKEN, error: Callable[[int], Any] | None = None) -> None:
        self.broken = broken
        self.error = error

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  # an image, or not
        if index in self.broken:
            if self.error is None:
                return "no image", index
            raise self.error(index)
        return torch.full((3, 4, 4), index * 6, dtype=torch.uint8), index


def module(train: Any, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset and option
    return DDPMDataModule(train, **(dict(schedule=schedules.constant(2, 1e-7), batch_size=8) | options))


def shown(model: Recorder, stage: str = "train") -> list[int]:
    return [round(float(level)) for level in (model.all(stage).x_t[:, 0, 0, 0] + 1) * 127.5 / 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (None, TypeError, "the item holds no image"),
        (KeyError, RuntimeError, "KeyError: 3"),
        (IndexError, RuntimeError, "IndexError: 3"),
        (StopIteration, RuntimeError, "StopIteration: 3"),
        (PermissionError, OSError, "3"),
        (lambda i: UnicodeDecodeError("utf8", b"x", 0, 1, "bad"), ValueError, "utf8"),
        (lambda i: Custom(i, "is gone"), RuntimeError, "Custom: 3 is gone"),
        (lambda i: Image.DecompressionBombError("too large"), RuntimeError, "DecompressionBombError: too large"),
    ],
    ids=["no image", "key", "index", "stop", "permission", "unicode", "own", "bomb"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_its_item_out_of_any_worker(
    error: Callable[[int], Any] | None, kind: type[Exception], says: str, workers: int
) -> None:
    images = MapStyleImages(Faulty(error=error), ImageProcessor(), "train")
    with pytest.raises(kind, match=rf"train\[3\]: .*{says}"):
        images.batch([0, 3])
    dataset = Faulty((), error=error)
    data = module(dataset, num_workers=workers)
    data.setup("fit")
    dataset.broken = (39,)
    with pytest.raises(kind, match=rf"train\[39\]: .*{says.replace('3', '39')}"):
        list(data.train_dataloader())


def test_out_of_memory_is_no_bad_item() -> None:
    images = MapStyleImages(Faulty(error=lambda i: MemoryError("no more")), ImageProcessor(), "train", replaces=True)
    with pytest.raises(MemoryError, match="no more"):
        images.batch([3])


def test_a_path_is_named_where_there_is_one(folder: Path) -> None:
    files = ImageFiles(folder)
    labelled = ImageFolder(folder, allow_empty=True)
    assert path_of(files, 2) == str(folder / "10.png")
    assert path_of(Subset(files, [4, 2]), 1) == str(folder / "10.png")
    assert path_of(ConcatDataset([labelled, files]), len(labelled) + 2) == str(folder / "10.png")
    assert path_of(ConcatDataset([labelled, files]), 1) == labelled.samples[1][0]
    assert path_of(Subset(ConcatDataset([labelled, files]), [-1]), 0) == path_of(files, len(files) - 1)
    assert path_of([1, 2], 0) is None
    path = labelled.samples[0][0]
    Path(path).write_bytes(b"<html>not found</html>")
    hint = r": .*\. Repair or remove it, or set `loader.on_bad_item` to replace"
    with pytest.raises(OSError, match=rf"train\[0\]: {path} cannot be read as an image{hint}"):
        MapStyleImages(labelled, ImageProcessor(), "train").batch([0])

    class Remote(list[int]):
        def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  # a list's
            raise ConnectionError("the server went away")

    with pytest.raises(OSError, match=r"^train\[0\]: the server went away$"):  # no image of it needs to be repaired
        MapStyleImages(Remote([1]), ImageProcessor(), "train").batch([0])


@pytest.mark.filterwarnings("ignore:replaced by a neighbour:UserWarning")
@pytest.mark.parametrize("way", ["here", "workers", "cached", "in one call"])
def test_a_neighbour_takes_a_bad_items_place(way: str, tmp_path: Path) -> None:
    """The stream is the good set's, but for those places: the next good item, whatever loads it."""
    options: dict[str, Any] = {"workers": dict(num_workers=2), "cached": dict(cache_dir=tmp_path / "cache")}.get(
        way, {}
    )
    dataset: Any = Subset(Faulty(), range(40)) if way == "in one call" else Faulty()  # a Subset has __getitems__
    replaced, good = Recorder(), Recorder()
    for _ in range(2 if way == "cached" else 1):  # made, then found
        replaced = Recorder()
        data = module(dataset, on_bad_item="replace", max_bad_fraction=0.1, **options)
        trainer(tmp_path, max_epochs=2).fit(replaced, datamodule=data)
    trainer(tmp_path, max_epochs=2).fit(good, datamodule=module(Faulty(())))
    instead = {3: 5, 4: 5, 17: 18, 39: 0}
    assert shown(replaced) == [instead.get(number, number) for number in shown(good)]
    assert torch.equal(replaced.all("train").noise, good.all("train").noise)
    assert torch.equal(replaced.all("train").t, good.all("train").t)


def test_replaced_items_are_named_counted_and_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = CSVLogger(tmp_path)
    data = module(Faulty(), on_bad_item="replace", max_bad_fraction=0.1, condition=1)

    class Model(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401  # a conditioned triple
            assert torch.equal(((batch.x_t[:, 0, 0, 0] + 1) * 127.5 / 6).round().long(), batch.condition)
            return self.weight.sum()

    with pytest.warns(UserWarning, match=r"replaced by a neighbour: train\[") as warned:
        trainer(tmp_path, logger=logger, max_epochs=2, log_every_n_steps=1).fit(Model(), datamodule=data)
    named = [str(warning.message) for warning in warned if "replaced" in str(warning.message)]
    assert len(named) == 2 * 3
    assert all("the item holds no image" in text for text in named)
    assert capfd.readouterr().err.count("train: 4 of 40 images were bad and replaced") == 2
    assert "train_bad_items" in (Path(logger.log_dir) / "metrics.csv").read_text()


@pytest.mark.filterwarnings("ignore:replaced by a neighbour:UserWarning")
@pytest.mark.parametrize("options", [{}, dict(num_workers=2), dict(cache_dir="cache")], ids=str)
def test_too_many_stop_the_run(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = r"\d of the first \d+ train images cannot be used.*max_bad_fraction=0.05 of 40.*`max_bad_fraction`"
    data = module(Faulty(), on_bad_item="replace", max_bad_fraction=0.05, **options)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(Recorder(), datamodule=data)
    assert not list(tmp_path.glob("cache/*.npy"))


@pytest.mark.filterwarnings("ignore:replaced by a neighbour:UserWarning")
def test_a_part_is_mended_from_within(tmp_path: Path) -> None:
    """Nothing held out for validation is trained on in a bad item's place."""
    model = Recorder()
    data = module(Faulty(), val=0.4, on_bad_item="replace", max_bad_fraction=1)
    trainer(tmp_path).fit(model, datamodule=data)
    train, val = set(shown(model)), set(shown(model, "val"))
    assert not train & val
    assert not (train | val) & set(BROKEN)
    assert len(shown(model)) == 24
    assert len(shown(model, "val")) == 16


def test_nothing_good_is_an_error_and_not_a_search() -> None:
    data = module(Faulty(tuple(range(40))), on_bad_item="replace", max_bad_fraction=1)
    with pytest.raises(TypeError, match="the item holds no image"):
        data.setup("fit")


class Stream(IterableDataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@pytest.mark.filterwarnings("ignore:replaced by a neighbour:UserWarning")
def test_a_streams_bad_items_become_the_good_one_before(tmp_path: Path) -> None:
    items = [torch.full((3, 4, 4), n * 6, dtype=torch.uint8) for n in range(40)]
    for number in (0, 1, 7, 39):
        items[number] = torch.zeros(5)  # no image
    model = Recorder()
    data = module(Stream(items), on_bad_item="replace", max_bad_fraction=0.5)
    trainer(tmp_path).fit(model, datamodule=data)
    assert shown(model) == [2, 2, *range(2, 7), 6, *range(8, 39), 38]
    with pytest.raises(TypeError, match=r"train, item 0: .*an item is a Tensor"):
        trainer(tmp_path).fit(Recorder(), datamodule=module(Stream(items)))
    with pytest.raises(ValueError, match=r"no item of train can be used; the first: train, item 0"):
        trainer(tmp_path).fit(Recorder(), datamodule=module(Stream([3, 4]), on_bad_item="replace"))


def test_a_share_of_an_unknown_number_is_that_of_those_seen() -> None:
    told: list[tuple[str, int]] = []
    counter = BadItemCounter("train", 0.01, None, lambda name, count: told.append((name, count)))
    with pytest.warns(UserWarning, match="of two"):
        counter.add([BadItem(0, "of two")], 2)  # 1 of 2: it may yet be 1 of 100
    with pytest.raises(ValueError, match=r"max_bad_fraction=0\.01 of 100"), pytest.warns(UserWarning, match="another"):
        counter.add([BadItem(1, "another")], 2)
    counter.end()
    assert told == [("train", 2)]


@pytest.mark.parametrize(
    ("options", "error", "key"),
    [
        (dict(on_bad_item="skip"), ValueError, r"`on_bad_item`"),
        (dict(max_bad_fraction=1.5), ValueError, r"`max_bad_fraction`"),
        (dict(max_bad_fraction="1%"), TypeError, r"`max_bad_fraction`"),
        (dict(timeout=-1), ValueError, r"`timeout`"),
        (dict(timeout=None), TypeError, r"`timeout`"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], error: type[Exception], key: str) -> None:
    with pytest.raises(error, match=key):
        module(Faulty(()), **options)


class Deadly(Faulty):
    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  # an image, or not
        if index == 20 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Stuck(Faulty):
    def __getitem__(self, index: int) -> Any:  # noqa: ANN401  # an image, or not
        if index == 20 and torch.utils.data.get_worker_info():
            time.sleep(PATIENCE)
        return super().__getitem__(index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        # Torch's own words where its signal handler meets other code than the loader's.
        (Deadly(()), r"a worker that loads train images was killed.*`num_workers`|is killed by signal: Killed"),
        (
            Stuck(()),
            r"a worker that loads train images.* within 2 s \(RuntimeError: DataLoader timed out.*`timeout`",
        ),
    ],
    ids=["dies", "hangs"],
)
@pytest.mark.skipif(sys.platform == "win32", reason="a signal ends the worker")
def test_a_worker_that_dies_or_hangs_is_told_within_seconds(dataset: Faulty, says: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=says):
        trainer(tmp_path).fit(Recorder(), datamodule=module(dataset, num_workers=1, timeout=2))
    assert time.monotonic() - began < 200  # a hundred times as long as it may take, and below the 300 s of the default


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="only Linux says how much there is")
def test_shared_memory_is_estimated_before_it_is_full() -> None:
    data = module(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), batch_size=10**9, num_workers=2, prefetch_factor=3)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"2 workers with 3 batches of 1000000000 images.*7.37e\+07 MB.*/dev/shm"):
        data.train_dataloader()


WAYS = {
    "error": r"RuntimeError: train\[\d+\]: KeyError: 'no row",
    "setup": r"RuntimeError: train\[\d+\]: KeyError: 'no row",
    "prepare": "KeyError: 'no connection'",
    "killed": "was killed, crashed|is killed by signal: Killed",  # ours, or torch's where its handler meets other code
    "stuck": "DataLoader timed out",
}


@pytest.mark.slow
def test_what_fails_on_one_rank_ends_all(tmp_path: Path) -> None:
    """Lightning's own launcher; the message is that rank's, and nobody waits for ever."""
    command = [python(), "-m", "tests.loading.faults_job"]
    with ExitStack() as stack:
        jobs = {}
        for way in WAYS:
            (tmp_path / way).mkdir()
            jobs[way] = stack.enter_context(started([*command, way, str(tmp_path / way), "2", "1"], ROOT))
        for way, job in jobs.items():
            code, said = job.finished()
            assert code != 0, way
            assert re.search(WAYS[way], said), said[-3000:]
            # Without an end by the failing rank, a collective would wait for half an hour.
            assert time.time() - float((tmp_path / way / "failed").read_text()) < PATIENCE
