"""What models are installed, and what is known of each.

Three sources, the first that has a thing winning: the user's edits (`library_edits`), the file's own header
(`headers`), the files beside it (`sidefiles`). After the edits, by field:

- title: `modelspec.title`; side files; `ss_output_name` and then the file's name, in words;
- description: `modelspec.description`; side files;
- tags: `modelspec.tags`; side files; `ss_tag_frequency`, which tells what was trained on, not what it is for;
- trigger words: `modelspec.trigger_phrase`; side files;
- usage hint: `modelspec.usage_hint`; side files;
- example prompts: `atelier.example_prompts`; side files;
- family: `modelspec.architecture`, `ss_base_model_version`, the tensors; side files. A header mostly names the
  architecture, so the first of side files, `ss_sd_model_name` and the file's name may narrow it, `sdxl` to `pony`;
- negative, strength: side files, because headers have no field for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath

from safetensors import SafetensorError

from .families import architecture, family_of, narrowed
from .headers import Header, read_header
from .library_cache import Cache, cache_key, open_cache
from .library_edits import Edits, read_edits
from .library_files import Folders, ModelFiles
from .records import Kind, Library, ModelRecord, clean, in_words, name_in_words, split
from .sidefiles import SideText, plain_text, read_side_files
from .tags import json_value, sort_tags, training_tags

Locate = Callable[[str], str | None]

_MOST_EXAMPLES = 100
_EDIT_CHANNELS = 8
"""The input channels of a UNet that edits: four for the noise, four for the picture."""


def scan(names: Iterable[str], locate: Locate, kind: Kind = "checkpoint", folder: Path | None = None) -> Library:
    """Read the records of `names`, sorted by name.

    Args:
        names: the host's names of the files of one kind.
        locate: gives a name's full path, or None when the file is gone.
        kind: what the files are.
        folder: where the user's edits are and the cache is kept. Without one there are no edits, and the cache is
            in memory alone.

    A file that is gone, unreadable or damaged is skipped with the reason; it never raises. A file with two names,
    such as one in a folder that links to itself, is listed once, under the shorter name.
    """
    cache, edits, folders = open_cache(folder), read_edits(folder), Folders()
    models: list[ModelRecord] = []
    skipped: dict[str, str] = {}
    seen: dict[tuple[int, int], str] = {}
    for name in sorted(names, key=lambda name: (len(PureWindowsPath(name).parts), name)):
        try:
            files = _look(name, locate, folders)
            first = seen.get(files.identity) if files.identity[1] else None
            if first is not None:
                raise ValueError(f"it is the same file as {first}")
            models.append(_known(name, kind, files, cache, edits))
        except (OSError, SafetensorError, ValueError) as error:
            skipped[_writable(name)] = _reason(error)
        else:
            seen[files.identity] = name
    cache.save()
    models.sort(key=lambda model: model.name)
    return Library(tuple(models), dict(sorted(skipped.items())), edits.notes)


def fingerprint(names: Iterable[str], locate: Locate, folder: Path | None = None) -> str:
    """A text that changes when `scan` may give something else: by files, side files, previews or the user's edits.

    It reads no file but the edits, and never raises.
    """
    folders = Folders()
    state = hashlib.sha256()
    for name in sorted(names):
        try:
            seen = _look(name, locate, folders).state
        except (OSError, ValueError) as error:
            seen = _reason(error)
        state.update(f"{_writable(name)}\n{seen}\n".encode())
    state.update(repr(read_edits(folder)).encode("utf-8", "backslashreplace"))
    return state.hexdigest()


def _look(name: str, locate: Locate, folders: Folders) -> ModelFiles:
    if _writable(name) != name:
        raise ValueError("its name is not valid Unicode: rename it")
    path = locate(name)
    if path is None:
        raise FileNotFoundError
    return folders.look(path)


def _known(name: str, kind: Kind, files: ModelFiles, cache: Cache, edits: Edits) -> ModelRecord:
    """The record from the cache or from the files, with the user's edits."""
    key = cache_key(kind, files.path)
    found = cache.get(key, files.state)
    if found is None or found.name != name:
        found = record(name, kind, read_header(files.path), read_side_files(files.side_files), files.preview)
        cache.put(key, files.state, found)
    return edits.apply(found)


def record(name: str, kind: Kind, header: Header, side: SideText, preview: str | None) -> ModelRecord:
    """What a file's header and its side files say of it, as the head of this module tells. What cannot be read is left
    out and noted. Raises ValueError for a model that edits a given picture, and draws nothing from a prompt alone."""
    if header.channels == _EDIT_CHANNELS:
        raise ValueError("it edits pictures (8 input channels) and does not draw from a prompt alone")
    text, notes = header.text, list(side.notes)
    tags = split(text.get("modelspec.tags", "")) or side.tags
    if not tags:
        tags = training_tags(text.get("ss_tag_frequency", ""), notes)
    sorted_tags = sort_tags(tags)
    examples = json_value(text.get("atelier.example_prompts", ""), "atelier.example_prompts", list, notes)
    title = clean(text.get("modelspec.title", "")) or side.title or in_words(text.get("ss_output_name", ""))
    return ModelRecord(
        name=name,
        title=title or name_in_words(name),
        description=plain_text(text.get("modelspec.description", "")) or side.description,
        subject_tags=sorted_tags.subjects,
        style_tags=sorted_tags.styles,
        trigger_words=split(text.get("modelspec.trigger_phrase", "")) or side.trigger_words,
        usage_hint=clean(text.get("modelspec.usage_hint", "")) or side.usage_hint,
        example_prompts=tuple(clean(str(prompt)) for prompt in examples[:_MOST_EXAMPLES]) or side.example_prompts,
        kind=kind,
        family=_family(name, header, side, notes),
        tags=sorted_tags.all,
        strength=side.strength if kind == "lora" else None,
        negative=side.negative,
        preview=preview,
        notes=tuple(notes),
    )


def _family(name: str, header: Header, side: SideText, notes: list[str]) -> str:
    said = family_of(side.base_model)
    if not header.family:
        return narrowed(said, (name,))
    if said and architecture(said) != architecture(header.family):
        notes.append(f"the file is for {header.family}, but a file beside it says {side.base_model}")
    return narrowed(header.family, (side.base_model, header.text.get("ss_sd_model_name", ""), name))


def _writable(name: str) -> str:
    """A name that can be saved. One that is no Unicode is shown with its bytes as `\\udcff`."""
    return name.encode("utf-8", "backslashreplace").decode()


def _reason(error: Exception) -> str:
    """Why a file is skipped, without its path."""
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
