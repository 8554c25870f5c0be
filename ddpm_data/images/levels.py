"""Value ranges: any values to the 256 levels of uint8, between a range's black and its white."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ValueRange = tuple[float, float]  # black, white
EIGHT_BITS: ValueRange = (0.0, 255.0)
_CHUNK = 2**20  # values that are converted at once: a conversion takes 40 bytes for each


class Span(NamedTuple):
    """The values that images have.

    Attributes:
        low: The lowest.
        high: The highest.
        not_finite: How many are NaN or infinite.
    """

    low: float
    high: float
    not_finite: int = 0

    @classmethod
    def measure(cls, parts: Iterable[Tensor]) -> "Span":
        """Measure the span of several parts together; a NaN makes both ends NaN."""
        low, high, not_finite = [], [], 0
        for part in parts:
            values = part.double()
            low.append(float(values.min()))  # as numbers: small tensors between large ones would break up the memory
            high.append(float(values.max()))
            not_finite += int((~values.isfinite()).sum())
        return cls(
            float(torch.tensor(low, dtype=torch.float64, device="cpu").min()),
            float(torch.tensor(high, dtype=torch.float64, device="cpu").max()),
            not_finite,
        )

    def check(self, value_range: ValueRange, slack: float = 0) -> None:
        """Refuse values outside a range.

        Args:
            value_range: The lowest and the highest possible value.
            slack: How far outside a value may be.

        Raises:
            ValueError: A value is outside, or not finite.
        """
        bottom, top = value_range
        if not (self.low >= bottom - slack and self.high <= top + slack):  # negated, so that NaN is refused too
            raise ValueError(
                f"values span {self.low:.6g} to {self.high:.6g}"
                f"{f', {self.not_finite} of them NaN or infinite' * bool(self.not_finite)}, outside "
                f"value_range=({bottom:g}, {top:g}); clipping would lose them. Change `dataset.value_range`, or repair "
                "the image."
            )


def to_uint8(image: Tensor, value_range: ValueRange | None) -> Tensor:
    """Map values to the levels of uint8: the range's lowest to 0, its highest to 255.

    Args:
        image: Any dtype and shape. Booleans are black and white whatever the range.
        value_range: The lowest and the highest possible value; ``None`` is the whole of uint8, and of no other dtype.

    Returns:
        uint8, the shape of ``image``.

    Raises:
        ValueError: A range is missing, a value is outside it, or it is none that 8 bits can have.
    """
    if image.dtype == torch.bool:
        return image.to(torch.uint8).mul_(255)
    if image.dtype == torch.uint8:
        return image if value_range in (None, EIGHT_BITS) else _map_uint8(image, value_range)
    chunks = list(_split_rows(image))
    span = Span.measure(chunks)
    if value_range is None:
        raise ValueError(unknown_range_message(f"the image is {image.dtype} and spans", span.low, span.high))
    # Half of one of 256 levels, for rounding errors.
    span.check(value_range, (value_range[1] - value_range[0]) / 510 if image.is_floating_point() else 0)
    levels = torch.empty(image.shape, dtype=torch.uint8, device="cpu")
    for out, chunk in zip(_split_rows(levels), chunks, strict=True):
        out.copy_(scale_to_levels(chunk, value_range))
    return levels


def scale_to_levels(values: Tensor, value_range: ValueRange) -> Tensor:
    """Map values inside a range to uint8, rounded."""
    bottom, top = value_range
    return ((values.double() - bottom) * (255 / (top - bottom))).round_().clamp_(0, 255).to(torch.uint8)


def scale_from_levels(levels: Tensor, value_range: ValueRange) -> Tensor:
    """Undo :func:`scale_to_levels`, so far as 256 levels can: in floats that it maps back to the same levels."""
    bottom, top = value_range
    is_fine = max(abs(bottom), abs(top)) < 1000 * (top - bottom)
    values = levels.to(torch.float32 if is_fine else torch.float64)
    return values.mul_((top - bottom) / 255).add_(bottom)


def unknown_range_message(seen: str, low: float, high: float) -> str:
    """Write the error message for values whose range is unknown, with a guess at the range.

    Args:
        seen: The images and a verb, to begin the message: ``"the image is torch.float32 and spans"``.
        low: The lowest value.
        high: The highest value.
    """
    ranges = ((0, 1), (-1, 1), (0, 255), (0, 65535))
    likely = next((f", here most likely [{a}, {b}]" for a, b in ranges if a <= low and high <= b), "")
    return (
        f"{seen} {low:.6g} to {high:.6g}. Which values are black and white cannot be known from that, and a wrong "
        f"guess would train on washed-out images. Set `dataset.value_range` to the (lowest, highest) possible value"
        f"{likely}."
    )


def _map_uint8(image: Tensor, value_range: ValueRange | None) -> Tensor:
    assert value_range is not None
    bottom, top = value_range
    if bottom < EIGHT_BITS[0] or top > EIGHT_BITS[1]:
        raise ValueError(
            f"the image has 8 bits, so its values are 0 to 255, but value_range=({bottom:g}, {top:g}) reaches beyond "
            "them: it must be meant for other images, and these would come out too dark. Change "
            "`dataset.value_range`, or give all images the same number of bits."
        )
    Span.measure([image.min(), image.max()]).check(value_range)
    table = scale_to_levels(torch.arange(256, device="cpu"), value_range)
    levels = torch.empty(image.shape, dtype=torch.uint8, device="cpu")
    for out, chunk in zip(_split_rows(levels), _split_rows(image), strict=True):
        out.copy_(table[chunk.int()])
    return levels


def _split_rows(image: Tensor) -> Iterator[Tensor]:
    rows = max(1, _CHUNK * image.shape[-2] // image.numel())
    for top in range(0, image.shape[-2], rows):
        yield image[..., top : top + rows, :]
