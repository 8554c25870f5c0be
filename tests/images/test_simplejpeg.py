"""JPEGs by simplejpeg are those by PIL, bit for bit; whatever it does not take, PIL does."""

import random
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile
from sklearn.datasets import load_sample_images

from ddpm_data.images import _simplejpeg
from ddpm_data.images.processor import ImageProcessor

PHOTOGRAPH = Image.fromarray(load_sample_images().images[0])  # 640 x 427


def jpeg(width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:  # noqa: ANN401  # PIL's
    file = BytesIO()
    PHOTOGRAPH.crop((50, 0, 50 + width, height)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def outcome(content: bytes, **processor: Any) -> object:  # noqa: ANN401  # the processor's
    """The image's values, or what is said of it."""
    try:
        return ImageProcessor(**processor)(opened(content)).tolist()
    except OSError as error:
        return str(error)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401  # a function
    """As where simplejpeg is not installed."""

    def call(content: bytes, **processor: Any) -> object:  # noqa: ANN401  # the processor's
        with monkeypatch.context() as patch:
            patch.setattr(_simplejpeg, "_find_decoder", lambda: None)
            assert _simplejpeg.decode_jpeg(opened(jpeg(20, 20)), None) is None
            return outcome(content, **processor)

    return call


@pytest.mark.parametrize("size", [None, 1, 8, 61, (32, 100), 200])
@pytest.mark.parametrize("shape", [(333, 401), (129, 427), (40, 33), (8, 8)])
def test_values_are_pils_bit_for_bit(shape: tuple[int, int], size: Any, without: Any) -> None:  # noqa: ANN401
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    kinds: list[dict[str, Any]] = [{"subsampling": kind, "quality": 30 + 30 * kind} for kind in (0, 1, 2)]
    kinds += [{"progressive": True}, {"exif": exif}, {"keep_rgb": True}, {"mode": "L"}]
    for options in kinds:
        content = jpeg(*shape, **options)
        assert _simplejpeg.decode_jpeg(opened(content), None) is not None
        for resize in ("cover", "stretch"):
            processor = {"image_size": size, "resize": resize}
            assert outcome(content, **processor) == without(content, **processor), (options, resize)


def test_reduced_as_pils_draft() -> None:
    for width in (16, 63, 64, 65, 129, 400):
        for target in (1, 2, 3, 8, 30, 64):
            content = jpeg(width, 41)
            found = _simplejpeg.decode_jpeg(opened(content), (5, target))
            drafted = opened(content)
            _, box = drafted.draft(None, (2 * target, 10))  # type: ignore[misc]  # it is a JPEG
            assert found is not None
            assert tuple(found.values.shape) == (3, drafted.height, drafted.width)
            assert (found.area or (width, 41)) == box[2:]


def test_an_image_may_be_asked_for_again() -> None:
    """A dataset may keep its opened files: nothing about them changes."""
    picture = opened(jpeg(400, 300))
    first = ImageProcessor(image_size=32)(picture)
    assert picture.size == (400, 300)
    assert torch.equal(ImageProcessor(image_size=32)(picture), first)
    assert ImageProcessor()(picture).shape == (3, 300, 400)


def test_all_else_is_pils() -> None:
    png, drafted, loaded = BytesIO(), opened(jpeg(64, 64)), opened(jpeg(64, 64))
    PHOTOGRAPH.save(png, "PNG")
    drafted.draft("L", (16, 16))
    loaded.load()
    tiny, cmyk = opened(jpeg(7, 64)), opened(jpeg(64, 64, "CMYK"))
    for picture in (opened(png.getvalue()), drafted, loaded, tiny, cmyk, PHOTOGRAPH):
        assert _simplejpeg.decode_jpeg(picture, None) is None
    assert ImageProcessor(channels=4)(opened(jpeg(64, 64))).shape == (4, 64, 64)


def test_a_broken_installation_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simplejpeg.py").write_text('raise ValueError("numpy.dtype size changed")')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "simplejpeg", raising=False)
    _simplejpeg._find_decoder.cache_clear()
    try:
        with pytest.warns(UserWarning, match="size changed.*force-reinstall simplejpeg"):
            assert ImageProcessor()(opened(jpeg(20, 20))).shape == (3, 20, 20)
        assert ImageProcessor()(opened(jpeg(20, 20))).shape == (3, 20, 20)  # a second warning would be an error
    finally:
        _simplejpeg._find_decoder.cache_clear()


def test_damaged_files_give_what_pil_gives(without: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    """Two hundred files with a few bytes changed or the end cut off: PIL shows some of them, and refuses others."""
    draw = random.Random(0)
    whole = jpeg(300, 300, quality=60)
    outcomes = []
    for number in range(200):
        content = bytearray(whole)
        for _ in range(number % 4):
            content[draw.randrange(len(content))] = draw.randrange(256)
        damaged = bytes(content[: len(content) - (number % 3) * draw.randrange(len(content) // 2)])
        try:
            opened(damaged)
        except OSError:
            continue  # nothing that could be decoded
        outcomes.append(outcome(damaged, image_size=16))
        assert outcomes[-1] == without(damaged, image_size=16), number
    assert len([found for found in outcomes if isinstance(found, str)]) > 20
    assert len([found for found in outcomes if isinstance(found, list)]) > 30
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut = whole[: len(whole) // 2]
    assert isinstance(outcome(cut, image_size=16), list)
    assert outcome(cut, image_size=16) == without(cut, image_size=16)
