"""What a dataset keeps that decides its conditions: lists, dicts and arrays in memory, and the files that it names.

To read the conditions themselves would be to decode every image. So this looks at where they come from.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor

from ddpm_data._bytes import bytes_of

_ENTRIES_TRIED = 16  # of a list, to see whether it lists files
_DATA = (list, tuple, Mapping, set, frozenset, np.ndarray, Tensor)


def digest_state(dataset: object) -> str:
    """Digest what a dataset keeps in its attributes, and in those of the datasets in it.

    These count:

    - lists, dicts, arrays and tables, by value (a captions list, labels, records)
    - what torchvision's ``target_transform`` makes of each of the ``targets``
    - files that an attribute names, and files that a list names, with others of the same name beside them
      (``1.txt`` beside ``1.jpg``), by size and time
    - the ``_fingerprint`` of datasets that have one, such as Hugging Face's, in place of all this

    Single numbers and other objects do not: they may well change from run to run (counters, clients, open files), and
    where they matter they show in every item.

    Args:
        dataset: Any map-style dataset.

    Returns:
        Hexadecimal digits, the same after a folder of files has moved.
    """
    state = _StateDigest()
    state.add_dataset(dataset)
    return state.digest.hexdigest()


class _StateDigest:
    def __init__(self) -> None:
        self.digest = blake2b(digest_size=12)
        self._kept: dict[int, object] = {}  # what has been walked, by its id; kept, so that no other gets the id

    def add_dataset(self, dataset: object) -> None:
        if self._is_known(dataset):
            return
        named = getattr(dataset, "_fingerprint", None)
        if isinstance(named, str):
            self._update("named", named)
            return
        if isinstance(dataset, _DATA):
            self._add_values(dataset, [])
        attributes = getattr(dataset, "__dict__", {})
        self._add_labels(dataset)
        folders = [os.fspath(v) for v in attributes.values() if isinstance(v, str | PurePath) and os.path.isdir(v)]
        walked = set()
        for name, value in sorted(attributes.items()):
            if id(value) in walked:  # torchvision's folders have one list under two names
                continue
            walked.add(id(value))
            if isinstance(value, str | PurePath):
                if os.path.isfile(value):
                    self._update(name, *_describe_file(value))
            elif isinstance(value, _DATA) or _is_table(value):
                self._update(name)
                self._add_values(value, folders)
            elif hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, bytes):
                self._update(name, type(value).__qualname__)
                self.add_dataset(value)

    def _add_labels(self, dataset: object) -> None:
        transform, targets = getattr(dataset, "target_transform", None), getattr(dataset, "targets", None)
        if callable(transform) and isinstance(targets, list | Tensor | np.ndarray):
            with suppress(Exception):  # any code of the user's; items that it fails for say so when they are read
                labels = targets if isinstance(targets, list) else targets.tolist()
                self._add([transform(label) for label in sorted(set(labels))], [])

    def _add_values(self, values: object, folders: list[str]) -> None:
        """Add data, and the files that they name, if any; paths count from the folders on."""
        with suppress(RecursionError):  # of what lies too deep, the rest is left out
            self._add(values, [os.path.join(folder, "") for folder in folders])
        for column in _list_columns(values):
            for folder in ("", *folders):
                if any(os.path.isfile(os.path.join(folder, name)) for name in column[:_ENTRIES_TRIED]):
                    self._add_files(os.path.join(folder, name) for name in column)
                    break

    def _add_files(self, paths: Iterable[str]) -> None:
        """Add files, and all files of the same names but for their suffixes."""
        stems: dict[str, set[str]] = {}
        for path in paths:
            folder, name = os.path.split(path)
            stems.setdefault(folder, set()).add(os.path.splitext(name)[0])
        for folder in sorted(stems):
            if os.path.isdir(folder):
                with os.scandir(folder) as entries:
                    names = sorted(e.name for e in entries if os.path.splitext(e.name)[0] in stems[folder])
                for name in names:
                    self._update(name, *_describe_file(os.path.join(folder, name)))

    def _add(self, value: Any, prefixes: list[str]) -> None:  # noqa: ANN401  # any data
        try:
            text = json.dumps(value, default=_simplify)
        except (TypeError, ValueError, RecursionError):  # there is more in it than JSON knows
            self._add_parts(value, prefixes)
            return
        for prefix in prefixes:
            text = text.replace(json.dumps(prefix)[1:-1], "")
        self._update(text)

    def _add_parts(self, value: Any, prefixes: list[str]) -> None:  # noqa: ANN401  # any data
        if self._is_known(value):
            return
        if isinstance(value, Tensor | np.ndarray):
            self._add_array(value, prefixes)
        elif _is_table(value):
            text = str(value.shape)
            with suppress(Exception):  # pandas' own, for columns that JSON cannot hold
                text = value.to_json()
            self._update(text)
        elif isinstance(value, set | frozenset):
            self._update(*sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            self._update("mapping", str(len(value)))
            for key, part in value.items():
                self._add(key, prefixes)
                self._add(part, prefixes)
        elif isinstance(value, list | tuple):
            self._update("list", str(len(value)))
            for part in value:
                self._add(part, prefixes)
        elif isinstance(value, bytes | bytearray):
            self.digest.update(value)
        else:
            self._update(type(value).__qualname__)
            if type(value).__module__.partition(".")[0] not in ("PIL", "torch", "builtins"):
                self._add(getattr(value, "__dict__", {}), prefixes)  # a record

    def _add_array(self, value: Tensor | np.ndarray[Any, Any], prefixes: list[str]) -> None:
        self._update(str(value.dtype), str(tuple(value.shape)))
        if isinstance(value, np.memmap) and value.filename is not None:
            self._update(*_describe_file(value.filename))
        elif isinstance(value, np.ndarray) and value.dtype.hasobject:
            self._add(value.tolist(), prefixes)
        else:
            raw = value if isinstance(value, np.ndarray) else bytes_of(value.cpu())
            self.digest.update(np.ascontiguousarray(raw).data)

    def _is_known(self, value: object) -> bool:
        """Tell whether a value has been walked before, as where two values contain each other."""
        is_known = id(value) in self._kept
        self._kept[id(value)] = value
        if is_known:
            self._update("again")
        return is_known

    def _update(self, *texts: str) -> None:
        for text in texts:
            encoded = text.encode(errors="surrogatepass")
            self.digest.update(len(encoded).to_bytes(8, "little"))
            self.digest.update(encoded)


def _list_columns(values: Any) -> Iterator[list[str]]:  # noqa: ANN401  # any data
    """Yield the lists of strings in data: a list itself, a table's columns, a dict's keys and values."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "UO":
        values = values.tolist()
    columns: list[Any] = []
    if isinstance(values, Mapping):
        columns = [list(values), list(values.values())]
    elif _is_table(values):
        columns = [list(values[name]) for name in values] if hasattr(values, "columns") else [list(values)]
    elif isinstance(values, list | tuple) and values:
        rows, first = values, values[0]
        if isinstance(first, tuple | list):
            columns = [
                [row[i] for row in rows if isinstance(row, tuple | list) and i < len(row)] for i in range(len(first))
            ]
        elif isinstance(first, Mapping):
            columns = [[row[key] for row in rows if isinstance(row, Mapping) and key in row] for key in first]
        else:
            columns = [list(rows)]
    for column in columns:
        if column and all(isinstance(entry, str | PurePath) for entry in column):
            yield [os.fspath(entry) for entry in column]


def _describe_file(path: str | PurePath) -> tuple[str, str]:
    stat = os.stat(path)
    return str(stat.st_size), str(stat.st_mtime_ns)


def _simplify(value: object) -> object:
    """Return what JSON knows in place of a path, NumPy's number or a record."""
    if isinstance(value, PurePath):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError


def _is_table(value: object) -> bool:
    """Tell whether a value is a table or column of pandas, which need not be installed."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_json")
