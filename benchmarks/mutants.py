"""Small image files, damaged at random: bits and bytes changed, ends cut off, parts moved, lengths made absurd.

What is done to a file follows from its number. Half of the PNG files get the check sums that their chunks ought to
have, since the others are mostly refused for them.
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

_NAMES = (  # of chunks, segments and tags, beside which lengths stand
    *(b"IHDR", b"IDAT", b"tRNS", b"PLTE", b"eXIf", b"fcTL", b"fdAT"),
    *(b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xe1", b"Exif"),
    *(b"RIFF", b"VP8", b"ANMF", b"ALPH", b"GIF89a", b"II*", b"\0\x01\x03", b"\x11\x01\x04"),
)


@cache
def originals() -> list[tuple[str, bytes]]:
    """Small whole files by their endings: of several modes, kinds of compression and numbers of frames."""
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8).repeat(7, 0).repeat(6, 1)
    clear = Image.fromarray(values)
    colour, grey, palette = clear.convert("RGB"), clear.convert("L"), clear.convert("RGB").quantize(8)
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
        (".png", clear, {}),
        (".png", palette, {"transparency": 3}),
        (".png", deep, {"transparency": 257}),
        (".png", colour, frames),
        (".webp", colour, {"exif": exif}),
        (".webp", clear, {"lossless": True}),
        (".webp", colour, frames),
        (".gif", palette, {"transparency": 3}),
        (".gif", colour, frames),
        (".tif", colour, {"exif": exif}),
        (".tif", clear, {"compression": "tiff_lzw"}),
        (".tif", palette, {"compression": "tiff_adobe_deflate"}),
        (".tif", deep, {"compression": "packbits"}),
        (".tif", colour, {"compression": "jpeg"}),
        (".tif", colour, frames),
    ]
    return [(ending, _saved(image, ending, options)) for ending, image, options in kinds]


def mutant(number: int) -> tuple[str, bytes]:
    """A file's ending and its damaged bytes, which follow from its number."""
    draw = random.Random(number)
    ending, content = originals()[number % len(originals())]
    damaged = bytearray(content)
    for way in draw.choices(_WAYS, k=draw.choice((1, 1, 1, 2, 3))):
        if damaged:
            way(damaged, draw)
    return ending, _mended(bytes(damaged)) if ending == ".png" and draw.random() < 0.5 else bytes(damaged)


def _bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _header_bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(min(len(content), 64))] ^= 1 << draw.randrange(8)


def _run(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    length = min(draw.randint(1, 64), len(content) - start)
    content[start : start + length] = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))


def _end(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _part(content: bytearray, draw: random.Random) -> None:
    """Remove a part, say it twice, or put one of another file in its place."""
    other = draw.choice((content, originals()[draw.randrange(len(originals()))][1]))
    start, stop = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    begin, end = sorted(draw.randrange(len(other) + 1) for _ in range(2))
    content[start : draw.choice((start, stop))] = other[begin : draw.choice((begin, end))]


def _length(content: bytearray, draw: random.Random) -> None:
    """Put an absurd number where a length, a size or an offset may be: right before or after a name, or anywhere."""
    names = [content.find(name) for name in _NAMES if name in content]
    place = draw.choice(
        (*(name + step for name in names for step in (-4, 2, 4, 8)), *draw.choices(range(len(content)), k=4))
    )
    number = draw.choice((0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, len(content)))
    size = draw.choice((2, 4))
    place = max(0, min(place, len(content) - size))
    content[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, draw.choice(("big", "little")))


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (_bits, _header_bits, _run, _end, _part, _length)


def _mended(content: bytes) -> bytes:
    """A PNG file with the check sums that its chunks ought to have, as far as they can be followed."""
    mended, place = bytearray(content), 8
    while place + 12 <= len(mended):
        end = place + 8 + int.from_bytes(mended[place : place + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = struct.pack(">I", zlib.crc32(mended[place + 4 : end]))
        place = end + 4
    return bytes(mended)


def _saved(image: Image.Image, ending: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    image.copy().save(file, Image.registered_extensions()[ending], **options)
    return file.getvalue()
