"""Records of models that were read before, in memory and in a file.

A record is used again while the state of its files is the same (see `library_files`). The file is written whole and
put in place in one step, so a reader never sees half of it. Two servers may share it: whoever writes adds what the
other has written, and what is lost when both write at once is only read again. A damaged file, or one that other code
has made, is ignored and replaced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from .files import write_whole
from .records import ModelRecord

CACHE_FILE = "model_library_cache.json"

_READERS = ("records", "tags", "families", "headers", "sidefiles", "library_files", "library")


@dataclass(frozen=True)
class Entry:
    """A record and the state that the files had when it was read."""

    state: str
    record: ModelRecord


@dataclass(frozen=True)
class _Saved:
    made_by: str
    entries: dict[str, Entry]


class Cache:
    """Entries by kind and path. With a folder, they are also kept in a file there."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / CACHE_FILE if folder is not None else None
        self._entries = dict(self._load())
        self._changed = False
        self._lock = threading.Lock()

    def get(self, key: str, state: str) -> ModelRecord | None:
        """The record, if its files are as they were."""
        entry = self._entries.get(key)
        return entry.record if entry is not None and entry.state == state else None

    def put(self, key: str, state: str, record: ModelRecord) -> None:
        with self._lock:
            self._entries[key] = Entry(state, record)
            self._changed = True

    def save(self) -> None:
        """Write the file if there is anything new. A file that cannot be written is only a slower start next time."""
        with self._lock:
            if self._file is None or not self._changed:
                return
            merged = {**self._load(), **self._entries}
            self._entries = {key: entry for key, entry in merged.items() if os.path.exists(key_path(key))}
            self._changed = False
            # ValueError: a path that is no Unicode.
            with contextlib.suppress(OSError, ValueError):
                write_whole(self._file, _adapter().dump_json(_Saved(_made_by(), self._entries)))

    def _load(self) -> Mapping[str, Entry]:
        """The entries in the file; none if there is no file or it is of no use."""
        if self._file is None:
            return {}
        try:
            saved = _adapter().validate_json(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return saved.entries if saved.made_by == _made_by() else {}


def cache_key(kind: str, path: str) -> str:
    """The name of an entry: one file may be a model of two kinds."""
    return f"{kind}:{path}"


def key_path(key: str) -> str:
    """The path in the name of an entry."""
    return key.partition(":")[2]


@functools.lru_cache(maxsize=8)
def open_cache(folder: Path | None) -> Cache:
    """The cache of a folder, the same one for every scan of this process."""
    return Cache(folder)


@functools.cache
def _adapter() -> TypeAdapter[_Saved]:
    return TypeAdapter(_Saved)


@functools.cache
def _made_by() -> str:
    """Changes with the code that makes records, so that no record of older code is used."""
    code = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in _READERS)
    return hashlib.sha256(code).hexdigest()
