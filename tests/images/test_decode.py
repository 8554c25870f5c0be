"""Files are decoded upright, and at a reduced size where that looks the same."""

import io
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

from ddpm_data.images import _simplejpeg, decode
from ddpm_data.images.decode import ResizeSpec, _scale_to
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.sources import ImageFiles
from tests.groups import PATIENCE
from tests.images.test_processor import image


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert image(ImageFiles(tmp_path)[0]).shape == (3, 8, 4)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG files of many sizes, upright, turned and mirrored by their EXIF tag, grey and CMYK too."""
    folder = tmp_path_factory.mktemp("photographs")
    pictures = [Image.fromarray(values) for values in load_sample_images().images]  # 640 x 427
    paths = []
    for number, (width, height) in enumerate([(640, 427), (333, 401), (257, 300), (129, 427), (427, 131), (301, 303)]):
        picture = pictures[number % 2].crop((50, 0, 50 + width, height))
        for orientation in range(1, 9):
            paths.append(folder / f"{number} {orientation}.jpg")
            exif = picture.getexif()
            exif[0x0112] = orientation
            picture.save(paths[-1], quality=90, exif=exif)
        for mode in ("L", "CMYK"):
            paths.append(folder / f"{number} {mode}.jpg")
            picture.convert(mode).save(paths[-1], quality=90)
    return paths


@pytest.mark.parametrize("size", [16, 61, (32, 100), (90, 40), 200])
def test_jpegs_decoded_at_a_reduced_size_look_like_those_that_are_not(photographs: list[Path], size: Any) -> None:  # noqa: ANN401
    """The reference is PIL's antialiased resizing of the whole image, then the centre: less than 2 levels off."""
    height, width = (size, size) if isinstance(size, int) else size
    reduced = 0
    for path in photographs:
        ours = image(Image.open(path), image_size=size)
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
        whole = upright.convert("L" if upright.mode == "L" else "RGB")
        covering = ResizeSpec((height, width)).target(whole.height, whole.width)
        expected = F.center_crop(
            F.pil_to_tensor(whole.resize((covering[1], covering[0]), Image.Resampling.BILINEAR)), [height, width]
        )
        assert ours.shape == expected.shape
        difference = (ours.int() - expected.int()).abs().float().mean()
        reduced += bool(difference > 0.1)
        assert difference < 2, (path.name, difference)
    if size == 16:
        assert reduced > len(photographs) / 2  # else nothing was decoded at a reduced size


SIDES = [
    (196, 196, 32),
    (500, 374, 64),
    (700, 467, 64),
    (550, 412, 64),
    (640, 428, 32),
    (98 * 8, 1001, 32),
    (399, 257, 64),
]


@pytest.mark.parametrize(("width", "height", "size"), SIDES)
@pytest.mark.parametrize("decoder", ["simplejpeg", "PIL"])
def test_a_reduced_size_is_never_a_pixel_short(
    width: int, height: int, size: int, decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was where ``98 * (32 / 98)`` fell below 32: the 31 pixels were then stretched, 8 to 21 levels off."""
    if decoder == "PIL":
        monkeypatch.setattr(_simplejpeg, "_find_decoder", lambda: None)
    photograph = Image.fromarray(load_sample_images().images[0]).resize((width, height), Image.Resampling.LANCZOS)
    photograph.save(tmp_path / "a.jpg", quality=95)
    processor = ImageProcessor(image_size=size)
    decoded = processor.decode(ImageFiles(tmp_path)[0])
    assert tuple(decoded.shape[1:]) == ResizeSpec((size, size)).target(height, width)
    with Image.open(tmp_path / "a.jpg") as opened:
        target = ResizeSpec((size, size)).target(height, width)
        resized = F.pil_to_tensor(opened.resize((target[1], target[0]), Image.Resampling.BILINEAR))
    expected = F.center_crop(resized, [size, size])
    assert (processor.convert(decoded).int() - expected.int()).abs().float().mean() < 2


def test_sizes_are_exact_for_every_side_up_to_4096() -> None:
    """The reduced size of a side comes out at the size that is asked for, and a covered one as in whole numbers."""
    for size in (32, 48, 56, 64, 96, 128, 256, 512):
        for side in range(1, 4097):
            for divisor in (1, 2, 4, 8):
                if side >= 2 * size * divisor:
                    assert int(-(-side // divisor) * _scale_to(size, side / divisor, -(-side // divisor))) == size
            for other in (side, side + 1, min(4096, 8 * side)):
                low, high = sorted((side, other))
                assert ResizeSpec((size, size)).target(low, high) == (size, size * high // low)
                assert ResizeSpec((size, size)).target(high, low) == (size * high // low, size)


@pytest.mark.parametrize("opened", ["a path", "a file", "bytes"])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "grey", "turned"])
def test_images_that_the_user_keeps_stay_as_they_are(opened: str, kind: str, tmp_path: Path) -> None:
    """They were left at a quarter of their size, so that a second DataModule got blurred images."""
    photograph = Image.fromarray(load_sample_images().images[0])
    exif = photograph.getexif()
    exif[0x0112] = 6 if kind == "turned" else 1
    photograph = photograph.convert("L") if kind == "grey" else photograph
    photograph.save(tmp_path / "a.jpg", format="MPO" if kind == "MPO" else "JPEG", exif=exif)
    path = tmp_path / "a.jpg"
    with path.open("rb") as file, Image.open(path) as other:
        kept = Image.open({"a path": path, "a file": file, "bytes": io.BytesIO(path.read_bytes())}[opened])
        size, tag = kept.size, kept.getexif().get(0x0112)
        first = image(kept, image_size=32)
        assert kept.size == size
        assert kept.getexif().get(0x0112) == tag
        assert torch.equal(image(kept, image_size=32), first)
        assert image(kept, image_size=200).shape == (first.shape[0], 200, 200)
        assert torch.equal(image(kept), image(other))  # at full size, as one that was never reduced
        kept.close()


def test_a_dropped_image_leaves_no_file_open(tmp_path: Path) -> None:
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = Image.open(tmp_path / "a.jpg")
        file = opened.fp  # type: ignore[attr-defined]  # PIL's
        image(opened, image_size=32)
        assert file.closed


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_an_image_with_damaged_exif_data_is_upright(kind: str, tmp_path: Path) -> None:
    picture = Image.fromarray(load_sample_images().images[0]).crop((0, 0, 40, 30))
    picture.save(tmp_path / f"good.{kind}", lossless=True, quality=95)
    picture.save(tmp_path / f"bad.{kind}", exif=b"Exif\x00\x00nonsense", lossless=True, quality=95)
    assert b"nonsense" in (tmp_path / f"bad.{kind}").read_bytes()
    bad, good = ImageFiles(tmp_path)
    assert torch.equal(image(bad), image(good))


def test_a_reduced_size_is_for_files_that_are_not_yet_decoded(photographs: list[Path], tmp_path: Path) -> None:
    picture = Image.open(photographs[0])
    picture.load()
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(image(picture, image_size=32), image(whole, image_size=32))
    assert image(ImageFiles(photographs[0].parent)[0]).shape == (3, 427, 640)  # no size is asked for
    (tmp_path / "class").mkdir()
    shutil.copy(photographs[0], tmp_path / "class")
    opened, _ = ImageFolder(str(tmp_path), loader=Image.open)[0]
    reduced = image(ImageFiles(tmp_path)[0], image_size=32)
    assert torch.equal(
        image(opened, image_size=32), reduced
    )  # torchvision's folders can give files not yet decoded too
    assert not torch.equal(reduced, image(whole, image_size=32))
    assert opened.size == (640, 427)


GREY_AND_CLEAR = {  # two pixels, the second of which is transparent
    "LA": lambda: Image.merge("LA", [Image.new("L", (2, 1), 40), two_pixels(255, 0)]),
    "La": lambda: Image.merge("LA", [Image.new("L", (2, 1), 40), two_pixels(255, 0)]).convert("La"),
    "L": lambda: with_transparency(two_pixels(40, 90), 90),
    "I;16": lambda: with_transparency(Image.fromarray(np.array([[40 * 257, 90 * 257]], np.uint16)), 90 * 257),
    "1": lambda: with_transparency(two_pixels(255, 0).convert("1"), 0),
}


def two_pixels(left: int, right: int) -> Image.Image:
    return Image.fromarray(np.array([[left, right]], np.uint8))


def with_transparency(picture: Image.Image, value: int) -> Image.Image:
    picture.info["transparency"] = value
    return picture


@pytest.mark.parametrize("mode", GREY_AND_CLEAR)
@pytest.mark.parametrize("background", ["green", (200, 0, 10)])
def test_a_coloured_background_shows_under_grey_images_too(mode: str, background: Any) -> None:  # noqa: ANN401
    """It turned grey: (75, 75, 75) for green's (0, 128, 0)."""
    grey, colour = 255 if mode == "1" else 40, (0, 128, 0) if background == "green" else background
    make = GREY_AND_CLEAR[mode]
    shown = image(make(), channels=3, background=background)[:, 0]
    assert shown[:, 0].tolist() == [grey] * 3
    assert tuple(shown[:, 1].tolist()) == colour
    kept = image(make(), channels=4, background=background)[:, 0]
    assert kept[:, 0].tolist() == [grey] * 3 + [255]
    assert tuple(kept[:, 1].tolist()) == (*colour, 0)
    luma = round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    for channels in (1, None):
        assert image(make(), channels=channels, background=background).tolist() == [[[grey, luma]]]
    assert image(make(), channels=3, background="white")[:, 0].tolist() == [[grey, 255]] * 3


LARGE = [  # mode, file, and the processor's value range
    ("I;16", ".png", None),
    ("I;16", ".png", (0, 65535)),
    ("I;16", ".tif", None),
    ("RGBA", ".png", None),
    ("P with transparency", ".png", None),
    ("LA", ".png", None),
    ("RGB", ".png", None),
    ("L", ".png", None),
    ("CMYK", ".tif", None),
]


def large(mode: str, side: int) -> Image.Image:
    """A picture of one slope, which compresses well."""
    slope = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8), (side, side)).T.copy()
    picture = Image.fromarray(slope)
    if mode == "I;16":
        return Image.fromarray(slope.astype(np.uint16) * 257)
    if mode == "P with transparency":
        return with_transparency(picture.convert("P"), 3)
    if mode in ("LA", "RGBA"):
        picture = picture.convert(mode)
        picture.putalpha(128)
    return picture.convert(mode)


@pytest.mark.parametrize(("mode", "suffix", "value_range"), LARGE)
@pytest.mark.parametrize("size", [32, (40, 90), None])
def test_large_images_are_read_in_strips_to_the_same_values(
    mode: str,
    suffix: str,
    value_range: tuple[int, int] | None,
    size: int | tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    large(mode, 400).rotate(7).save(tmp_path / f"a{suffix}")
    values = []
    for pixels in (2**30, 999):  # of a strip: all, and two rows
        monkeypatch.setattr(decode, "_STRIP_PIXELS", pixels)
        for resize in ("cover", "stretch"):
            processor = ImageProcessor(
                image_size=size, channels=3, value_range=value_range, resize=resize, background="green"
            )
            values.append(processor(ImageFiles(tmp_path)[0]))
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], values[3])


PEAK_JOB = """
import os, resource, sys
from pathlib import Path
import torch
from PIL import Image
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.sources import ImageFiles

def measure(folder, value_range):
    processor = ImageProcessor(image_size=64, channels=3, value_range=value_range)
    large, small = ImageFiles(folder)  # "0 large" and "1 small"
    processor(small)
    large.getextrema()  # where PIL maps a file, it is not in memory before its pixels are looked at
    pil = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del large
    image = processor(ImageFiles(folder)[0])
    assert image.dtype == torch.uint8
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - pil) * 1024

torch.set_num_threads(1)
for folder, value_range in eval(sys.argv[1]):
    if os.fork() == 0:  # a process that has done nothing yet but to import
        print(measure(folder, value_range), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts otherwise elsewhere")
def test_memory_beside_pils_is_less_than_a_byte_per_pixel(tmp_path: Path) -> None:
    """At 4,000 x 4,000 made smaller; a grey image of 16 bits took 30."""
    kinds = [LARGE[0], *LARGE[2:6]]
    cases = []
    for mode, suffix, value_range in kinds:
        cases.append((str(folder := tmp_path / f"{mode}{suffix}"), value_range))
        folder.mkdir()
        large(mode, 4000).save(folder / f"0 large{suffix}")
        large(mode, 600).save(folder / f"1 small{suffix}")  # of two strips, so that all the code is in memory
    job = [sys.executable, "-c", PEAK_JOB, repr(cases)]
    least = [sys.maxsize] * len(kinds)
    for _ in range(3):  # the system may give huge pages, of which only a part is used
        result = subprocess.run(job, capture_output=True, text=True, timeout=PATIENCE, check=False)
        taken = [int(more) for more in result.stdout.split()]
        assert len(taken) == len(kinds), result.stderr
        least = list(map(min, least, taken))
        if max(least) < 4000 * 4000:
            return
    pytest.fail(f"bytes more than PIL's: {dict(zip(map(str, kinds), least, strict=True))}")


def stripes(side: int, period: float) -> np.ndarray[Any, Any]:
    wave = np.sign(np.sin(2 * np.pi * np.arange(side) / period + 0.7))
    return np.broadcast_to((127.5 + 127.5 * wave).astype(np.uint8), (side, side))


def difference_from_pil(values: np.ndarray[Any, Any], size: int) -> float:
    """Mean levels between a square JPEG at a reduced size and PIL's resizing of the whole."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=95)
    ours = image(Image.open(file), image_size=size)
    expected = F.pil_to_tensor(Image.open(file).resize((size, size), Image.Resampling.BILINEAR))
    return float((ours.int() - expected.int()).abs().float().mean())


def test_a_reduced_size_is_further_off_where_there_are_high_frequencies_only() -> None:
    """docs/how-to/speed.md says how far: 4 levels for noise, 25 for stripes near what the reduced size can show."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for size in (32, 48, 64, 128):
        assert difference_from_pil(noise, size) < 4
    worst = [
        difference_from_pil(stripes(2 * divisor * 32, period), 32)
        for divisor in (2, 4, 8)
        for period in np.arange(divisor, 3 * divisor, divisor / 8)
    ]
    assert 15 < max(worst) < 25
