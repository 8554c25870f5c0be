"""Images decoded once: the same triples, made by one process, and never taken from a file that is not whole."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from ddpm_data import DDPMDataModule, schedules
from ddpm_data.sources import ImageFiles
from tests.cache.cache_job import COUNT, Slow
from tests.conftest import ROOT, Recorder, trainer, uint8_images
from tests.groups import PATIENCE
from tests.warm import python

not_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="done by signals and limits of POSIX")
BETAS = schedules.linear(50)
EXTRA = 2 * 16 + 34  # items that a process looks at beside decoding: for the fingerprint, twice, and for the check
MEAN = sum(index % 256 for index in range(COUNT)) / COUNT


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Forty JPEG and PNG files, no two alike, in two folders."""
    for number, values in enumerate(uint8_images(40, 3, 50, 40)):
        path = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.{('jpg', 'png')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "photographs"


def datamodule(train: Any, cache: Path | None, **options: Any) -> DDPMDataModule:  # noqa: ANN401  # any dataset
    defaults: dict[str, Any] = dict(channels=3, compile=False, image_size=16, val=0.2, batch_size=6, flip=0.5, seed=3)
    return DDPMDataModule(train=train, schedule=BETAS, cache_dir=cache, **(defaults | options))


def images(train: Any, cache: Path | None, **options: Any) -> Tensor:  # noqa: ANN401  # any dataset
    """All the training set's images, by setup() alone."""
    module = datamodule(train, cache, val=None, **options)
    module.setup("fit")
    return module.splits.images("train").batch(torch.arange(len(train))).images


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"channels": 1}],
    ids=["", "workers", "grey"],
)
def test_triples_are_those_of_decoding_every_time(photographs: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    seen = []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        model = Recorder()
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=datamodule(ImageFiles(photographs), cache, **options))
        seen.append([tensor for stage in ("train", "val") for tensor in model.all(stage)])
    for decoded, first, second in zip(*seen, strict=True):
        assert torch.equal(decoded, first)
        assert torch.equal(decoded, second)
    assert files(tmp_path / "cache") == [".json", ".npy"]  # train and the part of it held out share one


def test_what_is_on_disk_is_the_decoded_images_in_a_standard_format(photographs: Path, tmp_path: Path) -> None:
    decoded = images(ImageFiles(photographs), None)
    assert torch.equal(images(ImageFiles(photographs), tmp_path / "cache"), decoded)
    [path] = (tmp_path / "cache").glob("*.npy")
    assert torch.equal(torch.from_numpy(np.load(path, allow_pickle=False)), decoded)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["shape"] == list(decoded.shape)
    assert about["policy"]["image_size"] == [16, 16]


@pytest.mark.slow
def test_a_second_run_decodes_nothing(tmp_path: Path) -> None:
    for run, most in enumerate((COUNT + EXTRA, EXTRA)):
        asked = tmp_path / f"asked {run}"
        module = datamodule(Slow(asked), tmp_path / "cache")
        trainer(tmp_path, max_epochs=2).fit(Recorder(), datamodule=module)
        assert len(asked.read_text().split()) <= most


def job(tmp_path: Path, asked: str, seconds: float = 0.0, limit: int = 0) -> "subprocess.Popen[str]":
    arguments = [tmp_path / "cache", tmp_path / asked, seconds, limit]
    command = [python(), "-m", "tests.cache.cache_job", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    jobs = [job(tmp_path, f"asked {i}", seconds=0.005) for i in range(3)]
    outputs = [process.communicate(timeout=PATIENCE) for process in jobs]
    assert [out.strip() for out, _ in outputs] == [f"mean {MEAN}"] * 3, outputs
    asked = [len((tmp_path / f"asked {i}").read_text().split()) for i in range(3)]
    assert sum(asked) <= COUNT + 3 * EXTRA
    assert sum("Waiting for another process" in err for _, err in outputs) == 2
    assert files(tmp_path / "cache") == [".json", ".npy"]


@pytest.mark.slow
@not_on_windows
def test_one_that_is_killed_leaves_no_cache(tmp_path: Path) -> None:
    for seconds in (0.0, 0.2, 0.5):
        process = job(tmp_path, "asked", seconds=0.02)
        while not list((tmp_path / "cache").glob("*.part")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert files(tmp_path / "cache") == [".part"]
    out, err = job(tmp_path, "asked").communicate(timeout=PATIENCE)
    assert out.strip() == f"mean {MEAN}", err
    assert files(tmp_path / "cache") == [".json", ".npy"]


@pytest.mark.slow
@not_on_windows
def test_a_full_disk_is_said_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    process = job(tmp_path, "asked", limit=100_000)
    _, err = process.communicate(timeout=PATIENCE)
    last = err.strip().splitlines()[-1]
    assert process.returncode == 1
    assert "the cache of train cannot be written to" in last
    assert "GB are free" in last
    assert "0.000768 GB are needed" in last
    assert "`cache_dir`" in last
    assert files(tmp_path / "cache") == []
    assert len((tmp_path / "asked").read_text().split()) < COUNT + EXTRA  # before most of the work


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a byte", "its end", "no file", "what is said of it", "nothing said of it"])
def test_damaged_caches_are_made_anew(photographs: Path, tmp_path: Path, damage: str) -> None:
    decoded = images(ImageFiles(photographs), tmp_path / "cache")
    [path] = (tmp_path / "cache").glob("*.npy")
    if damage == "a byte":
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(bytes([file.read(1)[0] ^ 1]))
    elif damage == "its end":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "no file":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{" if damage == "what is said of it" else "[]")
    with pytest.warns(UserWarning, match="it is built again"):
        assert torch.equal(images(ImageFiles(photographs), tmp_path / "cache"), decoded)
    assert torch.equal(images(ImageFiles(photographs), tmp_path / "cache"), decoded)  # and no warning now


def test_a_copy_is_read_through_and_taken(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded = images(ImageFiles(photographs), tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "copy", copy_function=shutil.copyfile)
    capsys.readouterr()
    assert torch.equal(images(ImageFiles(photographs), tmp_path / "copy"), decoded)
    assert "Checking" in (said := capsys.readouterr().err)
    assert "Decoding" not in said
    images(ImageFiles(photographs), tmp_path / "copy")
    assert "Checking" not in capsys.readouterr().err


@pytest.mark.slow
def test_other_pixels_are_another_cache(photographs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    images(ImageFiles(photographs), cache)
    changed = photographs / "a" / "2.jpg"

    def rewrite() -> None:
        about = changed.stat()
        Image.fromarray(uint8_images(2, 50, 40)[1].numpy()).save(changed)
        os.utime(changed, ns=(about.st_atime_ns, about.st_mtime_ns + 1))

    changes: list[tuple[Any, dict[str, Any]]] = [
        (lambda: ImageFiles(photographs), dict(image_size=15)),
        (lambda: ImageFiles(photographs), dict(channels=1)),
        (lambda: ImageFolder(str(photographs)), {}),
        (lambda: Subset(ImageFiles(photographs), range(1, 30)), {}),
        (lambda: Subset(ImageFiles(photographs), range(2, 31)), {}),
        (lambda: ConcatDataset([ImageFiles(photographs), ImageFiles(photographs)]), {}),
        (lambda: rewrite() or ImageFiles(photographs), {}),  # type: ignore[func-returns-value]  # first, then
        (lambda: ImageFolder(str(photographs)), {}),  # of which a file has changed now
    ]
    for count, (dataset, processor) in enumerate(changes, 2):
        data = dataset()
        assert torch.equal(images(data, cache, **processor), images(data, None, **processor))
        assert files(cache) == [".json"] * count + [".npy"] * count
    photographs.rename(tmp_path / "moved")
    images(ImageFiles(tmp_path / "moved"), cache)
    assert len(files(cache)) == 2 * count


def test_images_in_an_array_need_no_cache(tmp_path: Path) -> None:
    data = TensorDataset(uint8_images(20, 3, 16, 16), torch.arange(20))
    assert torch.equal(images(data, tmp_path / "cache"), data.tensors[0])
    assert not (tmp_path / "cache").exists()
    images(data, tmp_path / "cache", image_size=8)
    assert files(tmp_path / "cache") == [".json", ".npy"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="only Linux says what is shared")
def test_processes_share_the_pages(tmp_path: Path) -> None:
    """What the kernel says of the mapping: nothing of it is this process's own."""
    module = datamodule(Slow(tmp_path / "asked"), tmp_path / "cache")
    trainer(tmp_path).fit(Recorder(), datamodule=module)
    smaps = Path("/proc/self/smaps").read_text()
    mapping = smaps[smaps.index(next((tmp_path / "cache").glob("*.npy")).name) :].partition("VmFlags")[0]
    sizes = dict(line.replace("kB", "").split(":") for line in mapping.splitlines()[1:])
    assert int(sizes["Rss"]) > 0
    assert int(sizes["Private_Dirty"]) == 0


def test_workers_are_sent_the_path_and_not_the_images(tmp_path: Path) -> None:
    module = datamodule(Slow(tmp_path / "asked"), tmp_path / "cache")
    module.setup("fit")
    whole = module.splits.images("train")
    assert len(sent := pickle.dumps(whole)) < 2000 < COUNT * 3 * 16 * 16
    assert torch.equal(pickle.loads(sent).batch([3, 999]).images, whole.batch([3, 999]).images)


class Random:
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:  # noqa: ANN401  # torch's
        return iter(uint8_images(20, 3, 8, 8))


class Uneven(list[Tensor]):
    pass


SHAPES = Uneven([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 999 + [torch.zeros(3, 8, 9, dtype=torch.uint8)] * 2)
SHAPES[-1] = SHAPES[0]  # the last is always looked at


@pytest.mark.filterwarnings("ignore:.* images looked at are smaller:UserWarning")
@pytest.mark.parametrize(
    ("dataset", "options", "error", "says"),
    [
        (Random(), {}, ValueError, r"train\[0\] is another image each time .*`augment`"),
        (Stream(), {}, ValueError, r"train is a Stream.*`cache_dir`"),
        (
            SHAPES,
            dict(image_size=None),
            ValueError,
            r"\(3, 8, 8\) and train\[999\] is \(3, 8, 9\).*`image_size`",
        ),
        (Random(), dict(cache_dir=3), TypeError, r"cache_dir=3.*`cache_dir`"),
    ],
    ids=["random", "iterable", "uneven", "no folder"],
)
def test_what_cannot_be_cached_is_refused(
    tmp_path: Path,
    dataset: Any,  # noqa: ANN401  # any dataset
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        datamodule(dataset, options.pop("cache_dir", tmp_path / "cache"), val=None, **options).prepare_data()
    assert not (tmp_path / "cache").exists() or files(tmp_path / "cache") == []


def test_a_broken_image_is_named_and_leaves_nothing(photographs: Path, tmp_path: Path) -> None:
    broken = photographs / "b" / "11.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(OSError, match=r"train\[\d+\]: .*11\.jpg cannot be read as an image"):
        datamodule(ImageFiles(photographs), tmp_path / "cache").prepare_data()
    assert not (tmp_path / "cache").exists() or files(tmp_path / "cache") == []


class Unreachable(Slow):
    """A disk that is away for a while."""

    away = True

    def __getitem__(self, index: int) -> Tensor:
        if self.away and index == 500:
            raise OSError("the disk is away")
        return super().__getitem__(index)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows asks for a privilege")
@pytest.mark.filterwarnings("ignore:replaced by a neighbour")
@pytest.mark.parametrize("kind", [ImageFiles, ImageFolder])
def test_a_link_that_leads_nowhere_is_replaced_as_without_a_cache(kind: Any, photographs: Path, tmp_path: Path) -> None:  # noqa: ANN401  # a class
    (photographs / "a" / "7b.png").symlink_to("nowhere.png")
    replaced: dict[str, Any] = dict(on_bad_item="replace", max_bad_fraction=0.1)
    expected = images(kind(photographs), None, **replaced)
    assert len(expected) == 41
    assert torch.equal(images(kind(photographs), tmp_path / "cache", **replaced), expected)
    with pytest.raises(OSError, match=r"train\[\d+\].*7b\.png"):
        images(kind(photographs), tmp_path / "other")


def test_a_second_try_is_not_kept_waiting_by_the_first(tmp_path: Path) -> None:
    data = Unreachable(tmp_path / "asked")
    with pytest.raises(OSError, match="the disk is away") as raised:
        images(data, tmp_path / "cache")
    data.away = False
    assert len(images(data, tmp_path / "cache")) == COUNT
    assert raised.value.__traceback__ is not None  # which, as in a notebook, has kept everything alive meanwhile


def test_a_folder_that_is_none_is_named(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(OSError, match=r"the cache of train cannot be written to .*cache.*`cache_dir`"):
        datamodule(ImageFiles(photographs), tmp_path / "cache").prepare_data()


def test_a_folder_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        path = tmp_path / "data" / "class" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    monkeypatch.chdir(tmp_path)
    for root in ("data", "./data/", "data/../data", tmp_path / "data"):
        for dataset in (ImageFolder(root), ImageFiles(root)):
            assert images(dataset, tmp_path / "cache").shape == (3, 3, 16, 16)
    monkeypatch.chdir(tmp_path / "data")
    images(ImageFolder("."), tmp_path / "cache")
    images(ImageFiles("."), tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # the same folder, by whatever path
