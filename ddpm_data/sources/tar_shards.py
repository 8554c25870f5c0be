"""Tar shards as WebDataset has them; nothing in them is unpickled."""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from ddpm_data._checks import check_int
from ddpm_data._distributed import EpochShard

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # not EPS, for which PIL would start Ghostscript


class TarShards(IterableDataset[dict[str, object]]):
    """Samples of tar files as WebDataset has them; an epoch gives each file to one worker of one process.

    A sample is a dict of the files that share a name, by their endings. Images are PIL's, not yet decoded; ``cls``,
    ``txt``, ``json`` and ``npy`` become what they say; all else stays bytes. Nothing is unpickled, as WebDataset's own
    decoders do with ``.pyd``, ``.pickle`` and ``.pth``, which runs whatever code whoever wrote the file put there.

    Args:
        shards: Paths or URLs, in a list or in one string with braces: ``"shards/{000..099}.tar"``.
        shuffle: Samples each worker keeps to draw from; the files' order is shuffled too. 0 leaves all in order.
        seed: Of the shuffling, which is another each epoch and the same in each run.

    Raises:
        FileNotFoundError: A file is missing.
        ImportError: The package webdataset is missing.
        TypeError: A number is no whole number.
        ValueError: There are no shards, one has a drive letter, or a number is negative.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path], shuffle: int = 1000, seed: int = 0) -> None:
        try:
            from webdataset.shardlists import expand_urls
        except ImportError as error:
            raise ImportError("tar shards are read by webdataset: pip install 'ddpm-data[webdataset]'") from error
        given = [shards] if isinstance(shards, str | Path) else shards
        # To WebDataset a backslash says that no brace follows.
        self.shards: list[str] = [shard for part in given for shard in expand_urls(str(part).replace(os.sep, "/"))]
        self.shuffle = check_int("TarShards", "dataset.train.shuffle", shuffle, 0)
        self.seed = check_int("TarShards", "dataset.train.seed", seed, 0)
        if not self.shards:
            raise ValueError("TarShards([]): there is nothing to read. Change `dataset.shards`.")
        for shard in self.shards:
            address = urlparse(shard)
            if len(address.scheme) == 1:
                raise ValueError(
                    f"TarShards: WebDataset would take the drive of {shard} for a protocol. Give a path without one, "
                    "from the current folder (shards/000.tar) or the current drive's root (/shards/000.tar): "
                    "`dataset.shards`."
                )
            if address.scheme in ("", "file") and not Path(address.path).is_file():
                raise FileNotFoundError(f"TarShards: there is no file {shard}. Change `dataset.shards`.")

    def __iter__(self) -> Iterator[dict[str, object]]:
        return self.samples(EpochShard(0, 1, 0))

    def samples(self, share: EpochShard) -> Iterator[dict[str, object]]:
        """The samples of one worker of a process.

        Raises:
            ValueError: There are fewer shards than workers of all processes, or a file's content is not what it says.
        """
        from webdataset import WebDataset

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first, step = share.rank * workers + worker, share.world_size * workers
        if len(self.shards) < step:
            raise ValueError(
                f"TarShards: {len(self.shards)} shard(s) cannot be shared out to {share.world_size} process(es) of "
                f"{workers} worker(s): some would have none, and the others wait for them for ever. Lower "
                "`loader.num_workers`, use fewer devices, or write more and smaller shards (`dataset.shards`)."
            )
        order = self.shards
        if self.shuffle:
            order = random.Random(f"{self.seed} {share.epoch}").sample(order, len(order))  # the same in every process
        tar = WebDataset(order[first::step], nodesplitter=None, workersplitter=None, shardshuffle=False, seed=0)
        buffered = tar.shuffle(self.shuffle, rng=random.Random(f"{self.seed} {share.epoch} {first}"))
        return map(_read, buffered)


def _read(sample: dict[str, object]) -> dict[str, object]:
    return {
        name: _field(f"{sample['__url__']}, {sample['__key__']}.{name}", name.rpartition(".")[2], value)
        if isinstance(value, bytes)
        else value
        for name, value in sample.items()
    }


def _field(where: str, ending: str, content: bytes) -> object:
    try:
        if ending in _READERS:
            return _READERS[ending](content)
        if Image.registered_extensions().get(f".{ending}") not in _FORMATS:
            return content
        image = Image.open(BytesIO(content), formats=_FORMATS)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    image.filename = where  # for errors to name
    return image


def _array(content: bytes) -> object:
    return np.load(BytesIO(content), allow_pickle=False)


_READERS: dict[str, Callable[[bytes], object]] = {"cls": int, "txt": bytes.decode, "json": json.loads, "npy": _array}
