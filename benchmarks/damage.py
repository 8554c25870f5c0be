"""Small image files with random damage: changed bits and bytes, missing ends, moved parts, absurd lengths.

The damage follows from the file's number. In half of the PNG files the chunks' checksums are corrected after the
damage, because most of the others are refused for their checksums.
"""

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.lossless_jpeg import encode_lossless

_NAMES = (  # of chunks, segments and tags that stand next to lengths
    *(b"IHDR", b"IDAT", b"tRNS", b"PLTE", b"eXIf", b"fcTL", b"fdAT"),
    *(b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xe1", b"Exif"),
    *(b"RIFF", b"VP8", b"ANMF", b"ALPH", b"GIF89a", b"II*", b"\0\x01\x03", b"\x11\x01\x04"),
)


@cache
def originals() -> list[tuple[str, bytes]]:
    """Make the undamaged files, with their suffixes: several modes, kinds of compression and numbers of frames."""
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8).repeat(7, 0).repeat(6, 1)
    rgba = Image.fromarray(values)
    colour, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(8)
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        (".jpg", colour, {"exif": exif}),
        (".jpg", colour, {"progressive": True}),
        (".jpg", grey, {"restart_marker_rows": 1}),
        (".jpg", colour.convert("CMYK"), {}),
        (".png", colour, {"exif": exif}),
        (".png", rgba, {}),
        (".png", palette, {"transparency": 3}),
        (".png", deep, {"transparency": 257}),
        (".png", colour, frames),
        (".webp", colour, {"exif": exif}),
        (".webp", rgba, {"lossless": True}),
        (".webp", colour, frames),
        (".gif", palette, {"transparency": 3}),
        (".gif", colour, frames),
        (".tif", colour, {"exif": exif}),
        (".tif", rgba, {"compression": "tiff_lzw"}),
        (".tif", palette, {"compression": "tiff_adobe_deflate"}),
        (".tif", deep, {"compression": "packbits"}),
        (".tif", colour, {"compression": "jpeg"}),
        (".tif", colour, frames),
    ]
    files = [(suffix, _encode(image, suffix, options)) for suffix, image, options in kinds]
    return [*files, *((".jpg", encode_lossless(np.atleast_3d(np.asarray(image)))) for image in (colour, grey))]


def make_mutant(number: int) -> tuple[str, bytes]:
    """Damage a file.

    Args:
        number: The number from which the choice of the file and its damage follow.

    Returns:
        The file's suffix and its damaged bytes.
    """
    draw = random.Random(number)
    suffix, original = originals()[number % len(originals())]
    content = bytearray(original)
    for damage in draw.choices(_DAMAGES, k=draw.choice((1, 1, 1, 2, 3))):
        if content:
            damage(content, draw)
    return suffix, _fix_checksums(bytes(content)) if suffix == ".png" and draw.random() < 0.5 else bytes(content)


def _flip_bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _flip_header_bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(min(len(content), 64))] ^= 1 << draw.randrange(8)


def _overwrite_run(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    length = min(draw.randint(1, 64), len(content) - start)
    content[start : start + length] = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))


def _cut_end(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _move_part(content: bytearray, draw: random.Random) -> None:
    """Remove a part, repeat it, or replace it by a part of another file."""
    other = draw.choice((content, originals()[draw.randrange(len(originals()))][1]))
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    begin, end = sorted(draw.randrange(len(other) + 1) for _ in range(2))
    content[start : draw.choice((start, stop))] = other[begin : draw.choice((begin, end))]


def _change_length(content: bytearray, draw: random.Random) -> None:
    """Write an absurd number where a length, size or offset may stand: next to a chunk's name, or anywhere."""
    names = [content.find(name) for name in _NAMES if name in content]
    start = draw.choice(
        (*(name + step for name in names for step in (-4, 2, 4, 8)), *draw.choices(range(len(content)), k=4))
    )
    number = draw.choice((0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, len(content)))
    size = draw.choice((2, 4))
    start = max(0, min(start, len(content) - size))
    content[start : start + size] = (number % 2 ** (8 * size)).to_bytes(size, draw.choice(("big", "little")))


def _change_frame(content: bytearray, draw: random.Random) -> None:
    """Have a JPEG's frame header say another coding, precision or number of components; of other files, any byte."""
    starts = [content.find(bytes([0xFF, marker])) for marker in range(0xC0, 0xD0)]
    start = draw.choice([start for start in starts if start >= 0] or [0])
    place, values = draw.choice(((1, range(0xC0, 0xD0)), (4, (2, 8, 12, 16)), (9, range(1, 5))))
    content[min(start + place, len(content) - 1)] = draw.choice(values)


_DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip_bits,
    _flip_header_bits,
    _overwrite_run,
    _cut_end,
    _move_part,
    _change_length,
    _change_frame,
)


def _fix_checksums(content: bytes) -> bytes:
    """Correct the checksums of a PNG file's chunks, as far as the chunks can be followed."""
    png, start = bytearray(content), 8
    while start + 12 <= len(png):
        end = start + 8 + int.from_bytes(png[start : start + 4], "big")
        if end + 4 > len(png):
            break
        png[end : end + 4] = struct.pack(">I", zlib.crc32(png[start + 4 : end]))
        start = end + 4
    return bytes(png)


def _encode(image: Image.Image, suffix: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    image.copy().save(file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()
