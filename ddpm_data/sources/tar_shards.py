"""A dataset of tar shards in WebDataset's layout, read without unpickling anything."""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ddpm_data._checks import check_int
from ddpm_data._distributed import EpochShard, find_epoch
from ddpm_data._keys import name_arguments
from ddpm_data.sources._opening import list_suffixes, open_image


class DamagedSample(NamedTuple):
    """What stands for a sample one of whose files cannot be read, so that the samples after it can be.

    Attributes:
        error: What is wrong; names the shard, the sample and the file.
    """

    error: ValueError


def refuse_damaged(item: object) -> Any:  # noqa: ANN401  # any item
    """Return an item, unless it is a :class:`DamagedSample`, whose error is raised."""
    if isinstance(item, DamagedSample):
        raise item.error
    return item


class TarShards(IterableDataset[dict[str, object]]):
    """An iterable dataset of tar files in WebDataset's layout.

    In each epoch, one worker of one process reads each tar file. An item is a dict of the files that share a name, by
    suffix. Image files of every format that :class:`~ddpm_data.sources.ImageFiles` reads become PIL images that are not
    decoded yet. ``cls``, ``txt``, ``json`` and ``npy`` files are parsed; all others stay bytes. In training, a sample
    with a damaged file is a bad item (``on_bad_item``); iterated over, it raises an error that names the shard, the
    sample and the file.

    An iterable dataset of your own may go through this one. The order is each epoch's then too, and workers share the
    files. To share them out to processes is left to your dataset: ``TarShards(files[rank::world_size])``.

    Nothing is ever unpickled. WebDataset's own decoders unpickle ``.pyd``, ``.pickle`` and ``.pth`` files, which runs
    any code that the author of a file put there.

    Args:
        shards: Paths or URLs, in a list or in one string with braces: ``"shards/{000..099}.tar"``.
        shuffle: Size of each worker's shuffle buffer, in items; the order of the files is shuffled too. 0 keeps the
            stored order.
        seed: Seed of the shuffling. The order differs from epoch to epoch and is the same in every run.

    Raises:
        FileNotFoundError: A shard does not exist.
        ImportError: The package webdataset is missing.
        TypeError: ``shuffle`` or ``seed`` is not a whole number.
        ValueError: There are no shards, a path has a drive letter, or ``shuffle`` or ``seed`` is negative.
    """

    @name_arguments
    def __init__(self, shards: str | Path | Sequence[str | Path], shuffle: int = 1000, seed: int = 0) -> None:
        try:
            from webdataset.shardlists import expand_urls
        except ImportError as error:
            raise ImportError("tar shards are read by webdataset: pip install 'ddpm-data[webdataset]'") from error
        patterns = [shards] if isinstance(shards, str | Path) else shards
        # WebDataset reads a backslash as an escape: it would not expand a brace that follows.
        paths = [str(pattern).replace(os.sep, "/") for pattern in patterns]
        self.shards: list[str] = [shard for path in paths for shard in expand_urls(path)]
        self.shuffle = check_int("TarShards", "dataset.train.shuffle", shuffle, 0)
        self.seed = check_int("TarShards", "dataset.train.seed", seed, 0)
        if not self.shards:
            raise ValueError("TarShards([]): there is nothing to read. Change `dataset.shards`.")
        for shard in self.shards:
            address = urlparse(shard)
            if len(address.scheme) == 1:
                raise ValueError(
                    f"TarShards: WebDataset would take the drive of {shard} for a protocol. Change "
                    "`dataset.shards` to a path without one, from the current folder (shards/000.tar) or the current "
                    "drive's root (/shards/000.tar)."
                )
            if address.scheme in ("", "file") and not Path(address.path).is_file():
                is_many = Path(address.path).is_dir() or any(sign in shard for sign in "*?[")
                hint = " Several files are a list, or are written with braces: shards/{000..099}.tar." * is_many
                raise FileNotFoundError(f"TarShards: there is no file {shard}.{hint} Change `dataset.shards`.")

    def __iter__(self) -> Iterator[dict[str, object]]:
        return map(refuse_damaged, self.samples(EpochShard(find_epoch(), 1, 0)))

    def samples(self, share: EpochShard) -> Iterator[dict[str, object] | DamagedSample]:
        """Read the items that belong to the current worker of one process.

        Args:
            share: The epoch, world size and rank.

        Raises:
            ValueError: There are fewer shards than workers of all processes.
        """
        from webdataset import WebDataset

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first, step = share.rank * workers + worker, share.world_size * workers
        if len(self.shards) < step:
            raise ValueError(
                f"TarShards: {len(self.shards)} shard(s) cannot be shared out to {share.world_size} process(es) with "
                f"{workers} worker(s) each: some workers would get none, and the others would wait for them forever. "
                "Lower `loader.num_workers`, use fewer devices, or write more and smaller shards (`dataset.shards`)."
            )
        order = self.shards
        if self.shuffle:
            order = random.Random(f"{self.seed} {share.epoch}").sample(order, len(order))  # the same in every process
        tar = WebDataset(order[first::step], nodesplitter=None, workersplitter=None, shardshuffle=False, seed=0)
        buffered = tar.shuffle(self.shuffle, rng=random.Random(f"{self.seed} {share.epoch} {first}"))
        return map(partial(_parse_sample, list_suffixes()), buffered)


def _parse_sample(image_suffixes: set[str], sample: dict[str, object]) -> dict[str, object] | DamagedSample:
    parsed = {}
    for name, value in sample.items():
        path = f"{sample['__url__']}, {sample['__key__']}.{name}"
        try:
            parsed[name] = _parse_file(path, name, value, image_suffixes) if isinstance(value, bytes) else value
        except MemoryError:
            raise
        except Exception as error:  # parsers raise many types of error on damaged files
            reason = str(error) if path in str(error) else f"{path} cannot be read: {type(error).__name__}: {error}"
            return DamagedSample(ValueError(f"{reason}. Repair the file, or change `dataset.shards`."))
    return parsed


def _parse_file(path: str, name: str, content: bytes, image_suffixes: set[str]) -> object:
    suffix = name.rpartition(".")[2].lower()
    if suffix in _PARSERS:
        return _PARSERS[suffix](content)
    return open_image(content, f".{suffix}", path) if f".{suffix}" in image_suffixes else content


def _parse_array(content: bytes) -> object:
    return np.load(BytesIO(content), allow_pickle=False)


_PARSERS: dict[str, Callable[[bytes], object]] = {
    "cls": int,
    "txt": bytes.decode,
    "json": json.loads,
    "npy": _parse_array,
}
