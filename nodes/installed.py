"""Which models the host has, for the nodes that choose among them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import folder_paths

from ..llm.library import fingerprint, scan
from ..llm.records import Kind, Library

FOLDERS: dict[Kind, str] = {"checkpoint": "checkpoints", "lora": "loras"}
"""The kinds that the stock loaders of an expansion can load, and the host's folders of their files."""


def private_folder() -> Path:
    """The host's folder for this pack, which is not served over HTTP: edits, caches, trees, ratings."""
    return Path(folder_paths.get_system_user_directory("atelier"))


def installed(kind: Kind, patterns: str) -> list[str]:
    """The installed files of a kind whose name matches a pattern; upper and lower case are the same."""
    wanted = [part.strip().replace("\\", "/").casefold() for part in patterns.split(",")]

    def matches(name: str) -> bool:
        path = name.replace("\\", "/").casefold()
        return any(path == part or fnmatchcase(path, part) for part in wanted if part)

    return [name for name in folder_paths.get_filename_list(FOLDERS[kind]) if matches(name)]


def locate(kind: Kind) -> Callable[[str], str | None]:
    """What gives the full path of a name, None when the file is gone."""
    return functools.partial(folder_paths.get_full_path, FOLDERS[kind])


def installed_state(checkpoints: str, loras: str) -> str:
    """A text that changes when the models that match do: files, what is known of them, the user's edits."""
    kinds: tuple[tuple[Kind, str], ...] = (("checkpoint", _or_all(checkpoints)), ("lora", loras))
    return "/".join(fingerprint(installed(kind, said), locate(kind), private_folder()) for kind, said in kinds)


def read_library(checkpoints: str, loras: str) -> Library:
    """The checkpoints and LoRAs that match.

    Raises:
        ValueError: no checkpoint can be chosen; the message says how to get one.
    """
    names = installed("checkpoint", _or_all(checkpoints))
    found = scan(names, locate("checkpoint"), "checkpoint", private_folder())
    _check(found, names, checkpoints)
    more = scan(installed("lora", loras), locate("lora"), "lora", private_folder())
    skipped = {**found.skipped, **{f"lora:{name}": why for name, why in more.skipped.items()}}
    return Library((*found.models, *more.models), skipped, tuple(dict.fromkeys((*found.notes, *more.notes))))


def _or_all(patterns: str) -> str:
    return patterns if patterns.strip(" ,") else "*"


def _check(library: Library, names: list[str], patterns: str) -> None:
    """Raise what tells a user how to get a checkpoint that can be chosen, if there is none."""
    if library.models:
        return
    everything = folder_paths.get_filename_list("checkpoints")
    folders = ", ".join(folder_paths.get_folder_paths("checkpoints"))
    if not everything:
        raise ValueError(f"No checkpoint is installed. Put one in {folders}.")
    if not names:
        some = ", ".join(everything[:10]) + (", …" if len(everything) > 10 else "")
        raise ValueError(f'No checkpoint matches candidates "{patterns}". Installed are: {some}.')
    damaged = "; ".join(f"{name}: {why}" for name, why in library.skipped.items())
    raise ValueError(f"No checkpoint in {folders} can be read ({damaged}). Download it again.")
