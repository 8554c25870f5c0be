"""Files that several tests of sources read."""

from pathlib import Path

import pytest

from tests.sources.helpers import STREAM_IMAGES, png, tar


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    pytest.importorskip("webdataset")
    samples = [(f"{n:03}", image) for n, image in enumerate(STREAM_IMAGES)]
    parts = [samples[n::6] for n in range(6)]
    return [
        tar(
            tmp_path / f"{n}.tar",
            {k: v for key, image in part for k, v in ((f"{key}.png", png(image)), (f"{key}.cls", b"3"))},
        )
        for n, part in enumerate(parts)
    ]
