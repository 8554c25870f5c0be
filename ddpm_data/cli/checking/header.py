"""Properties of a PIL image that its decoded values do not show: mode, format, size, orientation, transparency."""

from contextlib import suppress
from typing import NamedTuple

from PIL import ExifTags, Image

from ddpm_data.images.decode import Orientation, exif_orientation, is_transparent

_UPRIGHT = Orientation(False, ())


class Header(NamedTuple):
    """The properties of an image that decoding it may change.

    Attributes:
        mode: PIL's mode.
        format: The file's format; ``None`` if the image comes from no file.
        channels: The channels of the mode.
        size: Width and height as they are stored.
        is_turned: Whether PIL will turn it while it decodes it, as it does with TIFF files.
    """

    mode: str
    format: str | None
    channels: int
    size: tuple[int, int]
    is_turned: bool

    @classmethod
    def from_image(cls, image: Image.Image) -> "Header":
        """Read the header of an image that may not have been decoded yet; asked for more, PIL might decode it."""
        is_turned = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation) in range(2, 9)
        return cls(image.mode, image.format, len(image.getbands()), image.size, is_turned)

    @property
    def is_deep(self) -> bool:
        """Whether values have more than 8 bits."""
        return self.mode[0] in "IF"

    def decoded_size(self, image: Image.Image) -> tuple[int, int]:
        """Return height and width of the upright image, once it is decoded.

        PIL turns TIFF files when it decodes them. A JPEG may have been decoded at a reduced size.
        """
        width, height = image.size if self.format == "TIFF" else self.size
        return (width, height) if exif_orientation(image).transpose else (height, width)

    def find_features(self, image: Image.Image) -> dict[str, bool]:
        """Find out whether the decoded image is transparent, turned by EXIF, or animated."""
        is_turned = self.is_turned or exif_orientation(image) != _UPRIGHT
        features = {"transparent": is_transparent(image), "turned": is_turned, "animated": False}
        with suppress(Exception):  # damage after the first frame does not matter
            features["animated"] = bool(getattr(image, "is_animated", False))
        return features
