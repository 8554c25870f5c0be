"""JPEG files by simplejpeg, the extra ``decode``: the values that PIL would give, bit for bit, in less time.

Both call libjpeg-turbo, with the same settings; simplejpeg does so without PIL's copies (``benchmarks/pipeline.md``).
"""

import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

_LEAST = 8  # pixels a side: of smaller images several of libjpeg's scales come out at one size


class DecodedJpeg(NamedTuple):
    """A JPEG's values.

    Attributes:
        values: uint8, shape ``(channels, height, width)``, grey or RGB.
        area: The width and height that the whole image then has, which its last pixels may exceed; ``None`` where it is
            decoded at its full size.
    """

    values: Tensor
    area: tuple[float, float] | None


def decode_jpeg(image: Image.Image, target: tuple[int, int] | None) -> DecodedJpeg | None:
    """A grey or RGB JPEG's values, if PIL has it in memory, opened but not decoded; the image stays as it is.

    Args:
        image: Of any format.
        target: Height and width wanted, of which at least twice is left; ``None`` is the full size.

    Returns:
        ``None`` where PIL is to decode it: simplejpeg is missing, or the file is of another kind, or damaged.
    """
    decode = _simplejpeg()
    file = getattr(image, "fp", None)
    is_whole = len(getattr(image, "tile", ())) == 1 and not getattr(image, "decoderconfig", None)  # no draft was made
    if decode is None or image.format != "JPEG" or not isinstance(file, BytesIO) or not is_whole:
        return None
    if image.mode not in ("L", "RGB") or min(image.size) < _LEAST:
        return None
    scale = 1 if target is None else min(image.width // (2 * target[1]), image.height // (2 * target[0]))
    scale = next((step for step in (8, 4, 2) if step <= scale), 1)  # as PIL's draft chooses it
    least = {"min_width": -(-image.width // scale), "min_height": -(-image.height // scale)}
    try:
        array = decode(file.getvalue(), "GRAY" if image.mode == "L" else "RGB", **least)
    except ValueError:  # also of what PIL puts up with; or it says better what is wrong
        return None
    area = None if scale == 1 else (image.width / scale, image.height / scale)
    return DecodedJpeg(torch.from_numpy(array).permute(2, 0, 1), area)


@cache
def _simplejpeg() -> Callable[..., Any] | None:
    try:
        from simplejpeg import decode_jpeg
    except ModuleNotFoundError:
        return None
    except Exception as error:  # of any kind: its binary may not fit the NumPy that is there
        warnings.warn(
            f"simplejpeg is installed but cannot be imported ({error}), so PIL decodes JPEG files: the same values, "
            "slower. Install it anew: pip install --force-reinstall simplejpeg",
            stacklevel=2,
        )
        return None
    decode: Callable[..., Any] = decode_jpeg
    return decode
