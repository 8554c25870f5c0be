"""The check command against sets whose answer is known, and real processes."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from benchmarks.damage import make_mutant
from ddpm_data import DDPMDataModule, schedules
from ddpm_data.cli.check import main
from ddpm_data.cli.checking.duplicates import digest, find_duplicates, find_leakage
from ddpm_data.cli.checking.summary import summarize
from ddpm_data.cli.checking.survey import ROW, ItemStats, ItemStatsDataset
from ddpm_data.cli.checking.walk import scan_iterable, scan_map_style
from ddpm_data.images.conditions import Conditions
from ddpm_data.images.decode import is_transparent
from ddpm_data.images.latent_processor import LatentProcessor
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.latents import Latents
from ddpm_data.loading.bad_items import ITEM_ERRORS
from ddpm_data.loading.iterable import IterableImages
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.loading.options import LoaderOptions
from ddpm_data.sources import ImageFiles
from tests.conftest import ROOT, uint8_images
from tests.groups import PATIENCE
from tests.warm import python
from tests.zoo import BAD_FILES, BAD_ITEMS, COLOURS, FILES, GREYS, ITEMS, TURNED, content, picture

PIXELS = uint8_images(40, 3, 24, 32)


class Pairs(Dataset[Any]):
    """Forty items, each of twenty images twice, with conditions of several kinds."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = index % 8 if index < 32 else 0
        return {"image": PIXELS[index % 20], "label": label, "text": f"caption {index}", "vector": torch.ones(5)}


class Broken(Pairs):
    """The same without every tenth."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index % 10 == 9:
            raise KeyError(index)
        return super().__getitem__(index)


class Deep(Dataset[np.ndarray[Any, Any]]):
    """Floats, two of them beyond the range that is said."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        return np.full((8, 8), 2.0 if index in (3, 7) else index / 20 - 0.25, np.float32)


class Stream(IterableDataset[Any]):
    """Fifty items in an order of their own."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from uint8_images(50, 1, 8, 8)


class Empty(Stream):
    """The server has nothing."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from ()


class Shuffled(Stream):
    """In another order each time, until one breaks."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
        raise RuntimeError("the shard is gone")


def of(name: str, *words: str) -> list[str]:
    """A configuration of a dataset in this file."""
    source = f"+dataset.train={{_target_:tests.cli.test_check.{name}}}"
    return ["dataset=fake", "~dataset.train", source, "dataset.val=null", *words]


def check(out: Path, *words: str, workers: int = 0) -> tuple[int, dict[str, Any]]:
    """Exit status and what was written."""
    code = main(["--config-dir", str(ROOT / "conf"), "--output-dir", str(out), "--num-workers", str(workers), *words])
    return code, json.loads((out / "check.json").read_text())


def write(folder: Path, entries: Any) -> None:  # noqa: ANN401  # good or bad ones
    folder.mkdir(exist_ok=True)
    for number, entry in enumerate(entries):
        (folder / f"{number:03} {entry.name}").write_bytes(entry.make())


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Ten good images of three sizes, three copies, two bad files."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(8):
        Image.fromarray(PIXELS[number].permute(1, 2, 0).numpy()).save(root / f"{number}.png")
    Image.fromarray(PIXELS[8, :, :12, :12].permute(1, 2, 0).numpy()).save(root / "8.png")  # the only one to enlarge
    Image.fromarray(uint8_images(1, 100, 60)[0].numpy()).save(root / "9.jpg")
    for name, original in (("a copy.png", "3.png"), ("another copy.png", "3.png"), ("grey copy.jpg", "9.jpg")):
        (root / name).write_bytes((root / original).read_bytes())
    (root / "half.png").write_bytes((root / "0.png").read_bytes()[:900])
    (root / "page.jpg").write_bytes(b"<html>")
    return root


@pytest.mark.slow
def test_a_known_folder_by_the_command(known: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["dataset=image_folder", f"dataset.root={known}", "dataset.image_size=16", "dataset.val=null"]
    loader = ["loader.batch_size=4", "loader.num_workers=3", "loader.prefetch_factor=5"]
    # --out and --workers are the old spellings, which keep working.
    command = [python(), "-m", "ddpm_data.check", "--out", str(out), "--workers", "2", *words, *loader]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 1, result.stderr
    assert "Checking train: 100%" in result.stderr
    train = json.loads((out / "check.json").read_text())["sets"]["train"]
    assert train["items"] == train["looked_at"] == 15
    assert train["modes"] == {"RGB": 11, "L": 2}
    assert train["formats"] == {"PNG": 11, "JPEG": 2}
    assert train["channels"] == {"3": 11, "1": 2}
    assert train["sizes"] == {"smallest": [12, 12], "median": [24, 32], "largest": [100, 60], "different": 3}
    assert train["becomes"] == {"uint8 (3, 16, 16)": 13}
    assert (train["enlarged"], train["transparent"], train["turned"], train["animated"]) == (1, 0, 0, 0)
    assert (train["copies"]["count"], train["same_path"]["count"]) == (3, 0)
    assert train["copies"]["first"][0] == f"train[10] ({known / 'a copy.png'}) is train[3] ({known / '3.png'})"
    assert [(bad["index"], bad["path"]) for bad in train["bad"]] == [
        (13, str(known / "half.png")),
        (14, str(known / "page.jpg")),
    ]
    assert train["bad"][0]["cause"].startswith("OSError: ")
    image = 3 * 16 * 16
    assert train["bytes"] == {"batch": 4 * (image + 8), "shared": 3 * 5 * 4 * image, "cache": 15 * image}
    speed = train["speed"]
    assert speed["configured"] == pytest.approx(speed["a_worker"] * min(3, len(os.sched_getaffinity(0))))
    rows = dict(re.findall(r"^\| (.*?) +\| (.*?) +\|$", result.stdout, re.MULTILINE))
    assert rows["bad"] == "2"
    assert rows["height x width"] == "12 x 12 to 100 x 60, median 24 x 32, 3 different"
    assert rows["enlarged to image_size"] == "1"
    assert rows["copies"] == "3 by content, 0 by path"
    assert f"bad: train[14]: OSError: {known / 'page.jpg'} cannot be read" in result.stdout
    with Image.open(out / "check.png") as drawn:
        values = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(values, axis=0)) > 1000  # photographs of noise, not a blank page


@pytest.mark.slow
def test_workers_and_this_process_find_the_same(known: Path, tmp_path: Path) -> None:
    (known / "1.png").rename(known / "100.png")  # so that more than one worker has something to do
    words = ["dataset=image_folder", f"dataset.root={known}", "dataset.image_size=16"]
    write(known, (FILES + TURNED)[:40])
    found = [check(tmp_path / str(workers), *words, workers=workers) for workers in (0, 2)]
    for _, said in found:
        del said["sets"]["train"]["speed"]
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_zoo_is_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "good", TURNED)
    words = ["dataset=image_folder", "dataset.image_size=16", "dataset.val=null"]
    code, found = check(tmp_path, *words, f"dataset.root={tmp_path / 'good'}")
    train = found["sets"]["train"]
    assert (code, train["bad"], train["turned"]) == (0, [], len(TURNED))
    assert train["sizes"]["different"] == 1  # upright, whichever way they are stored
    frames = {"one.gif": 0, "three.gif": 2, "three.png": 2}
    more = [
        FILES[0]._replace(name=name, make=partial(content, picture(COLOURS), name[-4:], more=count))
        for name, count in frames.items()
    ]
    more += [entry for entry in FILES if entry.name in ("palette alpha.png", "grey of 16 bits.png")]
    write(tmp_path / "bad", [*BAD_FILES, *more])
    code, found = check(tmp_path, *words, f"dataset.root={tmp_path / 'bad'}")
    train = found["sets"]["train"]
    assert code == 1
    assert [bad["index"] for bad in train["bad"]] == list(range(len(BAD_FILES)))
    for bad, entry in zip(train["bad"], BAD_FILES, strict=True):
        assert re.search(f"(?s)^{entry.error.__name__}: .*{entry.match}", bad["cause"])
        assert entry.name in bad["path"]
    assert (train["animated"], train["transparent"], train["turned"]) == (2, 1, 0)
    assert train["values"] == [GREYS[0][0] * 257, GREYS[1][1] * 257]  # type: ignore[operator]  # greys are numbers


def test_copies_in_train_and_val_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = check(tmp_path, *of("Pairs", "dataset.val=0.25", "dataset.image_key=image"))
    datamodule = DDPMDataModule(Pairs(), val=0.25, schedule=schedules.linear(10), image_key="image")
    part = datamodule.splits.unchecked("val").subset  # type: ignore[attr-defined]  # a map-style set has one
    assert part is not None
    held_out = set(part.indices(torch.arange(10)).tolist())
    leaked = [index for index in held_out if (index + 20) % 40 not in held_out]
    train = found["sets"]["train"]
    assert (code, list(found["sets"]), train["held_out"]) == (0, ["train"], 10)
    assert train["copies"]["count"] == 20
    assert found["leakage"]["train and val"]["count"] == len(leaked) > 0
    assert f"in both train and val: {len(leaked)} images" in capsys.readouterr().out


def test_a_validation_set_of_its_own_is_walked_and_compared(known: Path, tmp_path: Path) -> None:
    other = tmp_path / "val"
    other.mkdir()
    for name in ("2.png", "9.jpg"):
        (other / name).write_bytes((known / name).read_bytes())
    Image.new("RGB", (20, 20)).save(other / "new.png")
    val = f"++dataset.val={{_target_:ddpm_data.sources.ImageFiles,root:{other}}}"
    _, found = check(tmp_path, "dataset=image_folder", f"dataset.root={known}", val)
    assert found["sets"]["val"]["items"] == 3
    shared = found["leakage"]["train and val"]
    assert shared["count"] == 2
    assert shared["first"][0] == f"val[0] ({other / '2.png'}) is train[2] ({known / '2.png'})"


@pytest.mark.parametrize(
    ("key", "kind", "classes"),
    [
        ("label", "int", {"0": 12, **{str(label): 4 for label in range(1, 8)}}),
        ("text", "str", {f"caption {index}": 1 for index in range(40)}),
        ("vector", "float32 of shape (5,)", {}),
    ],
)
def test_conditions_are_counted(
    key: str, kind: str, classes: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset.image_key=image", f"dataset.condition={key}", "loader.batch_size=64"]
    _, found = check(tmp_path, *of("Pairs", *words))
    train = found["sets"]["train"]
    assert train["conditions"] == {"kinds": {kind: 40}, "classes": classes}
    assert train["bytes"]["batch"] == 64 * (3 * 24 * 32 + 8 + {"label": 8, "text": 0, "vector": 20}[key])
    said = capsys.readouterr().out
    assert ("images per condition: 0: 12, 1: 4" in said) == (key == "label")
    assert ("caption 19: 1, and 20 more" in said) == (key == "text")


def test_whatever_a_dataset_raises_is_told(tmp_path: Path) -> None:
    code, found = check(tmp_path, *of("Broken", "dataset.image_key=image"))
    bad = found["sets"]["train"]["bad"]
    assert code == 1
    assert bad == [{"index": i, "path": None, "cause": f"KeyError: {i}"} for i in (9, 19, 29, 39)]


def test_values_and_problems_of_the_whole_are_told(tmp_path: Path) -> None:
    code, found = check(tmp_path, *of("Deep", "dataset.value_range=[-0.25,1]"))
    train = found["sets"]["train"]
    assert (code, [bad["index"] for bad in train["bad"]], train["problems"]) == (1, [3, 7], [])
    assert train["values"] == pytest.approx([-0.25, 0.3])
    assert train["modes"] == {"float32": 10}
    code, found = check(tmp_path, *of("Deep"))
    assert code == 1
    assert re.search(r"float32.*-0\.25 to 2.*`dataset\.value_range`", found["sets"]["train"]["problems"][0])


def test_shapes_that_make_no_batch_are_a_problem(known: Path, tmp_path: Path) -> None:
    for name in ("half.png", "page.jpg"):
        (known / name).unlink()
    code, found = check(tmp_path, "dataset=image_folder", f"dataset.root={known}", "dataset.image_size=null")
    train = found["sets"]["train"]
    assert (code, train["bad"]) == (1, [])
    assert re.search(r"\(3, 24, 32\) and train\[8\] is \(3, 12, 12\).*`dataset\.image_size`", train["problems"][0])


@pytest.mark.slow
def test_a_source_is_walked_in_its_own_order(tmp_path: Path) -> None:
    code, found = check(tmp_path, "--max-items", "30", *of("Stream"))
    train = found["sets"]["train"]
    assert (code, train["items"], train["becomes"]) == (0, 30, {"uint8 (3, 8, 8)": 30})
    assert train["order"] == "its own, the same each time; only the first 30 items were checked"
    _, found = check(tmp_path, *of("Stream"))
    assert found["sets"]["train"]["items"] == 50
    assert found["sets"]["train"]["order"] == "its own, the same each time"
    code, found = check(tmp_path, *of("Shuffled"))
    train = found["sets"]["train"]
    assert (code, train["items"], train["order"]) == (1, 21, "its own, another each time")
    assert train["bad"] == [{"index": 20, "path": None, "cause": "the source itself: RuntimeError: the shard is gone"}]


@pytest.mark.parametrize("stacked", [False, True])
def test_latents_are_told_by_their_moments(stacked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(30, 4, 6, 6, generator=generator, dtype=torch.float64) * 3 + torch.arange(4).view(4, 1, 1)
    values[:, 2:] = values[:, 2:].abs() if stacked else values[:, 2:]
    processor = LatentProcessor(Latents(stacked=stacked))
    surveys = ItemStatsDataset(MapStyleImages(cast(Any, values), processor, "train"), 7)
    whole = surveys[0]
    for number in range(1, len(surveys)):
        whole.merge(surveys[number])
    found = summarize(surveys.images, whole, LoaderOptions(8, 0, None, False, None, False), True, None)["latents"][0]
    mean, std = values[:, :2] if stacked else values, values[:, 2:] if stacked else values[:0]
    many = torch.randn(400, *mean.shape, generator=generator)  # as they would be drawn: E is known to 1%
    drawn = mean + std * many if stacked else mean
    close = dict(rtol=0.02 if stacked else 1e-5, atol=0.02 if stacked else 1e-5)
    axes = tuple(axis for axis in range(drawn.dim()) if axis != drawn.dim() - 3)
    torch.testing.assert_close(torch.tensor(found["mean"], dtype=torch.float64), drawn.mean(axes), **close)
    torch.testing.assert_close(torch.tensor(found["std"], dtype=torch.float64), drawn.std(axes, correction=0), **close)
    assert found["scale"] == pytest.approx(1 / float(drawn.std(correction=0)), rel=close["rtol"])


def test_without_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    for name in [name for name in sys.modules if name.startswith("ddpm_data.plots")]:
        monkeypatch.delitem(sys.modules, name)
    code, found = check(tmp_path, *of("Pairs", "dataset.image_key=image"))
    assert (code, found["sets"]["train"]["items"]) == (0, 40)
    assert "no check.png: pictures need matplotlib: pip install 'ddpm-data[plots]'" in capsys.readouterr().out
    assert not (tmp_path / "check.png").exists()


def test_copies_are_those_of_a_search() -> None:
    generator = np.random.default_rng(0)
    for high in (1, 5, 60, 10**9):
        sets = [generator.integers(0, high, length).astype(np.uint64) for length in (0, 30, 1, 50)]
        every = [(one, place, value) for one, some in enumerate(sets) for place, value in enumerate(some.tolist())]
        firsts: dict[int, tuple[int, int]] = {}
        expected: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for one, place, value in every:
            first = firsts.setdefault(value, (one, place))
            if first != (one, place):
                expected.setdefault((first[0], one), []).append((place, first[1]))
        for both, found in find_leakage(sets):
            pairs = list(zip(found.copies.tolist(), found.originals.tolist(), strict=True))
            assert pairs == expected.get(both, [])
        found = find_duplicates(sets[1])
        assert list(zip(found.copies.tolist(), found.originals.tolist(), strict=True)) == expected.get((1, 1), [])


def test_digests_tell_dtypes_shapes_and_values_apart() -> None:
    some: list[Tensor | str] = [torch.zeros(2, 6, dtype=dtype) for dtype in (torch.uint8, torch.int8, torch.bfloat16)]
    some += [torch.zeros(3, 4, dtype=torch.uint8), torch.eye(2, 6, dtype=torch.uint8), "a.png", "b.png", "a\udcff.png"]
    assert len({digest(content) for content in some}) == len(some)
    assert digest(torch.eye(6, 2).T) == digest(torch.eye(2, 6))
    assert ROW.itemsize == 32  # a million items are 32 MB


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dataset=fake", "dataset.train=null", "dataset.val=null"], r"no dataset.*`dataset\.train`"),
        (of("Stream", "dataset.val=0.5"), r"order of its own.*`dataset\.val`"),
        (["--config-dir", "nowhere"], "no folder .*nowhere.*--config-dir"),
    ],
)
def test_what_it_cannot_look_at_is_said(words: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=says):
        main(["--config-dir", str(ROOT / "conf"), "--out", str(tmp_path), *words])


def test_large_images_are_shown_small() -> None:
    large = MapStyleImages(cast(Any, [np.zeros((300, 500, 3), np.uint8)] * 200), ImageProcessor(), "train")
    scan = scan_map_style(large, LoaderOptions(1))
    assert [tuple(preview.image.shape) for preview in scan.previews] == [(3, 76, 128)] * 64


def test_previews_know_their_index_their_class_and_their_file(known: Path) -> None:
    images = MapStyleImages(cast(Any, Broken()), ImageProcessor("image"), "train", conditions=Conditions("label"))
    previews = scan_map_style(images, LoaderOptions(1)).previews
    assert [preview.number for preview in previews] == [index for index in range(40) if index % 10 != 9]
    assert all(preview.label == (preview.number % 8 if preview.number < 32 else 0) for preview in previews)
    assert all(torch.equal(preview.image, PIXELS[preview.number % 20]) for preview in previews)
    files = scan_map_style(MapStyleImages(ImageFiles(known), ImageProcessor(), "train"), LoaderOptions(1)).previews
    assert files[3].path == str(known / "3.png")
    assert {preview.label for preview in files} == {None}
    stream = scan_iterable(IterableImages(Stream(), ImageProcessor(channels=1), "train"), 20).previews
    assert [preview.number for preview in stream] == list(range(20))


def test_a_stream_without_items_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = check(tmp_path, *of("Empty"))
    assert code == 1
    assert "train: train gave no items. Check `dataset.train`." in capsys.readouterr().out


def test_files_of_any_name_are_drawn(tmp_path: Path) -> None:
    names = ["$a$b.png", "\u82b1.png", "new\nline.png", "a" * 100 + ".png"]
    names += [] if sys.platform in ("darwin", "win32") else ["\udcff.png"]  # not UTF-8, which these systems refuse
    (tmp_path / "images").mkdir()
    for name in names if sys.platform != "win32" else names[:2]:
        Image.fromarray(PIXELS[0].permute(1, 2, 0).numpy()).save(tmp_path / "images" / name)
    root = f"dataset.root={tmp_path / 'images'}"
    assert check(tmp_path / "out", "dataset=image_folder", root, "dataset.val=null")[0] == 0
    assert (tmp_path / "out" / "check.png").exists()


def check_and_train(dataset: Any, processor: ImageProcessor) -> tuple[dict[int, str], dict[int, str]]:  # noqa: ANN401
    """Which items are bad, and why, as ``check`` says and as training does; the good ones are the same images."""
    images, stats = MapStyleImages(dataset, processor, "train"), ItemStats()
    refused = {}
    for index in range(len(dataset)):
        checked = stats.add_item(index, partial(dataset.__getitem__, index), processor)
        try:
            trained = images[index]
        except ITEM_ERRORS as error:
            refused[index] = str(error)
        else:
            assert checked is not None
            assert torch.equal(checked, trained)
    return {bad.item: bad.reason for bad in stats.bad_items}, refused


@pytest.mark.parametrize("mutants", [100, pytest.param(200, marks=pytest.mark.slow)])
def test_the_verdict_is_that_of_training(mutants: int, tmp_path: Path) -> None:
    """Damaged PNG files were half decoded by a second attempt, after the first one's error was taken for EXIF's."""
    unreadable = set()
    for number in range(mutants):
        suffix, damaged = make_mutant(number)
        (tmp_path / f"{number}{suffix}").write_bytes(damaged)
    for number, entry in enumerate((*FILES, *TURNED, *BAD_FILES)):
        (tmp_path / f"{mutants + number} {entry.name}").write_bytes(cast(bytes, entry.make()))
    files = ImageFiles(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        checked, trained = check_and_train(files, ImageProcessor(image_size=32, channels=3))
        for index, name in enumerate(files.names):
            try:
                files[index].load()
            except Exception:  # PIL raises many types of error
                unreadable.add(name)
    assert set(checked) == set(trained)
    for index, reason in trained.items():
        assert checked[index].partition(": ")[2] in reason
    assert {files.names[index] for index in checked} >= unreadable  # nor is anything good that PIL calls broken
    assert len(unreadable) > mutants / 3
    assert len(files) - len(checked) > mutants / 4


def test_the_verdict_on_items_that_are_no_files_is_that_of_training() -> None:
    verdicts = {}
    for entry in (*ITEMS, *BAD_ITEMS):
        made = entry.make()
        if not isinstance(made, Exception):
            processor = ImageProcessor(**({"image_size": 16, "channels": 3} | dict(entry.processor)))
            checked, trained = check_and_train([made], processor)
            assert set(checked) == set(trained), entry.name
            verdicts[entry.name] = not checked
    assert verdicts == {name: name in {entry.name for entry in ITEMS} for name in verdicts}


def test_an_image_that_failed_fails_again() -> None:
    """PIL's second ``load()`` of a damaged image that the user keeps gives what the first had decoded."""
    whole = content(picture(COLOURS, size=(480, 320)), ".png")
    place = whole.index(b"IDAT") + 40
    damaged = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    kept = [Image.open(io.BytesIO(damaged))]
    for _ in range(2):
        checked, trained = check_and_train(kept, ImageProcessor(image_size=32))
        assert list(checked) == list(trained) == [0]


def files_config(root: Path) -> list[str]:
    return ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=16"]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_options_and_overrides_stand_in_any_order(order: int, known: Path, tmp_path: Path) -> None:
    """``check dataset=... --out x dataset.val=null`` ended with "unrecognized arguments"."""
    options = ["--out", str(tmp_path), "--config-dir", str(ROOT / "conf"), "--num-workers", "0"]
    overrides = [*files_config(known), "dataset.val=null"]
    words = [options + overrides, overrides + options, [*overrides[:2], *options, *overrides[2:]]][order]
    main(words)
    assert list(json.loads((tmp_path / "check.json").read_text())["sets"]) == ["train"]


def test_every_image_with_alpha_is_transparent() -> None:
    """Images with premultiplied alpha, as some TIFF files are, were left out of the count."""
    modes = {"LA": True, "La": True, "PA": True, "RGBA": True, "RGBa": True, "L": False, "RGB": False, "LAB": False}
    for mode, is_clear in modes.items():
        assert is_transparent(Image.new(mode, (2, 2))) == is_clear, mode
    pictures: Any = [Image.new(mode, (20, 20)) for mode in ("RGBa", "La", "RGB")]
    images = MapStyleImages(pictures, ImageProcessor(image_size=16, channels=3), "train")
    stats = scan_map_style(images, LoaderOptions(1)).stats
    assert stats.counts["has"]["transparent"] == 2


@pytest.mark.parametrize("size", [None, 8])
def test_copies_are_compared_before_they_lose_bits_or_pixels(size: int | None, tmp_path: Path) -> None:
    """Two 16-bit images that are the same in 8 bits are no copies."""
    deep = np.arange(40 * 6, dtype=np.uint16).reshape(40, 6).repeat(5, 1) * 257
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (20, 15))
    for name, values in {"0": deep, "1": deep + 1, "2": deep, "3": fine, "4": 255 - fine, "5": fine}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(deep).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "6.png", exif=exif)
    dataset: Any = torch.utils.data.ConcatDataset([ImageFiles(tmp_path), [fine]])  # the same content in an array
    images = MapStyleImages(dataset, ImageProcessor(image_size=size, channels=3), "train")
    rows = scan_map_style(images, LoaderOptions(1)).stats.rows
    copies, originals = find_duplicates(rows["content"])
    assert dict(zip(copies.tolist(), originals.tolist(), strict=True)) == {2: 0, 5: 3, 6: 0, 7: 3}


def test_large_copies_are_found_whatever_they_are_in(tmp_path: Path) -> None:
    """Digests are of parts of an image; an array has the same parts."""
    values = uint8_images(1, 3, 700, 900)[0]
    Image.fromarray(values.permute(1, 2, 0).numpy()).save(tmp_path / "a.png", compress_level=1)
    dataset: Any = torch.utils.data.ConcatDataset([ImageFiles(tmp_path), [values, values.flip(1)]])
    images = MapStyleImages(dataset, ImageProcessor(image_size=16), "train")
    rows = scan_map_style(images, LoaderOptions(1)).stats.rows
    assert [part.tolist() for part in find_duplicates(rows["content"])] == [[1], [0]]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_damaged_image_beside_its_condition_is_not_half_decoded(interpolation: str) -> None:
    """To find an image's size beside a condition reads its EXIF tag, for which PIL decodes a PNG."""
    whole = content(picture(COLOURS, size=(480, 320)), ".png")
    place = whole.index(b"IDAT") + 40
    damaged = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
    for image_bytes, mask_bytes in ((damaged, whole), (whole, damaged)):

        def item(image_bytes: bytes = image_bytes, mask_bytes: bytes = mask_bytes) -> dict[str, Any]:
            beside = np.zeros((3, 32, 48), np.float32)  # looks like an image, so sizes are compared
            opened = [Image.open(io.BytesIO(part)) for part in (image_bytes, mask_bytes)]
            return {"image": opened[0], "mask": opened[1], "beside": beside}

        processor = ImageProcessor(image_key="image", channels=3)
        conditions = Conditions(["mask", "beside"], {"mask": interpolation}, processor)
        kept = [item()]
        images = MapStyleImages(cast(Any, kept), processor, "train", conditions=conditions)
        for _ in range(2):
            with pytest.raises(OSError, match=r"train\[0\].*cannot be read as an image"):
                images[0]
        stats = ItemStats()
        assert stats.add_item(0, item, processor, conditions) is None
