"""TIFF files with a plane per channel are read right, or refused by name."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm_data.images.processor import ImageProcessor
from ddpm_data.sources import ImageFiles
from tests.images.test_processor import image

SHORT, LONG = 3, 4
PHOTOMETRIC = {1: 1, 2: 1, 3: 2, 4: 2}
OPAQUE = {2: 1, 4: 3}  # by the number of channels, which of them is the alpha


def planar_tiff(values: np.ndarray[Any, Any], compression: int, order: str, photometric: int | None = None) -> bytes:
    """A TIFF file with a plane per channel, as PIL writes none, of uint8 or uint16."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    planes = [values[..., channel].astype(values.dtype.newbyteorder(order)).tobytes() for channel in range(channels)]
    planes = [zlib.compress(plane) if compression != 1 else plane for plane in planes]
    entries = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [bits] * channels),
        (259, SHORT, [compression]),
        (262, SHORT, [photometric or PHOTOMETRIC[channels]]),
        (273, LONG, [0] * channels),
        (277, SHORT, [channels]),
        (278, LONG, [height]),
        (279, LONG, [len(plane) for plane in planes]),
        (284, SHORT, [2]),
    ]
    if channels in OPAQUE and photometric is None:
        entries.append((338, SHORT, [2]))
    sizes = [len(numbers) * (2 if kind == SHORT else 4) for _, kind, numbers in entries]
    start = 8 + 2 + 12 * len(entries) + 4
    first = start + sum(size for size in sizes if size > 4)
    ends = np.cumsum([first, *map(len, planes)]).tolist()
    header, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, kind, numbers in entries:
        numbers = ends[:-1] if tag == 273 else numbers
        field = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        if len(field) > 4:
            field, beyond = struct.pack(order + "I", start + len(beyond)), beyond + field
        header += struct.pack(order + "HHI", tag, kind, len(numbers)) + field.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + header + bytes(4) + beyond + b"".join(planes)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("channels", "photometric"), [(2, None), (3, None), (4, None), (4, 5)])
def test_planes_are_read_right_or_refused_by_name(
    channels: int, photometric: int | None, bits: int, compression: int, order: str, tmp_path: Path
) -> None:
    """16 bits uncompressed came out as noise, and grey with alpha as the background."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 12, channels))
    if photometric is None and channels in OPAQUE:
        levels[..., OPAQUE[channels]] = 255
    stored = levels.astype(np.uint8) if bits == 8 else (levels * 257).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(planar_tiff(stored, compression, order, photometric))
    if channels == 2 or (bits == 16 and compression == 1):
        says = r"a\.tif.*" if channels == 2 else r"a\.tif.*channels of 16 bits in planes"
        with pytest.raises(OSError, match=says):
            image(ImageFiles(tmp_path)[0], channels=3)
        return
    ours = image(ImageFiles(tmp_path)[0], channels=3)
    if photometric == 5:
        expected = np.array(Image.fromarray(levels.astype(np.uint8), "CMYK").convert("RGB"))
    else:
        expected = levels[..., :3] if channels > 2 else levels[..., :1].repeat(3, -1)
    assert ours.permute(1, 2, 0).tolist() == expected.tolist()


def test_planes_that_were_loaded_before_are_refused_too() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 12, 3)).astype(np.uint16)
    opened = Image.open(io.BytesIO(planar_tiff(values, 1, "<")))
    opened.load()
    with pytest.raises(OSError, match=r"3 channels of 16 bits in planes.*tiffcp"):
        ImageProcessor()(opened)
