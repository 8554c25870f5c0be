"""JPEG decoding by simplejpeg (the extra ``decode``): PIL's values bit for bit, in less time.

Both libraries call libjpeg-turbo with the same settings. simplejpeg saves PIL's copies (``benchmarks/pipeline.md``).
"""

import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ddpm_data.images._jpeg_frame import read_jpeg_frame

_MIN_SIDE = 8  # pixels; below, several of libjpeg's scales give the same size


class DecodedJpeg(NamedTuple):
    """A decoded JPEG image.

    Attributes:
        values: uint8, shape ``(channels, height, width)``, grey or RGB.
        area: Width and height of the image at the reduced scale, in pixels, not rounded: the last row and column of
            ``values`` may reach beyond it. ``None`` for an image decoded at full size.
    """

    values: Tensor
    area: tuple[float, float] | None


def decode_jpeg(image: Image.Image, target: tuple[int, int] | None) -> DecodedJpeg | None:
    """Decode a grey or RGB JPEG that PIL has opened in memory but not decoded yet.

    The PIL image does not change.

    Args:
        image: A PIL image of any format.
        target: Height and width that the image will be resized to. It is decoded at the smallest of libjpeg's scales
            that leaves at least twice this size. ``None`` decodes at full size.

    Returns:
        The image, not yet turned upright. ``None`` if PIL has to decode it, because simplejpeg is missing, the image is
        no such JPEG, it is damaged, or its coding is not one that libjpeg can reduce (lossless and arithmetic ones).
    """
    decode = _find_decoder()
    file = getattr(image, "fp", None)
    is_undecoded = len(getattr(image, "tile", ())) == 1
    has_draft = bool(getattr(image, "decoderconfig", None))
    if decode is None or image.format != "JPEG" or not isinstance(file, BytesIO) or not is_undecoded or has_draft:
        return None
    if image.mode not in ("L", "RGB") or min(image.size) < _MIN_SIDE:
        return None
    content = file.getvalue()
    frame = read_jpeg_frame(content)
    if frame is None or not frame.is_reducible() or frame.components not in (1, 3):
        return None  # simplejpeg would write beyond its buffer
    if (frame.width, frame.height) != image.size:  # of two frame headers, PIL takes the last and libjpeg the first
        return None
    ratio = 1 if target is None else min(image.width // (2 * target[1]), image.height // (2 * target[0]))
    scale = next((divisor for divisor in (8, 4, 2) if divisor <= ratio), 1)  # the scale that PIL's draft would choose
    min_size = {"min_width": -(-image.width // scale), "min_height": -(-image.height // scale)}
    try:
        array = decode(content, "GRAY" if image.mode == "L" else "RGB", **min_size)
    except ValueError:  # PIL accepts some of these files, and names the damage better in the others
        return None
    area = None if scale == 1 else (image.width / scale, image.height / scale)
    return DecodedJpeg(torch.from_numpy(array).permute(2, 0, 1), area)


@cache
def _find_decoder() -> Callable[..., Any] | None:
    """Import simplejpeg's function; warn once if it is installed but broken."""
    try:
        from simplejpeg import decode_jpeg
    except ModuleNotFoundError:
        return None
    except Exception as error:  # of any type: its binary may not fit the NumPy version
        warnings.warn(
            f"simplejpeg is installed but cannot be imported ({error}), so PIL decodes JPEG files: to the same values, "
            "but more slowly. Reinstall it: pip install --force-reinstall simplejpeg",
            stacklevel=2,
        )
        return None
    decode: Callable[..., Any] = decode_jpeg
    return decode
