"""A test of damaged image files: ``python -m benchmarks.fuzz`` (half a minute).

Files of :mod:`benchmarks.damage` are read as in training: by ImageFiles, then by an ImageProcessor for 32 x 32 pixels
and 3 channels, in worker processes. A damaged file may give an image of that shape, or an OSError, ValueError or
TypeError that names the item and its file. Anything else ends the run with status 1: another error, an error without
these names, another shape, a process that dies, or a process that takes more than 30 seconds for a file. So does a
process whose memory has grown by more than 64 MB between its first 500 files and its last 500.
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
from benchmarks.damage import make_mutant, originals
from benchmarks.watched import Verdict, Worker, collect_verdicts
from ddpm_data.images.processor import ImageProcessor
from ddpm_data.loading.map_style import MapStyleImages
from ddpm_data.sources import ImageFiles

MAX_SECONDS = 30.0  # per file: PIL needs some for the largest image that it accepts, 179 million pixels
MAX_GROWTH = 64.0  # MB per worker
ERRORS = (OSError, ValueError, TypeError)
ALLOWED = ("images", *(kind.__name__ for kind in ERRORS))
FAULTS = ("other errors", "unnamed errors", "wrong shapes", "crashes", "hangs")
_VARYING = re.compile(r"0x[0-9a-f]+|\\x[0-9a-f]{2}|/\S+/|\d+")  # what differs from one message to the next


def main() -> None:
    """Damage files, have them read, and print how they were read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000, help="files to damage and read")
    parser.add_argument("--first", type=int, default=0, help="number of the first file, which decides its damage")
    parser.add_argument("--num-workers", "--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="read 1,500 files only")
    parser.add_argument("--output-dir", "--out", type=Path, help="folder for fuzz.json and the files with a fault")
    args = parser.parse_args()
    numbers = range(args.first, args.first + (1500 if args.quick else args.mutants))
    counts: dict[str, Counter[str]] = {suffix: Counter() for suffix, _ in originals()}
    files_by_fault: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        pool = [Worker(Path(folder), read_files) for _ in range(args.num_workers)]
        verdicts = collect_verdicts(pool, numbers, lambda: Worker(Path(folder), read_files), MAX_SECONDS)
        for number, verdict in tqdm(verdicts, total=len(numbers), desc="files", unit="file"):
            suffix = originals()[number % len(originals())][0]
            counts[suffix][verdict.column] += 1
            if verdict.column in FAULTS:
                fault = f"{verdict.column}: {_VARYING.sub('#', verdict.detail)}"
                files_by_fault.setdefault(fault, []).append(f"{number}{suffix}")
                if args.output_dir:
                    args.output_dir.mkdir(parents=True, exist_ok=True)
                    (args.output_dir / f"{number}{suffix}").write_bytes(make_mutant(number)[1])
        growth = max(worker.memory_growth() for worker in pool)
    harness.print_report("fuzz", _make_rows(counts), args.output_dir)
    print(f"\nmemory grew by at most {growth:.0f} MB per worker ({MAX_GROWTH:.0f} are allowed)")
    for fault, names in files_by_fault.items():
        print(f"{len(names):,} files like {names[0]}: {fault}")
    sys.exit(bool(files_by_fault) or growth > MAX_GROWTH)


def read_files(pipe: Connection, folder: Path) -> None:
    """Read the files whose numbers the pipe sends, and send a verdict for each, until the pipe ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff prints to it
    warnings.simplefilter("ignore")  # PIL warns of damage that it can read past
    torch.set_num_threads(1)
    own_folder = Path(tempfile.mkdtemp(dir=folder))
    suffixes = sorted({suffix for suffix, _ in originals()})
    for suffix, content in originals():
        (own_folder / f"mutant{suffix}").write_bytes(content)
    files = ImageFiles(own_folder)
    assert files.names == [f"mutant{suffix}" for suffix in suffixes]
    images = MapStyleImages(files, ImageProcessor(image_size=32, channels=3), "mutants")
    while True:
        for number in pipe.recv():
            suffix, content = make_mutant(number)
            (own_folder / f"mutant{suffix}").write_bytes(content)
            verdict = _read_file(images, suffixes.index(suffix), f"mutant{suffix}")
            pipe.send(verdict._replace(resident=_measure_memory()))


def _read_file(images: MapStyleImages, index: int, name: str) -> Verdict:
    try:
        image = images[index]
    except ERRORS as error:
        kind = next(kind.__name__ for kind in ERRORS if isinstance(error, kind))
        is_named = f"mutants[{index}]" in str(error) and name in str(error)
        return Verdict(kind) if is_named else Verdict("unnamed errors", repr(error))
    except Exception as error:  # any other error is a finding
        return Verdict("other errors", repr(error))
    if image.shape == (3, 32, 32) and image.dtype == torch.uint8:
        return Verdict("images")
    return Verdict("wrong shapes", f"{tuple(image.shape)} of {image.dtype}")


def _measure_memory() -> float:
    """Return the MB in use after malloc has given back what it can: the holes that large images leave are no leak."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def _make_rows(counts: dict[str, Counter[str]]) -> list[harness.Row]:
    rows: list[harness.Row] = []
    for suffix, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        row: harness.Row = {"files": suffix, "damaged": f"{count.total():,}"}
        rows.append(row | {column: f"{count[column]:,}" for column in (*ALLOWED, *FAULTS)})
    return rows


if __name__ == "__main__":
    main()
