"""What a PIL image says of itself, which is gone once its values are taken: mode, format, size, turn, transparency."""

from contextlib import suppress
from typing import NamedTuple

from PIL import Image

from ddpm_data.images.decode import Orientation, exif_orientation, is_transparent

_UPRIGHT = Orientation(False, ())


class Header(NamedTuple):
    """What an image says before it is decoded.

    Attributes:
        mode: PIL's.
        kind: The file's format; ``None`` where it comes from no file.
        channels: Those of the mode.
        size: Height and width, as it is to be shown.
        is_turned: Whether its EXIF tag turns it.
    """

    mode: str
    kind: str | None
    channels: int
    size: tuple[int, int]
    is_turned: bool

    @classmethod
    def of(cls, image: Image.Image) -> "Header":
        """Of an image that may not have been decoded yet."""
        turn = _UPRIGHT
        with suppress(Exception):  # where this is damaged, decoding says so
            turn = exif_orientation(image)
        size = (image.width, image.height) if turn.transpose else (image.height, image.width)
        return cls(image.mode, image.format, len(image.getbands()), size, turn != _UPRIGHT)

    @property
    def is_deep(self) -> bool:
        """Whether values have more than 8 bits."""
        return self.mode[0] in "IF"

    def shown(self, image: Image.Image) -> tuple[int, int]:
        """Height and width, once the image has been decoded: PIL turns TIFF files, and only then."""
        return image.size[::-1] if self.kind == "TIFF" else self.size

    def has(self, image: Image.Image) -> dict[str, bool]:
        """What else there is to the image, once it has been decoded."""
        found = {"transparent": is_transparent(image), "turned": self.is_turned, "animated": False}
        with suppress(Exception):  # what comes after the first frame is nobody's concern
            found["animated"] = bool(getattr(image, "is_animated", False))
        return found
