"""What only Linux has: its absence is simulated, and everything works all the same or ends in an error that says so."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from ddpm_data.sources import ImageFiles
from ddpm_data.sources.image_files import _sorted_names

NESTED = ("a/1.png", "a-b/1.png", "a1/1.png", "B/2.png", "a/10.png", "a_b/3.png", "10/1.png", "9/1.png")


def test_nested_files_have_one_order_on_every_system(tmp_path: Path) -> None:
    """The order decides which image a position names."""
    for name in NESTED:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    names = ImageFiles(tmp_path).names
    assert set(names) == set(NESTED)
    assert _sorted_names(map(PureWindowsPath, NESTED)) == names
    assert _sorted_names(map(PurePosixPath, NESTED)) == names
