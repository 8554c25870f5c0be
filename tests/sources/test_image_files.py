"""Folders of images."""

import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles
from ddpm_data.sources.image_files import _sort_names
from tests.conftest import ROOT
from tests.images.test_processor import COLOUR, image, pil


def test_a_folder_is_read_flat_and_nested_in_natural_order(folder: Path) -> None:
    files = ImageFiles(folder)
    assert files.names == ["1.png", "2.png", "10.png", "cats/a.jpg", "cats/B.PNG"]
    assert [picture.size for picture in files] == [(40, 30), (30, 40), (32, 32), (64, 48), (9, 9)]  # type: ignore[attr-defined]
    assert ImageFiles(str(folder)).names == files.names


def test_natural_order_compares_digits_as_numbers_and_text_without_case() -> None:
    """Against lists of texts and numbers; some characters are digits, or become two in lower case."""

    def parts(name: str) -> list[tuple[int, str]]:
        split = re.split(r"(\d+)", name)
        return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in split] + [(0, name)]

    draw = random.Random(0)
    for _ in range(500):
        odd = "0019aAbB/ ._-\x01\x02ΣσςİıKßÅ²½٣๓𝟘\udc80"  # noqa: RUF001  # on purpose
        alphabet = draw.choices(odd, k=draw.randint(2, 6))
        names = {"".join(draw.choices(alphabet, k=draw.randint(1, 8))) for _ in range(20)}
        assert _sort_names(names) == sorted(names, key=parts)


@pytest.mark.slow
def test_a_process_that_has_not_yet_opened_an_image_finds_the_same_files(folder: Path) -> None:
    code = f"from ddpm_data.sources import ImageFiles; print(*ImageFiles({str(folder)!r}).names)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert fresh.stdout.split() == ImageFiles(folder).names


def test_a_wrong_ending_is_no_matter(tmp_path: Path) -> None:
    pil(COLOUR).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPG")
    assert torch.equal(image(ImageFiles(tmp_path)[0]), COLOUR)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*`root`"):
        ImageFiles(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"no image files.*`root`"):
        ImageFiles(tmp_path)


def test_with_labels_the_folders_are_classes_as_for_torchvisions_image_folder(tmp_path: Path) -> None:
    names = ["b/2.png", "B/1.png", "a/x/deep/3.png", "a/10.png", "a/9.jpg", "10/1.png", "9/1.png", "a b/é.png"]
    for level, name in enumerate(names):
        save(tmp_path / name, 20 * level)
    theirs = ImageFolder(tmp_path)
    save(tmp_path / ".hidden" / "1.png")  # left out, with or without labels
    files = ImageFiles(tmp_path, labels=True)
    assert files.classes == theirs.classes == ["10", "9", "B", "a", "a b", "b"]
    expected = {Path(path).relative_to(tmp_path).as_posix(): label for path, label in theirs.samples}
    assert {name: files[index][1] for index, name in enumerate(files.names)} == expected
    assert type(files[0][1]) is int
    assert files.names == ImageFiles(tmp_path).names  # labels change nothing else
    assert ImageFiles(tmp_path).classes == []
    again = pickle.loads(pickle.dumps(files))
    assert [again[index][1] for index in range(len(again))] == [files[index][1] for index in range(len(files))]


def test_images_without_a_class_and_classes_without_an_image_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"the folder\(s\) b in .* hold no images.*`root`"):
        ImageFiles(tmp_path, labels=True)
    save(tmp_path / "b" / "1.png")
    save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1 image\(s\) lie in .* itself, such as 1\.png.*`labels`"):
        ImageFiles(tmp_path, labels=True)
    with pytest.raises(TypeError, match=r"labels='yes'.*`labels`"):
        ImageFiles(tmp_path, labels="yes")  # type: ignore[arg-type]


def test_a_truncated_file_is_named(folder: Path) -> None:
    broken = folder / "cats" / "a.jpg"
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(OSError, match=r"train\[3\]: .*a\.jpg cannot be read as an image: .*truncated"):
        MapStyleImages(ImageFiles(folder), ImageProcessor(), "train").batch([3])
    broken.write_bytes(b"no image")
    with pytest.raises(OSError, match=r"a\.jpg cannot be read as an image: it is of no format"):
        ImageFiles(folder)[3]


needs_links = pytest.mark.skipif(sys.platform == "win32", reason="Windows asks for a privilege")


def save(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)


@needs_links
def test_links_that_lead_nowhere_are_files_that_cannot_be_read(tmp_path: Path) -> None:
    for class_ in ("a", "b"):
        save(tmp_path / class_ / "1.png")
    (tmp_path / "a" / "2.png").symlink_to("nowhere.png")
    (tmp_path / "a" / "3.png").symlink_to("3.png")  # to itself
    (tmp_path / "round").symlink_to("round")
    files = ImageFiles(tmp_path, labels=True)
    assert files.names == ["a/1.png", "a/2.png", "a/3.png", "b/1.png"]
    for number in (1, 2):
        with pytest.raises(OSError, match=rf"{number + 1}\.png cannot be read as an image"):
            files[number]


@needs_links
def test_links_to_folders_and_files_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    """As torchvision's ImageFolder does: class folders are often links."""
    save(tmp_path / "store" / "cats" / "1.png", 10)
    root = tmp_path / "root"
    save(root / "dogs" / "2.png", 20)
    (root / "cats").symlink_to(tmp_path / "store" / "cats")
    (root / "3.png").symlink_to(tmp_path / "store" / "cats" / "1.png")
    (root / "dogs" / "up").symlink_to(root)
    (root / "dogs" / "itself").symlink_to(root / "dogs")
    files = ImageFiles(root)
    assert files.names == ["3.png", "cats/1.png", "dogs/2.png"]
    assert [files[index].getpixel((0, 0)) for index in range(3)] == [10, 10, 20]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_only_files_are_items(tmp_path: Path) -> None:
    """A folder may be called odd.png; opening a named pipe would wait for ever."""
    save(tmp_path / "odd.png" / "1.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert ImageFiles(tmp_path).names == ["odd.png/1.png"]


@needs_links
def test_a_link_that_leads_nowhere_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(OSError, match=r"gone\.png cannot be read as an image: .*No such file"):
        ImageFiles(tmp_path)[0]


def test_images_that_pil_does_not_read_are_counted_once(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    for name in ("a.HEIC", "b.heic", "sub/c.NEF", "notes.txt", "labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"anything")
    with pytest.warns(UserWarning, match=r"3 file\(s\) in .* left out: 2 \.heic, 1 \.nef\.") as caught:
        assert ImageFiles(tmp_path).names == ["1.png"]
    assert len(caught) == 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images were left out in silence. Root may read every folder, so the system's answer is made up."""
    save(tmp_path / "1.png")
    save(tmp_path / "secret" / "2.png")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # noqa: ANN401  # as os.scandir
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"secret cannot be read \(Permission denied\).*`root`"):
        ImageFiles(tmp_path)


@needs_links
def test_a_link_through_a_closed_folder_is_named_and_its_images_are_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look everywhere, so the system's answer is played."""
    save(tmp_path / "elsewhere" / "cats" / "1.png")
    save(tmp_path / "root" / "dogs" / "1.png")
    (tmp_path / "root" / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    scandir = os.scandir

    class Closed:
        def __init__(self, entry: Any) -> None:  # noqa: ANN401  # os.DirEntry
            self.name, self.path, self.is_symlink = entry.name, entry.path, entry.is_symlink

        def is_dir(self) -> bool:
            raise PermissionError(13, "Permission denied", self.path)

    def list_entries(path: str) -> list[Any]:
        return [Closed(entry) if entry.name == "cats" else entry for entry in scandir(path)]

    monkeypatch.setattr(os, "scandir", list_entries)
    with pytest.raises(PermissionError, match=r"cats leads to where nobody may look \(Permission denied\).*`root`"):
        ImageFiles(tmp_path / "root")
