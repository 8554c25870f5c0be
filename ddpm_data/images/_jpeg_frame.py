"""The frame header of a JPEG file, which says how its pixels are coded.

libjpeg-turbo has a decoder for each of several codings, and they differ in what they can do. Asked for a reduced size,
the lossless one (SOF3) writes the whole image all the same, beyond the end of a smaller buffer. So the header is read
before a file is handed on.
"""

from typing import NamedTuple

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15 but for three that mean something else
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
_REDUCIBLE = {0, 1, 2}  # baseline, extended and progressive, all in Huffman's code


class JpegFrame(NamedTuple):
    """What a JPEG's frame header says.

    Attributes:
        coding: The ``n`` of its marker SOFn: 0 is baseline, 2 progressive, 3 lossless.
        bits: Bits per value.
        height: In pixels.
        width: In pixels.
        components: Values per pixel.
    """

    coding: int
    bits: int
    height: int
    width: int
    components: int

    def is_reducible(self) -> bool:
        """Return whether libjpeg can decode it at a half, a quarter or an eighth of its size."""
        return self.coding in _REDUCIBLE and self.bits == 8


def read_jpeg_frame(content: bytes) -> JpegFrame | None:
    """Find the frame header in a JPEG file, by libjpeg's own rules: what stands between two segments is skipped.

    A second frame header in the file is an error for libjpeg, so the first one decides.

    Args:
        content: The file, or at least all of it up to the frame header.

    Returns:
        ``None`` if there is no frame header where one must be.
    """
    if content[:2] != bytes([0xFF, _START]):
        return None
    place = 2
    while (place := content.find(0xFF, place)) >= 0:
        while content[place : place + 1] == b"\xff":  # any number of them may stand before a marker
            place += 1
        marker = int.from_bytes(content[place : place + 1])
        place += 1
        if marker == 0 or marker in _WITHOUT_LENGTH:
            continue
        if marker in _FRAMES:
            height, width = (int.from_bytes(content[place + start : place + start + 2]) for start in (3, 5))
            header = content[place : place + 8]
            return JpegFrame(marker - 0xC0, header[2], height, width, header[7]) if len(header) == 8 else None
        if marker in (_END, _SCAN):
            return None
        place += max(2, int.from_bytes(content[place : place + 2]))
    return None
