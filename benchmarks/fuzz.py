"""What do damaged image files do? ``python -m benchmarks.fuzz`` (half a minute).

Files of :mod:`benchmarks.mutants` are read as a training run reads them: ImageFiles, then an ImagePolicy of 32 x 32
pixels and 3 channels, in worker processes. A damaged file may give an image of that shape, or an OSError, ValueError or
TypeError that names the item and its file. Anything else ends the run with status 1: another error, one that names
nothing, another shape, a process that dies, takes more than 30 seconds for a file, or keeps 64 MB more after its last
500 files than after its first.
"""

import argparse
import ctypes
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import harness
from benchmarks.mutants import mutant, originals
from benchmarks.watched import Verdict, Worker, verdicts
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles

LIMIT = 30.0  # seconds a file: PIL takes some for the largest that it takes at all, 179 million pixels
GROWTH = 64.0  # MB a worker
ERRORS = (OSError, ValueError, TypeError)
FINE = ("images", *(kind.__name__ for kind in ERRORS))
FAULTS = ("other errors", "unnamed errors", "wrong shapes", "crashes", "hangs")
_OWN = re.compile(r"0x[0-9a-f]+|\\x[0-9a-f]{2}|/\S+/|\d+")  # what differs from one message to the next


def main() -> None:
    """Damage, read, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000, help="files to damage and read")
    parser.add_argument("--first", type=int, default=0, help="the first one's number, which decides what is done to it")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="1,500 files: does it hold?")
    parser.add_argument("--out", type=Path, help="folder for fuzz.json and the files that got away")
    args = parser.parse_args()
    numbers = range(args.first, args.first + (1500 if args.quick else args.mutants))
    counts: dict[str, Counter[str]] = {ending: Counter() for ending, _ in originals()}
    escapes: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = [Worker(Path(folder), read_files) for _ in range(args.workers)]
        found = verdicts(pool, numbers, lambda: Worker(Path(folder), read_files), LIMIT)
        for number, verdict in tqdm(found, total=len(numbers), desc="files", unit="file"):
            ending = originals()[number % len(originals())][0]
            counts[ending][verdict.column] += 1
            if verdict.column in FAULTS:
                what = f"{verdict.column}: {_OWN.sub('#', verdict.detail)}"
                escapes.setdefault(what, []).append(f"{number}{ending}")
                if args.out:
                    args.out.mkdir(parents=True, exist_ok=True)
                    (args.out / f"{number}{ending}").write_bytes(mutant(number)[1])
        grown = max(worker.grown() for worker in pool)
    harness.report("fuzz", _table(counts), args.out)
    print(f"\nmemory grew by {grown:.0f} MB a worker at most ({GROWTH:.0f} are allowed)")
    for what, names in escapes.items():
        print(f"{len(names):,} got away as {names[0]} did: {what}")
    sys.exit(bool(escapes) or grown > GROWTH)


def read_files(pipe: Connection, folder: Path) -> None:
    """Read what the pipe asks for, and answer each time; until it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff talks
    warnings.simplefilter("ignore")  # as PIL warns of what it makes do with
    torch.set_num_threads(1)
    own = Path(tempfile.mkdtemp(dir=folder))
    endings = sorted({ending for ending, _ in originals()})
    for ending, content in originals():
        (own / f"mutant{ending}").write_bytes(content)
    files = ImageFiles(own)
    assert files.names == [f"mutant{ending}" for ending in endings]
    images = MapStyleImages(files, ImageProcessor(image_size=32, channels=3), "mutants")
    while True:
        for number in pipe.recv():
            ending, content = mutant(number)
            (own / f"mutant{ending}").write_bytes(content)
            verdict = _read(images, endings.index(ending), f"mutant{ending}")
            pipe.send(verdict._replace(resident=_resident()))


def _read(images: MapStyleImages, index: int, name: str) -> Verdict:
    try:
        image = images[index]
    except ERRORS as error:
        kind = next(kind.__name__ for kind in ERRORS if isinstance(error, kind))
        is_named = f"mutants[{index}]" in str(error) and name in str(error)
        return Verdict(kind) if is_named else Verdict("unnamed errors", repr(error))
    except Exception as error:  # whatever it is, it is the finding
        return Verdict("other errors", repr(error))
    if image.shape == (3, 32, 32) and image.dtype == torch.uint8:
        return Verdict("images")
    return Verdict("wrong shapes", f"{tuple(image.shape)} of {image.dtype}")


def _resident() -> float:
    """MB in use, once malloc has given back what it can: the holes that large images leave are no leak."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def _table(counts: dict[str, Counter[str]]) -> list[harness.Row]:
    rows: list[harness.Row] = []
    for ending, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        row: harness.Row = {"files": ending, "damaged": f"{count.total():,}"}
        rows.append(row | {column: f"{count[column]:,}" for column in (*FINE, *FAULTS)})
    return rows


if __name__ == "__main__":
    main()
