"""An encoder of lossless JPEG (ITU-T T.81, process 14): PIL reads such files, and no library at hand writes them."""

import struct
from typing import Any

import numpy as np

_LOSSLESS, _HUFFMAN_TABLE, _SCAN = 0xC3, 0xC4, 0xDA
_CODE_BITS = 4  # of each of the nine categories of differences


def encode_lossless(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Encode an image as a JPEG with a frame header of the kind SOF3.

    Args:
        values: Shape ``(height, width, channels)``, with 1 or 3 channels.
    """
    height, width, channels = values.shape
    levels = values.astype(int)
    differences = levels - 128
    differences[1:] = levels[1:] - levels[:-1]  # the first column is predicted from above,
    differences[:, 1:] = levels[:, 1:] - levels[:, :-1]  # all others from the left
    bits = "".join(map(_encode_difference, differences.ravel().tolist()))
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    numbers = range(1, channels + 1)
    frame = struct.pack(">BHHB", 8, height, width, channels) + b"".join(bytes([n, 0x11, 0]) for n in numbers)
    table = bytes([0, 0, 0, 0, 9, *[0] * 12]) + bytes(range(9))
    header = bytes([channels]) + b"".join(bytes([n, 0]) for n in numbers) + bytes([1, 0, 0])
    segments = _segment(_LOSSLESS, frame) + _segment(_HUFFMAN_TABLE, table) + _segment(_SCAN, header)
    return b"\xff\xd8" + segments + scan + b"\xff\xd9"


def _encode_difference(difference: int) -> str:
    """Write the number of bits that it takes, and these bits."""
    size = abs(difference).bit_length()
    value = difference if difference > 0 else difference + (1 << size) - 1
    return f"{size:0{_CODE_BITS}b}" + (f"{value:0{size}b}" if size else "")


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
