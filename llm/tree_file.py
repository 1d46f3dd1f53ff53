"""Saved trees: one JSON file for each name, in a folder that the host does not serve."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from .files import write_whole
from .tree import ModelTree, TreeError, from_json, to_json

_NAME = re.compile(r"[\w-][\w -]{0,63}")


def tree_file(folder: Path, name: str) -> Path:
    """The file of a tree. Raises TreeError for a name that is more than a name."""
    if not _NAME.fullmatch(name):
        raise TreeError(
            f'"{name}" cannot be the name of a tree. Use letters, digits, spaces, - and _, 64 at most, and no path.'
        )
    return folder / f"{name}.json"


def read_tree(path: Path) -> ModelTree | None:
    """The saved tree, None if there is none.

    Raises:
        TreeError: the file holds something else; the message names the place.
    """
    try:
        return from_json(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise TreeError(f"{path} cannot be read: {error}. Save it as UTF-8 text, or rebuild the tree.") from None


def write_tree(path: Path, tree: ModelTree) -> bool:
    """Save a tree whole or not at all. Tells whether the file changed."""
    text = to_json(tree)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return False
    write_whole(path, text.encode("utf-8"))
    return True


def set_aside(path: Path) -> Path | None:
    """Rename a saved tree to `NAME.before-rebuild-1.json`, or the next free number. None if there is no tree."""
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_suffix(f".before-rebuild-{number}.json")).exists():
        number += 1
    os.replace(path, aside)
    return aside
