"""A zoo of images, made on the crop_offset: every mode and format there is, and everything that only looks like one.

The good ones are two rows of two colours each, so that a swapped channel, a turn, a mirroring or a transposition shows.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageCms, features
from torch import Tensor

Cell = int | tuple[int, ...]
Grid = tuple[tuple[Cell, ...], ...]  # rows of the colours of an image's equal parts
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

RED, GREEN, BLUE, GOLD = (220, 30, 40), (30, 180, 60), (20, 60, 200), (230, 200, 40)
WHITE = (255, 255, 255)
COLOURS: Grid = ((RED, GREEN), (BLUE, GOLD))
GREYS: Grid = ((10, 90), (170, 250))
BITS: Grid = ((255, 0), (0, 0))
CLEAR: Grid = (((*RED, 255), (*GREEN, 0)), ((*BLUE, 255), (*GOLD, 0)))  # what is hidden has colours too
SHOWN: Grid = ((RED, WHITE), (BLUE, WHITE))
CLEAR_GREYS: Grid = (((10, 10, 10, 255), (90, 90, 90, 0)), ((170, 170, 170, 255), (250, 250, 250, 0)))
SHOWN_GREYS: Grid = ((10, 255), (170, 255))
CLEAR_KEPT: Grid = (((10, 10, 10, 255), (*WHITE, 0)),)
LUMA: Grid = ((88, 121), (64, 191))  # of COLOURS, ITU-R 601
OTHERS: Grid = ((GOLD, BLUE), (GREEN, RED))  # later frames, which nobody is to see
SIZE = (48, 32)  # width, height
UNREADABLE = "cannot be read as an image"
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
NOTHING: Mapping[str, Any] = {}

_STORED = {  # what an EXIF orientation undoes
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


class Good(NamedTuple):
    """An image, and what is to become of it.

    Attributes:
        name: What it is; of a file, its name.
        make: Gives the item, or a file's bytes.
        expected: The colours of its parts, as many values each as there are channels; with three channels a number is
            a grey.
        processor: What the DataModule is told beside a size of 16 and 3 channels.
        tolerance: Levels of 255 that a lossy format or colour space may be off.
    """

    name: str
    make: Callable[[], object]
    expected: Grid
    processor: Mapping[str, Any]
    tolerance: int


class Bad(NamedTuple):
    """What no image can be made of.

    Attributes:
        name: What it is; of a file, its name.
        make: Gives the item, a file's bytes, or the exception that the dataset raises in its place.
        error: What is raised instead of an image.
        match: What its message has after the item's name, a regular expression.
        processor: What the DataModule is told beside a size of 16 and 3 channels.
    """

    name: str
    make: Callable[[], object]
    error: type[Exception]
    match: str
    processor: Mapping[str, Any]


def is_file(entry: Good | Bad) -> bool:
    """Whether it is one, and not an item."""
    return "." in entry.name


def painted(grid: Grid = COLOURS, size: tuple[int, int] = SIZE) -> Bytes:
    """A grid's colours, ``(height, width)`` or ``(height, width, channels)``."""
    cells = np.array(grid, np.uint8)
    return cells.repeat(size[1] // cells.shape[0], 0).repeat(size[0] // cells.shape[1], 1)


def picture(grid: Grid, mode: str | None = None, size: tuple[int, int] = SIZE) -> Image.Image:
    """A grid as a PIL image."""
    values = painted(grid, size)
    if mode is not None and mode.startswith("I"):
        kind = "i4" if mode == "I" else ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, size, (values.astype(int) * 257).astype(kind).tobytes())
    image = Image.fromarray(values)
    if mode in ("P", "PA") and image.mode != "L":
        image = image.quantize(4)  # the palette that converting takes has other colours
    if mode == "La":
        image = image.convert("LA")
    return image if mode in (None, image.mode) else image.convert(mode)


def content(image: Image.Image, ending: str, turned: int = 1, more: int = 0, **options: Any) -> bytes:  # noqa: ANN401
    """A file's bytes; stored such that EXIF orientation ``turned`` brings the image back; of ``more`` frames."""
    if turned != 1:
        exif = Image.Exif()
        exif[0x0112] = turned
        options["exif"] = exif
        image = image.transpose(_STORED[turned])
    if more:
        options |= {"save_all": True, "append_images": [picture(OTHERS) for _ in range(more)]}
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[ending], **options)
    return file.getvalue()


def png(depth: int, kind: int, values: Bytes, size: tuple[int, int] = SIZE, packed: bytes | None = None) -> bytes:
    """A PNG file as PIL writes none: any depth and kind of its rows of bytes, any size it claims."""
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows) if packed is None else packed)
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG file's chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def file(
    name: str,
    grid: Grid = COLOURS,
    mode: str | None = None,
    expected: Grid | None = None,
    tolerance: int = 2,
    size: tuple[int, int] = SIZE,
    processor: Mapping[str, Any] = NOTHING,
    **options: Any,  # noqa: ANN401  # PIL's own
) -> Good:
    """A file that PIL writes, with options of its own."""

    def make() -> bytes:
        return content(picture(grid, mode, size), Path(name).suffix, **options)

    return Good(name, make, grid if expected is None else expected, processor, tolerance)


def crafted(name: str, make: Callable[[], bytes], expected: Grid = COLOURS, **processor: Any) -> Good:  # noqa: ANN401
    """A file that PIL does not write."""
    return Good(name, make, expected, processor, 2)


def item(
    name: str,
    make: Callable[[], object],
    expected: Grid = COLOURS,
    tolerance: int = 2,
    **processor: Any,  # noqa: ANN401  # whatever the processor takes
) -> Good:
    """Something else than a file."""
    return Good(name, make, expected, processor, tolerance)


def one_index(ending: str) -> bytes:
    """A palette file in which one colour, GREEN, is transparent."""
    image = picture(COLOURS, "P")
    return content(image, ending, transparency=image.getpixel((40, 5)))


def unmarked(jpeg: bytes) -> bytes:
    """A JPEG file without Adobe's marker."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def packed_bits(values: Bytes, depth: int) -> Bytes:
    """Rows of grey levels as PNG packs them into ``depth`` bits each."""
    bits = np.unpackbits((values >> (8 - depth) << (8 - depth))[..., None], axis=-1)[..., :depth]
    return np.packbits(bits.reshape(len(values), -1), axis=-1)


def deep(grid: Grid) -> Bytes:
    """A grid at 16 bits a value, in the bytes and order that PNG has them in."""
    return (painted(grid).astype(">u2") * 257).view(np.uint8).reshape(SIZE[1], -1)


def profile() -> bytes:
    """An ICC profile that nobody is to heed."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


MORE = {"more": 2}  # frames
GREY = {"channels": None}  # grey stays so
ALPHA = {"channels": 4}
EXACT = {"image_size": None}
ENLARGED = {"image_size": 64}
LOSSY = 8

# The oldest that we take, 11.2, writes no QOI and no Zstandard, and cannot read the MPO and YCbCr that it writes.
IS_NEW_PILLOW = tuple(map(int, PIL.__version__.split(".")[:2])) >= (12, 3)

FILES = (
    file("bits.png", BITS, "1"),
    file("grey.png", GREYS, "L"),
    file("grey alpha.png", CLEAR_GREYS, "LA", SHOWN_GREYS),
    file("palette.png", mode="P"),
    file("palette of 2 bits.png", mode="P", bits=2),
    file("palette alpha.png", CLEAR, "P", SHOWN),
    crafted("palette with a clear index.png", lambda: one_index(".png"), ((RED, WHITE), (BLUE, GOLD))),
    file("colour.png"),
    file("colour alpha.png", CLEAR, expected=SHOWN),
    file("clear colour.png", expected=((RED, WHITE), (BLUE, GOLD)), transparency=GREEN),
    file("clear grey.png", GREYS, "L", ((10, 255), (170, 250)), transparency=90),
    file("clear grey of 16 bits.png", GREYS, "I;16", ((10, 255), (170, 250)), transparency=90 * 257),
    file("grey of 16 bits.png", GREYS, "I;16"),
    crafted("colour of 16 bits.png", lambda: png(16, 2, deep(COLOURS))),
    crafted("alpha of 16 bits.png", lambda: png(16, 6, deep(CLEAR)), SHOWN),
    crafted(
        "grey of 2 bits.png", lambda: png(2, 0, packed_bits(painted(((0, 85), (170, 255))), 2)), ((0, 85), (170, 255))
    ),
    file("profile.png", icc_profile=profile()),
    file("animated.png", **MORE),
    file("default image.png", **MORE, default_image=True),
    file("colour.apng", **MORE),
    file("baseline.jpg", tolerance=LOSSY),
    file("progressive.jpg", tolerance=LOSSY, progressive=True),
    file("all chroma.jpeg", tolerance=LOSSY, subsampling="4:4:4"),
    file("restarts.jpg", tolerance=LOSSY, restart_marker_rows=1),
    file("grey.jpg", GREYS, "L", tolerance=LOSSY),
    file("Adobe CMYK.jpg", mode="CMYK", tolerance=LOSSY),
    crafted("CMYK.jpg", lambda: unmarked(content(picture(COLOURS, "CMYK"), ".jpg", quality=100))),
    file("no YCbCr.jpg", keep_rgb=True, tolerance=LOSSY),
    file("profile.jpg", tolerance=LOSSY, icc_profile=profile()),
    file("reduced.jpg", tolerance=LOSSY, size=(480, 320)),
    file("still.gif"),
    file("grey.gif", GREYS, "L"),
    file("animated.gif", **MORE),
    crafted("clear.gif", lambda: one_index(".gif"), ((RED, WHITE), (BLUE, GOLD))),
    file("clear animated.gif", CLEAR, "RGBA", SHOWN, **MORE),
    file("lossy.webp", tolerance=LOSSY),
    file("lossless.webp", lossless=True),
    file("clear lossy.webp", CLEAR, expected=SHOWN, tolerance=LOSSY),
    file("clear lossless.webp", CLEAR, expected=SHOWN, lossless=True, exact=True),
    file("animated.webp", lossless=True, **MORE),
    file("raw.tif"),
    file("bits.tif", BITS, "1"),
    file("fax.tif", BITS, "1", compression="group4"),
    file("grey lzw.tif", GREYS, "L", compression="tiff_lzw"),
    file("grey alpha.tif", CLEAR_GREYS, "LA", SHOWN_GREYS),
    file("palette.tif", mode="P", compression="packbits"),
    file("palette and alpha.tif", CLEAR, "PA", SHOWN),
    file("deflate.tiff", compression="tiff_adobe_deflate"),
    file("jpeg.tif", compression="jpeg", tolerance=LOSSY),
    file("alpha.tif", CLEAR, expected=SHOWN, compression="tiff_lzw"),
    file("CMYK.tif", mode="CMYK"),
    file("16 bits.tif", GREYS, "I;16"),
    file("16 bits, big-endian.tif", GREYS, "I;16B"),
    file("32 bits.tif", GREYS, "I"),
    file("pages.tif", **MORE),
    file("big.tif", big_tiff=True),
    file("bits.bmp", BITS, "1"),
    file("grey.bmp", GREYS, "L"),
    file("palette.bmp", mode="P"),
    file("colour.bmp"),
    file("alpha.bmp", CLEAR, expected=COLOURS),  # PIL reads no alpha of these
    file("colour.dib"),
    file("bits.pbm", BITS, "1"),
    file("grey.pgm", GREYS, "L"),
    file("grey of 16 bits.pgm", GREYS, "I"),
    file("colour.ppm"),
    crafted(
        "plain.ppm", lambda: b"P3 24 24 255\n" + " ".join(map(str, painted(size=(24, 24)).flat)).encode(), **ENLARGED
    ),
    file("colour.tga"),
    file("alpha.tga", CLEAR, expected=SHOWN, compression="tga_rle"),
    file("colour.ico", sizes=[SIZE]),
    file("alpha.ico", CLEAR, expected=SHOWN, sizes=[SIZE]),
    file("colour.jp2"),
    file("grey.jp2", GREYS, "L"),
    file("16 bits.jp2", GREYS, "I;16"),
    file("alpha.j2k", CLEAR, expected=SHOWN),
    file("colour.pcx"),
    file("palette.pcx", mode="P"),
    file("colour.sgi"),
    file("grey.sgi", GREYS, "L"),
    file("colour.dds"),
    file("alpha.dds", CLEAR, expected=SHOWN),
    file("bits.msp", BITS, "1"),
    file("float.tif", ((0, 64), (128, 255)), "F", processor={"value_range": (0, 255)}),
    file("one pixel.png", ((RED,),), size=(1, 1), processor=EXACT),
    file("one pixel, enlarged.png", ((RED,),), size=(1, 1), processor=ENLARGED),
    file("one column.png", ((RED,), (BLUE,)), size=(1, 64), processor={"image_size": (64, 1)}),
    file("one row.png", ((RED, BLUE),), size=(64, 1), processor={"image_size": (1, 64)}),
    file("very wide.png", ((RED, BLUE),), size=(4000, 16)),
    file("odd.jpg", ((RED,), (BLUE,)), size=(33, 58), tolerance=LOSSY),
    file("exact.png", processor=EXACT),
    file("exact.webp", processor=EXACT, lossless=True),
)
if IS_NEW_PILLOW:
    FILES += (
        file("zstd.tif", compression="zstd"),
        crafted("several pictures.jpg", lambda: content(picture(COLOURS), ".mpo", quality=95, more=2)),
        file("YCbCr.tif", mode="YCbCr", tolerance=4),
        file("colour.qoi"),
        file("alpha.qoi", CLEAR, expected=SHOWN),
    )
if features.check("avif"):
    FILES += (
        file("colour.avif", tolerance=LOSSY),
        file("alpha.avif", CLEAR, expected=SHOWN, tolerance=LOSSY),
        file("animated.avif", tolerance=LOSSY, **MORE),
    )

TURNED = tuple(
    file(f"{turned}{ending}", tolerance=LOSSY if ending == ".jpg" else 2, turned=turned, **options)
    for ending, options in ((".jpg", {}), (".png", {}), (".webp", {"lossless": True}), (".tif", {}))
    for turned in _STORED
)

POLICIES = (
    file("kept grey.png", GREYS, "L", processor=GREY),
    file("kept bits.png", BITS, "1", processor=GREY),
    file("kept grey alpha.png", CLEAR_GREYS, "LA", SHOWN_GREYS, processor=GREY),
    file("kept clear grey.png", GREYS, "L", ((10, 255), (170, 250)), transparency=90, processor=GREY),
    file("kept deep grey.png", GREYS, "I;16", processor=GREY),
    file("kept grey.jpg", GREYS, "L", tolerance=LOSSY, processor=GREY),
    file("luma.png", expected=LUMA, processor={"channels": 1}),
    file("luma of alpha.png", CLEAR, expected=((88, 255), (64, 255)), processor={"channels": 1}),
    file("alpha kept.png", CLEAR, expected=(((*RED, 255), (*WHITE, 0)), ((*BLUE, 255), (*WHITE, 0))), processor=ALPHA),
    file("alpha of opaque.png", expected=(((*RED, 255), (*GREEN, 255)), ((*BLUE, 255), (*GOLD, 255))), processor=ALPHA),
    file("alpha of grey.png", ((9,),), "L", (((9, 9, 9, 255),),), processor=ALPHA),
    crafted(
        "clear index kept.gif",
        lambda: one_index(".gif"),
        (((*RED, 255), (*WHITE, 0)), ((*BLUE, 255), (*GOLD, 255))),
        **ALPHA,
    ),
    file(
        "clear colour kept.png",
        expected=(((*RED, 255), (*WHITE, 0)), ((*BLUE, 255), (*GOLD, 255))),
        transparency=GREEN,
        processor=ALPHA,
    ),
    file("clear grey kept.png", ((10, 90),), "L", CLEAR_KEPT, transparency=90, processor=ALPHA),
    file("clear deep grey kept.png", ((10, 90),), "I;16", CLEAR_KEPT, transparency=90 * 257, processor=ALPHA),
    file("grey alpha kept.png", CLEAR_GREYS[:1], "LA", CLEAR_KEPT, processor=ALPHA),
    file("half kept.png", (((*RED, 128),),), processor=ALPHA),
    file("on black.png", CLEAR, expected=((RED, 0), (BLUE, 0)), processor={"background": "black"}),
    file("on a colour.png", CLEAR, expected=((RED, GOLD), (BLUE, GOLD)), processor={"background": GOLD}),
    file("on a colour.gif", CLEAR, "RGBA", ((RED, GOLD), (BLUE, GOLD)), processor={"background": GOLD}),
    file(
        "on a colour.webp", CLEAR, expected=((RED, GOLD), (BLUE, GOLD)), processor={"background": GOLD}, lossless=True
    ),
    file(
        "half on black.png", (((200, 100, 50, 128),),), expected=(((100, 50, 25),),), processor={"background": "black"}
    ),
    file("grey on a colour.png", CLEAR_GREYS, "LA", ((10, 88), (170, 88)), processor=GREY | {"background": RED}),
    file(
        "deep on black.png",
        GREYS,
        "I;16",
        ((10, 0), (170, 250)),
        transparency=90 * 257,
        processor={"background": "black"},
    ),
    file("stretched.png", ((RED, GREEN, BLUE, GOLD),), size=(64, 20), processor={"resize": "stretch"}),
    file(
        "stretched.jpg",
        ((RED,), (GREEN,), (BLUE,), (GOLD,)),
        None,
        size=(20, 640),
        tolerance=LOSSY,
        processor={"resize": "stretch"},
    ),
    file("somewhere.png", ((RED,),), size=(90, 20), processor={"crop": "random"}),
    file("oblong.png", processor={"image_size": (16, 24)}),
)


def _tensor() -> Tensor:
    return torch.from_numpy(painted()).permute(2, 0, 1)


def _read_only() -> Bytes:
    values = painted()
    values.flags.writeable = False
    return values


class Pair(NamedTuple):
    """An item with names."""

    image: Image.Image
    label: int


ITEMS = (
    *(
        item(f"PIL {mode}", partial(picture, COLOURS, mode))
        for mode in ("RGB", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK")
    ),
    *(item(f"PIL {mode}", partial(picture, COLOURS, mode), tolerance=4) for mode in ("YCbCr", "HSV")),
    *(
        item(f"PIL {mode}", partial(picture, GREYS, mode), GREYS)
        for mode in ("L", "I", "I;16", "I;16L", "I;16B", "I;16N")
    ),
    item("PIL 1", lambda: picture(BITS, "1"), BITS),
    item("PIL LA", lambda: picture(CLEAR_GREYS, "LA"), SHOWN_GREYS),
    item("PIL La", lambda: picture(CLEAR_GREYS, "La"), SHOWN_GREYS),
    item("PIL P with alpha", lambda: picture(CLEAR, "P"), SHOWN),
    item("PIL PA with alpha", lambda: picture(CLEAR, "PA"), SHOWN),
    item("PIL RGBA with alpha", lambda: picture(CLEAR), SHOWN),
    item("PIL RGBa with alpha", lambda: picture(CLEAR, "RGBa"), SHOWN),
    item("PIL F", lambda: picture(GREYS, "F"), GREYS, value_range=(0, 255)),
    item(
        "PIL I of 12 bits", lambda: Image.fromarray(painted(GREYS).astype(np.int32) * 16), GREYS, value_range=(0, 4080)
    ),
    item("HWC", painted),
    item("HWC, bottom up", lambda: painted()[::-1], COLOURS[::-1]),
    item("HWC, BGR turned by a view", lambda: painted()[..., ::-1].copy()[..., ::-1]),
    item("HWC, every other pixel", lambda: painted(COLOURS, (96, 64))[::2, ::2]),
    item("HWC in Fortran's order", lambda: np.asfortranarray(painted())),
    item("HWC, read-only", _read_only),
    item("HW", lambda: painted(GREYS), GREYS),
    item("HWC of one channel", lambda: painted(GREYS)[..., None], GREYS),
    item("CHW", lambda: painted().transpose(2, 0, 1).copy()),
    item("uint16", lambda: painted().astype(np.uint16) * 257, value_range=(0, 65535)),
    item("uint16, big-endian", lambda: painted().astype(">u2") * 257, value_range=(0, 65535)),
    item("int64", lambda: painted().astype(np.int64), value_range=(0, 255)),
    item("int8", lambda: (painted().astype(int) - 128).astype(np.int8), value_range=(-128, 127)),
    item("float16", lambda: (painted() / 255).astype(np.float16), value_range=(0, 1)),
    item("float32", lambda: (painted() / 127.5 - 1).astype(np.float32), value_range=(-1, 1)),
    item("float64, big-endian", lambda: (painted() / 255).astype(">f8"), value_range=(0, 1)),
    item("bool", lambda: painted(BITS) > 0, BITS),
    item("exactly", painted, tolerance=0, **EXACT),
    item("one value", lambda: np.full((1, 1), 7, np.uint8), ((7,),), tolerance=0, image_size=None, channels=None),
    item("four channels", lambda: painted(CLEAR), CLEAR, **ALPHA),
    item("three channels to four", painted, (((*RED, 255), (*GREEN, 255)), ((*BLUE, 255), (*GOLD, 255))), **ALPHA),
    item("tensor", _tensor),
    item("tensor, HWC", lambda: torch.from_numpy(painted())),
    item("tensor of a channels_last batch", lambda: _tensor()[None].contiguous(memory_format=torch.channels_last)[0]),
    item("tensor, HW", lambda: torch.from_numpy(painted(GREYS)), GREYS),
    item("tensor of bool", lambda: torch.from_numpy(painted(BITS) > 0), BITS),
    item("tensor of uint16", lambda: torch.from_numpy(painted().astype(np.uint16)), value_range=(0, 255)),
    item("tensor of bfloat16", lambda: _tensor().bfloat16(), value_range=(0, 255)),
    item("tensor with a gradient", lambda: (_tensor() / 255).requires_grad_(), value_range=(0, 1)),
    item("tensor, expanded", lambda: torch.tensor(RED, dtype=torch.uint8)[:, None, None].expand(3, 32, 48), ((RED,),)),
    item("tuple", lambda: (picture(COLOURS), 3)),
    item("list", lambda: [7, "a caption", _tensor()]),
    item("namedtuple", lambda: Pair(picture(COLOURS), 1)),
    item("dict", lambda: {"image": painted(), "label": 3, "box": np.zeros(4)}),
    item("dict by key", lambda: {"image": picture(COLOURS), "mask": picture(BITS)}, image_key="image"),
)


def noise(mode: str = "RGB") -> Image.Image:
    """Random pixels, which no format makes small."""
    shape = (SIZE[1], SIZE[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).convert(mode)


def bad_file(name: str, make: Callable[[], bytes], error: type[Exception] = OSError, match: str = UNREADABLE) -> Bad:
    """A file that is none."""
    return Bad(name, make, error, match, NOTHING)


def cut(name: str, share: float, mode: str = "RGB", **options: Any) -> Bad:  # noqa: ANN401  # PIL's own
    """A file of which only a part has come."""

    def make() -> bytes:
        whole = content(noise(mode), Path(name).suffix, **options)
        return whole[: int(len(whole) * share)]

    return bad_file(name, make)


def broken(name: str, old: bytes, new: bytes, mode: str = "RGB", **options: Any) -> Bad:  # noqa: ANN401  # PIL's own
    """A file in which the first ``old`` has become ``new``."""

    def make() -> bytes:
        whole = content(noise(mode), Path(name).suffix, **options)
        assert old in whole
        return whole.replace(old, new, 1)

    return bad_file(name, make)


def bad_item(
    name: str,
    make: Callable[[], object],
    error: type[Exception],
    match: str,
    **processor: Any,  # noqa: ANN401  # whatever the processor takes
) -> Bad:
    """Something else than a file."""
    return Bad(name, make, error, match, processor)


class CustomError(Exception):
    """A dataset's own, whose constructor wants more than a message."""

    def __init__(self, code: int, *, place: str) -> None:
        super().__init__(f"{place} says {code}")


def whole(value: int) -> Image.Image:
    """Whole numbers, of which one is this."""
    values = np.zeros((SIZE[1], SIZE[0]), np.int32)
    values[3, 4] = value
    return Image.fromarray(values)


def holding(value: float) -> np.ndarray[Any, Any]:
    """Zeros, and this."""
    values = np.zeros((SIZE[1], SIZE[0]))
    values[3, 4] = value
    return values


BAD_FILES = (
    cut("a tenth.jpg", 0.1),
    cut("half.jpg", 0.5),
    cut("nearly all.jpg", 0.95),
    cut("half of a progressive.jpg", 0.5, progressive=True),
    cut("a tenth.png", 0.01),
    cut("half.png", 0.5),
    cut("nearly all.png", 0.95),
    cut("half.webp", 0.5),
    cut("nearly all.webp", 0.95, lossless=True),
    cut("half.gif", 0.5, "P"),
    cut("header.gif", 0.005, "P"),
    cut("half.tif", 0.5, compression="tiff_lzw"),
    cut("header.tif", 0.001),
    cut("half.bmp", 0.5),
    cut("half.ppm", 0.5),
    cut("half.tga", 0.5),
    *((cut("half.qoi", 0.5),) if IS_NEW_PILLOW else ()),
    cut("half.jp2", 0.1),
    bad_file("empty.jpg", lambda: b""),
    bad_file("empty.png", lambda: b""),
    bad_file("zeros.jpg", lambda: bytes(5000)),
    bad_file("a page.jpg", lambda: HTML),
    bad_file("text.png", lambda: b"not an image at all"),
    broken("no start.jpg", b"\xff\xd8", b""),
    broken("no tables.jpg", b"\xff\xdb", b"\xff\xfe"),
    broken("twelve bits.jpg", b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    broken("no height.jpg", b"\x08\x00\x20\x00\x30", b"\x08\x00\x00\x00\x30"),
    broken("garbage in the header.jpg", b"\xff\xc0\x00\x11", b"\x13\x37\xca\xfe"),
    broken("magic.png", b"\x89PNG", b"\x89PNK"),
    broken("check sum.png", b"\x08\x02\x00\x00\x00", b"\x08\x02\x00\x00\x01"),
    bad_file(
        "stream.png", lambda: png(8, 2, painted().reshape(32, -1), packed=zlib.compress(bytes(99))[:-9] + b"garbage")
    ),
    bad_file("no stream.png", lambda: png(8, 2, painted().reshape(32, -1), packed=b"")),
    bad_file("zero.png", lambda: png(8, 2, painted().reshape(32, -1), size=(0, 0))),
    bad_file("no width.png", lambda: png(8, 2, painted().reshape(32, -1), size=(0, 32))),
    bad_file("unknown kind.png", lambda: png(8, 9, painted().reshape(32, -1))),
    bad_file(
        "bomb.png",
        lambda: png(8, 2, painted().reshape(32, -1), size=(50_000, 50_000)),
        match=UNREADABLE + ".*decompression bomb",
    ),
    broken("no frames.gif", b",\x00\x00\x00\x00", b";\x00\x00\x00\x00", "P"),
    broken("size.webp", b"WEBP", b"WEBQ"),
    bad_file("RIFF.webp", lambda: content(noise(), ".webp").replace(b"RIFF", b"RIFF\xff\xff\xff\x7f", 1)),
    broken("directory.tif", b"II*\x00\x08\x00\x00\x00", b"II*\x00\xff\xff\x00\x00"),
    broken("no strips.tif", b"\x11\x01", b"\x11\x99"),
    Bad("LAB.tif", lambda: content(picture(COLOURS, "LAB"), ".tif"), ValueError, "LAB", NOTHING),
    Bad("float.tif", lambda: content(picture(GREYS, "F"), ".tif"), ValueError, "value_range", NOTHING),
    Bad("beyond.tif", lambda: content(whole(70_000), ".tif"), ValueError, "to (70000|7e\\+04)", NOTHING),
    bad_file("HDF5.jpg", lambda: b"\x89HDF\r\n\x1a\n" + bytes(99)),
    bad_file("MPEG.jpg", lambda: b"\0\0\1\xb3\x03\x00\x20" + bytes(99)),
)

BAD_ITEMS = (
    bad_item("float without a range", lambda: np.zeros((32, 48)), ValueError, "value_range"),
    bad_item("PIL F without a range", lambda: picture(GREYS, "F"), ValueError, "value_range"),
    bad_item("PIL LAB", lambda: picture(COLOURS, "LAB"), ValueError, "LAB"),
    bad_item("PIL I beyond 16 bits", lambda: whole(70_000), ValueError, "to (70000|7e\\+04)"),
    bad_item("PIL I below 0", lambda: whole(-1), ValueError, "-1"),
    bad_item("NaN", lambda: holding(np.nan), ValueError, "NaN or infinite", value_range=(0, 1)),
    bad_item("infinity", lambda: holding(np.inf), ValueError, "NaN or infinite", value_range=(0, 1)),
    bad_item("above the range", lambda: holding(1.5), ValueError, "0 to 1.5.*value_range", value_range=(0, 1)),
    bad_item("below the range", lambda: holding(-0.5), ValueError, "-0.5 to 0.*value_range", value_range=(0, 1)),
    bad_item("above the range by little", lambda: whole(4100), ValueError, "4100", value_range=(0, 4095)),
    bad_item("complex", lambda: np.zeros((32, 48), complex), ValueError, "real numbers", value_range=(0, 1)),
    bad_item("no pixels", lambda: np.zeros((0, 48, 3), np.uint8), ValueError, r"pixels.* shape \(0, 48, 3\) and"),
    bad_item("objects", lambda: np.full((32, 48), None), TypeError, "object"),
    bad_item("strings", lambda: np.full((32, 48), "a"), TypeError, "str"),
    bad_item("dates", lambda: np.zeros((32, 48), "datetime64[s]"), TypeError, "datetime64"),
    bad_item("two channels to three", lambda: painted(COLOURS)[..., :2], ValueError, "2 channels"),
    bad_item("four channels to three", lambda: painted(CLEAR), ValueError, "4 channels"),
    bad_item("four channels to one", lambda: painted(CLEAR), ValueError, "4 channels", channels=1),
    bad_item("five channels", lambda: torch.zeros(5, 32, 48, dtype=torch.uint8), ValueError, "5 channels"),
    bad_item("nothing", lambda: None, TypeError, "NoneType"),
    bad_item("a name", lambda: "a.png", TypeError, "str 'a.png'"),
    bad_item("a path", lambda: Path("a.png"), TypeError, "Path"),
    bad_item("a number", lambda: 3, TypeError, "int 3"),
    bad_item("bytes", lambda: content(picture(COLOURS), ".png"), TypeError, "bytes"),
    bad_item("one dimension", lambda: np.zeros(48, np.uint8), TypeError, "ndarray"),
    bad_item("a batch", lambda: torch.zeros(1, 3, 32, 48, dtype=torch.uint8), TypeError, "Tensor"),
    bad_item("an empty tuple", lambda: (), TypeError, "no image"),
    bad_item("labels only", lambda: (3, "a caption"), TypeError, "no image"),
    bad_item("a dict without", lambda: {"label": 3, "name": "a.png"}, TypeError, "no image"),
    bad_item("two images", lambda: {"image": painted(), "mask": painted(BITS)}, ValueError, "several images"),
    bad_item("no such key", lambda: {"image": painted()}, ValueError, "'mask'", image_key="mask"),
    bad_item("KeyError", lambda: KeyError("missing"), RuntimeError, "KeyError.*missing"),
    bad_item("IndexError", lambda: IndexError("out"), RuntimeError, "IndexError.*out"),
    bad_item("RuntimeError", lambda: RuntimeError("of its own"), RuntimeError, "of its own"),
    bad_item("CustomError", lambda: CustomError(3, place="here"), RuntimeError, "CustomError.*here says 3"),
    bad_item("StopIteration", lambda: StopIteration("no more"), RuntimeError, "StopIteration.*no more"),
    bad_item("ValueError", lambda: ValueError("of its own"), ValueError, "of its own"),
)

BAD_PLACES: dict[str, Callable[[Path], object]] = {  # what becomes of a file that was there
    "vanished": Path.unlink,
    "dangling": lambda path: path.unlink() or path.symlink_to(path.with_name("nowhere")),
    "loop": lambda path: path.unlink() or path.symlink_to(path),
    "folder": lambda path: path.unlink() or path.mkdir(),
    "private": lambda path: path.chmod(0),
}
