"""The files that belong to a model: which lie beside it, and the state by which a change is seen."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from dataclasses import dataclass

from .sidefiles import JSON_SUFFIXES, TEXT_SUFFIXES

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PREVIEW_SUFFIXES = tuple(f"{middle}{ending}" for middle in (".preview", "") for ending in _PICTURES)


@dataclass(frozen=True)
class ModelFiles:
    """A model's file and those beside it.

    `identity` is the same for two names of one file. `state` changes when the model, a side file or its preview does.
    """

    path: str
    identity: tuple[int, int]
    state: str
    side_files: tuple[str, ...]
    preview: str | None


class Folders:
    """Looks at models for one scan. Each folder is listed once."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, os.DirEntry[str]]] = {}

    def look(self, path: str) -> ModelFiles:
        """Find a model's files.

        Raises:
            OSError: the model is gone, or a link that leads nowhere.
            ValueError: it is something else than a file, or an empty one.
        """
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is a folder or a device, not a file")
        if not found.st_size:
            raise ValueError("the file is empty")
        folder, file = os.path.split(path)
        stem = os.path.splitext(file)[0]
        listed = self._list(folder)
        beside = [listed.get(_key(stem + suffix)) for suffix in (*JSON_SUFFIXES, *TEXT_SUFFIXES)]
        pictures = [listed.get(_key(stem + suffix)) for suffix in PREVIEW_SUFFIXES]
        side_files = [entry for entry in beside if entry]
        preview = next((entry for entry in pictures if entry), None)
        entries = [*side_files, *([preview] if preview else [])]
        states = [(file, found.st_size, found.st_mtime_ns), *map(_state, entries)]
        return ModelFiles(
            path=path,
            identity=(found.st_dev, found.st_ino),
            state=hashlib.sha256(repr(states).encode("utf-8", "surrogatepass")).hexdigest(),
            side_files=tuple(entry.path for entry in side_files),
            preview=preview.path if preview else None,
        )

    def _list(self, folder: str) -> dict[str, os.DirEntry[str]]:
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {_key(entry.name): entry for entry in entries}
            except OSError:
                self._listed[folder] = {}  # a folder that may be entered but not listed: no side files
        return self._listed[folder]


def _key(file: str) -> str:
    """A file's name so that it is found in either form of Unicode, and with `.PNG` for `.png`."""
    stem, ending = os.path.splitext(unicodedata.normalize("NFC", file))
    return stem + ending.lower()


def _state(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    try:
        found = entry.stat()
    except OSError:
        return entry.name, 0, 0
    return entry.name, found.st_size, found.st_mtime_ns
