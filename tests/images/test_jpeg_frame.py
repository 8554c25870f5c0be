"""Only what libjpeg can reduce is reduced: a lossless JPEG is read whole, however small it is to become."""

from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from benchmarks.lossless_jpeg import encode_lossless
from ddpm_data.images import _simplejpeg
from ddpm_data.images._jpeg_frame import JpegFrame, read_jpeg_frame
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.sources import ImageFiles

_CODINGS = [coding for coding in range(16) if coding not in (4, 8, 12)]


def encode(channels: int = 3, **options: Any) -> bytes:  # noqa: ANN401  # PIL's
    values = np.random.default_rng(0).integers(0, 256, (96, 128, channels), dtype=np.uint8).squeeze()
    file = BytesIO()
    Image.fromarray(values).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("decoder", ["simplejpeg", "PIL"])
def test_a_lossless_jpeg_is_read_whole(
    channels: int, decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """simplejpeg wrote it beyond its buffer, which ended the process; PIL's draft called it broken."""
    if decoder == "PIL":
        monkeypatch.setattr(_simplejpeg, "_find_decoder", lambda: None)
    values = np.random.default_rng(0).integers(0, 256, (512, 400, channels), dtype=np.uint8)
    (tmp_path / "a.jpg").write_bytes(encode_lossless(values))
    whole = torch.from_numpy(values).permute(2, 0, 1)
    for image_size in (None, 32):
        processor = ImageProcessor(image_size=image_size)
        assert torch.equal(processor(ImageFiles(tmp_path)[0]), processor(whole))
        with Image.open(tmp_path / "a.jpg") as opened:  # a file of the user's
            assert torch.equal(processor(opened), processor(whole))


def test_the_frame_header_is_found_where_libjpeg_finds_it() -> None:
    assert read_jpeg_frame(encode()) == JpegFrame(0, 8, 96, 128, 3)
    assert read_jpeg_frame(encode(1, progressive=True)) == JpegFrame(2, 8, 96, 128, 1)
    assert read_jpeg_frame(encode_lossless(np.zeros((5, 7, 3), np.uint8))) == JpegFrame(3, 8, 5, 7, 3)
    hidden = b"\xff\xfe\x00\x06\xff\xc3\x00\x00"  # a comment that holds a marker
    content = encode()
    for inserted in (hidden, b"rubbish", b"\xff\xff\xff", b"\xff\x00", b"\xff\xd3", b"\xff\x01"):
        assert read_jpeg_frame(content[:2] + inserted + content[2:]) == JpegFrame(0, 8, 96, 128, 3)
        with Image.open(BytesIO(content)) as opened:
            assert opened.size == (128, 96)
    scan, frame = content.index(b"\xff\xda"), content.index(b"\xff\xc0")
    for broken in (b"", b"\xff", b"\xff\xd8", content[1:], content[: frame + 7], content[:frame] + content[scan:]):
        assert read_jpeg_frame(broken) is None


def change_frames() -> Iterator[bytes]:
    """JPEG files whose frame headers say what they are not, and files with two frame headers."""
    for content in (encode(), encode(1), encode(progressive=True), encode_lossless(np.zeros((64, 80, 3), np.uint8))):
        place = min(place for marker in (0xC0, 0xC2, 0xC3) if (place := content.find(bytes([0xFF, marker]))) > 0)
        length = 2 + int.from_bytes(content[place + 2 : place + 4])
        for coding in _CODINGS:
            for bits in (2, 8, 12, 16):
                for components in (1, 3, 4):
                    header = bytearray(content[place : place + length])
                    header[1], header[4], header[9] = 0xC0 + coding, bits, components
                    yield content[:place] + header + content[place + length :]
                    if bits == 8:
                        yield content[:place] + header + content[place:]
                        yield content[: place + length] + header + content[place + length :]


def test_frame_headers_of_every_kind_give_what_pil_gives_without_a_draft() -> None:
    """What is no Huffman-coded DCT of 8 bits is PIL's to read, and whole."""
    processor, seen = ImageProcessor(image_size=16, channels=3), set()
    for content in change_frames():
        frame = read_jpeg_frame(content)
        with suppress(OSError):
            opened = Image.open(BytesIO(content))
            ours = expected = None
            with suppress(OSError, ValueError):
                ours = processor(Image.open(BytesIO(content)))
            if frame is not None and not frame.is_reducible():
                with suppress(OSError, ValueError):
                    opened.load()
                    expected = processor(opened)
                assert (ours is None) == (expected is None), frame
                assert ours is None or torch.equal(ours, expected), frame  # type: ignore[arg-type]  # neither is None
                seen.add(frame.coding)
    assert seen >= {3, 5, 9, 10}
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
