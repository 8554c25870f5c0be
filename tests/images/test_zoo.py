"""The zoo through real DataModules and Trainers: every image comes out in its colours, everything else by its name."""

import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.sources import ImageFiles
from tests.conftest import Recorder, trainer
from tests.zoo import (
    BAD_FILES,
    BAD_ITEMS,
    BAD_PLACES,
    COLOURS,
    ENLARGED,
    FILES,
    ITEMS,
    LUMA,
    POLICIES,
    TURNED,
    Bad,
    Good,
    is_file,
    painted,
    picture,
)

GOOD = FILES + TURNED + POLICIES + ITEMS
BAD = BAD_FILES + BAD_ITEMS
pytestmark = pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File)")  # PIL's, of what it makes do with
AMONG_MANY = [0] * 19 + [1] + [0] * 20  # where setup(), which looks at 32 of them, does not look
BETAS = schedules.linear(10)  # little noise: x_0 comes back to 1e-5


def module(train: Any, **processor: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset is the point
    return DDPMDataModule(train, **(dict(schedule=BETAS, compile=False, image_size=16, channels=3) | processor))


def batches(entries: Iterable[Good]) -> list[list[Good]]:
    """Entries that one DataModule can serve: files or items, of one processor, and of one shape."""
    groups = defaultdict(list)
    for entry in entries:
        is_exact = entry.processor.get("image_size", 16) is None
        groups[is_file(entry), repr(sorted(entry.processor.items())), is_exact and len(entry.expected)].append(entry)
    return list(groups.values())


def off(image: Tensor, entry: Good) -> float:
    """How many levels an image is off at most, in the middles of its parts."""
    assert len(image) == (entry.processor.get("channels", 3) or 1)  # grey, where nothing else is asked for
    parts = [
        part
        for row, cells in zip(image.tensor_split(len(entry.expected), 1), entry.expected, strict=True)
        for part in zip(row.tensor_split(len(cells), 2), cells, strict=True)
    ]
    return max(float((middle(part) - torch.tensor(cell).view(-1, 1, 1)).abs().max()) for part, cell in parts)


def recovered(datamodule: DDPMDataModule, model: Recorder, stage: str = "train") -> Tensor:
    """The images inside the triples, in levels of 255."""
    x_t, t, noise = model.all(stage)
    return (datamodule.transform.process.predict_x_0(x_t.double(), t, noise.double()) + 1) * 127.5


def middle(part: Tensor) -> Tensor:
    top, left = part.shape[1] // 4, part.shape[2] // 4
    return part[:, top : part.shape[1] - top, left : part.shape[2] - left]


def test_the_zoo_is_large() -> None:
    assert len(GOOD) >= 60
    assert len({entry.name for entry in GOOD}) == len(GOOD)
    assert len(BAD) >= 30


@pytest.mark.parametrize("entries", batches(GOOD), ids=lambda entries: entries[0].name)
def test_every_image_comes_out_in_its_colours(entries: list[Good], tmp_path: Path) -> None:
    dataset: Any = [entry.make() for entry in entries]
    if is_file(entries[0]):
        for number, (entry, content) in enumerate(zip(entries, dataset, strict=True)):
            (tmp_path / f"{number} {entry.name}").write_bytes(content)
        dataset = ImageFiles(tmp_path)
        assert len(dataset) == len(entries)
    workers = 2 if len(entries) > 30 else 0
    datamodule, model = module(dataset, num_workers=workers, **entries[0].processor), Recorder()
    is_enlarged = entries[0].processor.get("image_size") == ENLARGED["image_size"]
    with pytest.warns(UserWarning, match="smaller") if is_enlarged else nullcontext():
        trainer(tmp_path).fit(model, datamodule=datamodule)
    order = [int(index) for request in datamodule.train_dataloader().sampler for index in request.indices]  # type: ignore[union-attr]
    assert sorted(order) == list(range(len(entries)))
    images = recovered(datamodule, model)[torch.tensor(order).argsort()]
    wrong = {entry.name: off(image, entry) for image, entry in zip(images, entries, strict=True)}
    assert not {entry.name: wrong[entry.name] for entry in entries if wrong[entry.name] > entry.tolerance + 1e-3}


class Items(list[Any]):
    """A dataset that raises those of its items that are exceptions."""

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  # anything
        item = super().__getitem__(index)
        if isinstance(item, Exception):
            raise item
        return item


def after_a_good_one(bad: Bad, folder: Path) -> Any:  # noqa: ANN401  # any dataset
    if not is_file(bad):
        low, high = bad.processor.get("value_range", (0, 255))
        good = painted() / 255 * (high - low) + low if (low, high) != (0, 255) else picture(COLOURS)
        return Items([{"mask": good}, bad.make()])
    picture(COLOURS).save(folder / "0.png")
    (folder / f"1 {bad.name}").write_bytes(cast(bytes, bad.make()))
    return ImageFiles(folder)


def said_of(bad: Bad, index: int) -> str:
    """What the error has to say, as a regular expression."""
    path = re.escape(f"1 {bad.name}") + ".*" if is_file(bad) else ""
    return rf"(?s:train\[{index}\].*{path}{bad.match})"


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_everything_else_is_refused_by_its_name(bad: Bad, tmp_path: Path) -> None:
    dataset = after_a_good_one(bad, tmp_path)
    with pytest.raises(bad.error, match=said_of(bad, 1)):
        module(dataset, **bad.processor).setup("fit")
    datamodule = module(Subset(dataset, AMONG_MANY), **bad.processor)
    datamodule.setup("fit")
    with pytest.raises(bad.error, match=said_of(bad, 19)):
        list(datamodule.train_dataloader())


@pytest.mark.parametrize(
    "name", ["half.jpg", "bomb.png", "PIL LAB", "NaN", "nothing", "KeyError", "CustomError", "StopIteration"]
)
def test_a_worker_says_which_item_it_was(name: str, tmp_path: Path) -> None:
    bad = next(bad for bad in BAD if bad.name == name)
    dataset = Subset(after_a_good_one(bad, tmp_path), AMONG_MANY)
    with pytest.raises(bad.error, match=said_of(bad, 19)):
        trainer(tmp_path).fit(Recorder(), datamodule=module(dataset, num_workers=2, **bad.processor))


@pytest.mark.parametrize("what", BAD_PLACES)
def test_what_becomes_of_a_file_is_said(what: str, tmp_path: Path) -> None:
    if what == "private" and (sys.platform == "win32" or os.geteuid() == 0):
        pytest.skip("root may read every file, and Windows takes no such bits")
    for name in ("0.png", "1.png"):
        picture(COLOURS).save(tmp_path / name)
    datamodule = module(ImageFiles(tmp_path))
    BAD_PLACES[what](tmp_path / "1.png")
    with pytest.raises(OSError, match=r"train\[1\].*1\.png cannot be read as an image"):
        datamodule.setup("fit")


def test_random_crops_are_windows_that_follow_the_stream(tmp_path: Path) -> None:
    wide = torch.arange(100, dtype=torch.uint8).expand(3, 16, 100)  # nothing to resize, and 85 places to crop at
    runs = []
    for batch_size, workers in ((64, 0), (7, 2)):
        datamodule = module([wide] * 64, val=[wide] * 3, crop="random", batch_size=batch_size, num_workers=workers)
        model = Recorder()
        trainer(tmp_path).fit(model, datamodule=datamodule)
        runs.append(recovered(datamodule, model).round().int())
        assert recovered(datamodule, model, "val")[:, 0, 0, 0].round().tolist() == [42, 42, 42]
    assert torch.equal(*runs)
    places = runs[0][:, :1, :1, :1]
    assert torch.equal(runs[0], (places + torch.arange(16)).expand(64, 3, 16, 16))
    assert places.min() < 17 < 67 < places.max() < 85  # fair draws miss a fifth once in 800,000 times
    assert len(places.unique()) > 30


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_everything_else_is_replaced_where_that_is_asked_for(
    bad: Bad, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Subset(after_a_good_one(bad, tmp_path), AMONG_MANY)
    datamodule, model = module(dataset, on_bad_item="replace", max_bad_fraction=0.03, **bad.processor), Recorder()
    with pytest.warns(UserWarning, match="replaced by a neighbour: " + said_of(bad, 19)):
        trainer(tmp_path).fit(model, datamodule=datamodule)
    assert "train: 1 of 40 images were bad" in capsys.readouterr().err
    shown = FILES[0]._replace(expected=LUMA if "channels" in bad.processor else COLOURS, processor=bad.processor)
    assert all(off(image, shown) <= shown.tolerance for image in recovered(datamodule, model))


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_setup_leaves_bad_items_to_be_replaced(bad: Bad, tmp_path: Path) -> None:
    dataset = Subset(after_a_good_one(bad, tmp_path), [0, 1, 0, 0])
    datamodule = module(dataset, on_bad_item="replace", max_bad_fraction=0.25, **bad.processor)
    datamodule.setup("fit")
    with pytest.warns(UserWarning, match="replaced by a neighbour: " + said_of(bad, 1)):
        (batch,) = datamodule.train_dataloader()
    shown = FILES[0]._replace(expected=LUMA if "channels" in bad.processor else COLOURS, processor=bad.processor)
    assert len(batch.images) == 4
    assert all(off(image.double(), shown) <= shown.tolerance for image in batch.images)


def test_a_small_part_has_neighbours_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Of two items one is bad, whichever part it falls into: the other one stands in for it."""
    for seed in range(20):
        items = [picture(COLOURS), None, picture(COLOURS), picture(COLOURS)]
        datamodule = module(items, val=0.5, seed=seed, on_bad_item="replace", max_bad_fraction=1.0)
        datamodule.setup("fit")
        with pytest.warns(UserWarning, match=r"replaced by a neighbour: train\[1\]"):
            (train,), (val,) = datamodule.train_dataloader(), datamodule.val_dataloader()
        images = [*train.images, *val.images]
        assert len(images) == 4
        assert all(off(image.double(), FILES[0]._replace(expected=COLOURS)) <= FILES[0].tolerance for image in images)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 20
    assert set(said) == {f"{part}: 1 of 2 images were bad and replaced" for part in ("train", "val")}


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1)])
def test_thin_images_are_refused_before_they_take_memory(size: tuple[int, int]) -> None:
    """Covering 256 x 256 would take 59 GB; stretched to it they are nothing special."""
    with pytest.raises(ValueError, match=r"300000.*enlarged to .*76800000.*`dataset\.resize`"):
        ImageProcessor(image_size=256, channels=3)(Image.new("L", size, 7))
    assert ImageProcessor(image_size=256, channels=3, resize="stretch")(Image.new("L", size, 7)).unique().tolist() == [
        7
    ]


def test_too_many_bad_items_stop_the_run(tmp_path: Path) -> None:
    dataset = Subset(after_a_good_one(BAD_FILES[0], tmp_path), [0, 1, 0, 0])
    datamodule = module(dataset, on_bad_item="replace", max_bad_fraction=0.24)
    with (
        pytest.warns(UserWarning, match="replaced by a neighbour: " + said_of(BAD_FILES[0], 1)),
        pytest.raises(ValueError, match=r"1 of the first 4 train images cannot be used.*max_bad_fraction=0\.24"),
    ):
        trainer(tmp_path).fit(Recorder(), datamodule=datamodule)


def test_replacing_is_the_same_in_any_batch_and_worker(tmp_path: Path) -> None:
    """Every seventh file is broken in a way of its own."""
    for number in range(70):
        bad = BAD_FILES[number % len(BAD_FILES)]
        path = tmp_path / f"{number} {bad.name}"
        picture(((number, 255 - number),)).save(path.with_suffix(".png"))
        if number % 7 == 3:
            path.with_suffix(".png").write_bytes(cast(bytes, bad.make()))
    runs = []
    for batch_size, workers in ((70, 0), (9, 0), (16, 2)):
        datamodule, model = (
            module(
                ImageFiles(tmp_path),
                on_bad_item="replace",
                max_bad_fraction=0.25,
                batch_size=batch_size,
                num_workers=workers,
            ),
            Recorder(),
        )
        with pytest.warns(UserWarning, match="replaced by a neighbour"):
            trainer(tmp_path).fit(model, datamodule=datamodule)
        runs.append(model.all("train"))
    for run in runs[1:]:
        for some, others in zip(runs[0], run, strict=True):
            assert torch.equal(some, others)
