"""What models are installed, read from their files' headers.

A safetensors header holds free text under `__metadata__`. Read from it are the `modelspec.*` keys
(Stability AI's Model Metadata Standard), kohya's `ss_tag_frequency`, and `atelier.example_prompts`,
a JSON list of prompts that show what the model is for. No tensor is read. A file of another format
has no header: it is described by its name.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from safetensors import SafetensorError, safe_open

_LONGEST = 1000
"""Characters kept of one description: encoders read about as much, and some files carry whole web pages."""

_TRAINING_TAGS = 12
"""Tags kept of `ss_tag_frequency`, the most frequent first: the long tail says little about a model."""


@dataclass(frozen=True)
class ModelRecord:
    """One installed model.

    `name` is the host's name of the file: relative to its models folder, with the host's separators.
    `style_tags` and `subject_tags` are lower-case. `notes` says what in the header could not be read.
    """

    name: str
    title: str = ""
    description: str = ""
    subject_tags: tuple[str, ...] = ()
    style_tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    usage_hint: str = ""
    example_prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classified(self) -> bool:
        """Whether the model has any tag to place it by."""
        return bool(self.subject_tags or self.style_tags)


@dataclass(frozen=True)
class Library:
    """The models that can be chosen, by name, and the files that cannot, with the reason."""

    models: tuple[ModelRecord, ...]
    skipped: Mapping[str, str]


def scan(names: Iterable[str], locate: Callable[[str], str | None]) -> Library:
    """Read the records of `names`; `locate` gives a name's full path, or None when the file is gone.

    A file that is gone, unreadable or damaged is skipped with the reason; it never raises.
    """
    models: list[ModelRecord] = []
    skipped: dict[str, str] = {}
    for name in sorted(names):
        path = locate(name)
        try:
            if path is None:
                raise FileNotFoundError("the file is gone")
            stat = Path(path).stat()
            metadata = _metadata(path, stat.st_size, stat.st_mtime_ns)
        except (OSError, SafetensorError, ValueError) as error:
            skipped[name] = str(error) or type(error).__name__
        else:
            models.append(record(name, metadata))
    return Library(tuple(models), skipped)


@functools.lru_cache(maxsize=4096)
def _metadata(path: str, size: int, mtime_ns: int) -> Mapping[str, str]:
    """The text in a file's header. The size and time are there so that a changed file is read again."""
    if not path.lower().endswith((".safetensors", ".sft")):
        return {}
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def record(name: str, metadata: Mapping[str, str]) -> ModelRecord:
    """Make a record of a header's text. What cannot be read is left out and noted."""
    notes: list[str] = []
    examples = _json(metadata, "atelier.example_prompts", list, notes)
    subjects, styles = _tags(metadata, notes)
    return ModelRecord(
        name=name,
        title=metadata.get("modelspec.title", "").strip() or name_in_words(name),
        description=metadata.get("modelspec.description", "").strip()[:_LONGEST],
        subject_tags=subjects,
        style_tags=styles,
        trigger_words=_split(metadata.get("modelspec.trigger_phrase", "")),
        usage_hint=metadata.get("modelspec.usage_hint", "").strip()[:_LONGEST],
        example_prompts=tuple(str(prompt)[:_LONGEST] for prompt in examples),
        notes=tuple(notes),
    )


def name_in_words(name: str) -> str:
    """A file's name as words: `anime\\pixelArt_v2.safetensors` → "pixel Art v2"."""
    stem = PureWindowsPath(name).stem
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return re.sub(r"[\W_]+", " ", spaced).strip() or stem


def _json(metadata: Mapping[str, str], key: str, kind: type, notes: list[str]) -> list | dict:
    """The JSON under a key, or an empty one of its kind."""
    try:
        value = json.loads(metadata.get(key) or "null")
    except (ValueError, RecursionError):
        value = metadata[key]
    if value is None:
        return kind()
    if not isinstance(value, kind):
        notes.append(f"{key} is not a JSON {'list' if kind is list else 'object'}")
        return kind()
    return value


def _tags(metadata: Mapping[str, str], notes: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The subject tags and the style tags of a header.

    `subject:` and `style:` say which it is; a plain tag is a style if one of its words is in `STYLE_WORDS`.
    A tag of `ALL_ROUND_TAGS` stands for `ANY_STYLE`.
    """
    tags = list(_split(metadata.get("modelspec.tags", "")))
    if not tags:
        counts: Counter[str] = Counter()
        for folder in _json(metadata, "ss_tag_frequency", dict, notes).values():
            if isinstance(folder, dict):
                counts.update({tag: n for tag, n in folder.items() if isinstance(n, int)})
        tags = [tag.strip() for tag, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        tags = tags[:_TRAINING_TAGS]
    subjects, styles = [], []
    for tag in (tag.casefold() for tag in tags):
        level, colon, label = tag.partition(":")
        label = label.strip()
        if tag in ALL_ROUND_TAGS:
            styles.append(ANY_STYLE)
        elif colon and level.strip() in ("subject", "style"):
            (subjects if level.strip() == "subject" else styles).append(label)
        elif STYLE_WORDS & set(re.findall(r"\w+", tag)):
            styles.append(tag)
        else:
            subjects.append(tag)
    return _unique(subjects), _unique(styles)


def _split(text: str) -> tuple[str, ...]:
    return _unique(part.strip() for part in re.split(r"[,;\n]", text))


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts that are not empty, each once, in their first order."""
    return tuple(dict.fromkeys(text for text in texts if text))


ANY_STYLE = "any style"
"""The style of a model that is not tied to one: the choice for a wish that names no style."""

ALL_ROUND_TAGS = frozenset(
    (
        ANY_STYLE,
        "style:any",
        "all-round",
        "all round",
        "base",
        "base model",
        "general",
        "general purpose",
        "versatile",
    )
)

_STYLE_WORDS_LISTED = """
2d 3d 8bit abstract analog anime art artistic baroque cartoon chalk charcoal cinematic comic cubism
cyberpunk digital drawing fantasy film flat gothic graffiti illustration impressionism impressionist ink
isometric line lineart lowpoly manga minimalist mosaic neon noir oil painterly painting papercut pastel
pencil photo photographic photography photorealism photorealistic pixel pixelart pop poster realism
realistic render retro sculpture semirealistic sketch stylised stylized surreal surrealism vaporwave
vector vintage voxel watercolor watercolour woodcut
"""

STYLE_WORDS = frozenset(_STYLE_WORDS_LISTED.split())
"""Words by which a plain tag is taken for a style; any other plain tag is a subject."""
