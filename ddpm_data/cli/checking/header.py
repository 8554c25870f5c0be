"""Properties of a PIL image that its decoded values do not show: mode, format, size, orientation, transparency."""

from contextlib import suppress
from typing import NamedTuple

from PIL import Image

from ddpm_data.images.decode import Orientation, exif_orientation, is_transparent

_UPRIGHT = Orientation(False, ())


class Header(NamedTuple):
    """The properties of an image that are known before it is decoded.

    Attributes:
        mode: PIL's mode.
        format: The file's format; ``None`` if the image comes from no file.
        channels: The channels of the mode.
        size: Height and width of the upright image.
        is_turned: Whether its EXIF tag turns or mirrors the image.
    """

    mode: str
    format: str | None
    channels: int
    size: tuple[int, int]
    is_turned: bool

    @classmethod
    def from_image(cls, image: Image.Image) -> "Header":
        """Read the header of an image that may not have been decoded yet."""
        orientation = _UPRIGHT
        with suppress(Exception):  # if the tag is damaged, decoding raises the error
            orientation = exif_orientation(image)
        size = (image.width, image.height) if orientation.transpose else (image.height, image.width)
        return cls(image.mode, image.format, len(image.getbands()), size, orientation != _UPRIGHT)

    @property
    def is_deep(self) -> bool:
        """Whether values have more than 8 bits."""
        return self.mode[0] in "IF"

    def decoded_size(self, image: Image.Image) -> tuple[int, int]:
        """Return height and width of the decoded image. PIL turns TIFF files, and only when it decodes them."""
        return image.size[::-1] if self.format == "TIFF" else self.size

    def find_features(self, image: Image.Image) -> dict[str, bool]:
        """Find out whether the decoded image is transparent, turned by EXIF, or animated."""
        features = {"transparent": is_transparent(image), "turned": self.is_turned, "animated": False}
        with suppress(Exception):  # damage after the first frame does not matter
            features["animated"] = bool(getattr(image, "is_animated", False))
        return features
