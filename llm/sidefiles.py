"""What stands in the files beside a model. For `models/a.safetensors` they are, the first that has a thing winning:

- `a.json`: what a user typed into the web UI of AUTOMATIC1111 ("activation text", "preferred weight",
  "negative text", "description", "notes", "sd version");
- `a.metadata.json`: LoRA Manager (`model_name`, `base_model`, `modelDescription`, `tags`, `notes`, `usage_tips`, and
  under `civitai` the next format);
- `a.civitai.info`: Civitai Helper, a model version of Civitai's API (`model.name`, `model.tags`, `description`,
  `trainedWords`, `baseModel`, `images` with the `prompt` and `negativePrompt` of each in `meta`);
- `a.txt`, `a.description.txt`: a description.

The three JSON formats share no key with two meanings, so one reader takes them all, whatever file they stand in.
All of it is text by strangers: markup is dropped, sizes are bounded, and what is not as it should be is noted.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from .families import family_of
from .records import clean, split, unique

JSON_SUFFIXES = (".json", ".metadata.json", ".civitai.info")
TEXT_SUFFIXES = (".txt", ".description.txt")

LARGEST_FILE = 4 * 1024**2
"""Bytes of a side file that is read. Those with dozens of pictures in them have a few hundred kB."""

STRONGEST = 10.0
"""Strengths beyond this are mistakes."""

_MOST_EXAMPLES = 12
_MOST_WORDS = 20
_MARKUP_READ = 20 * 1024
"""Characters of a description whose markup is looked at, of which `LONGEST` are kept."""

_MARKUP = re.compile(r"<[a-zA-Z/!][^<>]*>|&#?\w+;")
_NETWORK = re.compile(r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>,?\s*", re.IGNORECASE)
"""The web UI's call of a LoRA in a prompt. Whoever reads the prompt here need not have that file."""


@dataclass(frozen=True)
class SideText:
    """What side files say; a field that none of them fills is empty. `base_model` is as written there."""

    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    usage_hint: str = ""
    example_prompts: tuple[str, ...] = ()
    negative: str = ""
    base_model: str = ""
    strength: float | None = None
    notes: tuple[str, ...] = ()


def read_side_files(paths: Iterable[str]) -> SideText:
    """Read side files, the most trusted first. What cannot be read is noted; it never raises."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for path in map(Path, paths):
        try:
            said = _read(path)
        except FileNotFoundError:
            continue  # deleted since the folder was listed
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            notes.append(f"{path.name}: {reason}")
            continue
        notes += [f"{path.name}: {note}" for note in said.notes]
        for field in fields(said):
            value = getattr(said, field.name)
            if value and not found.get(field.name):
                found[field.name] = value
    return SideText(**{**found, "notes": tuple(notes)})


def plain_text(text: str) -> str:
    """A text without its markup, its paragraphs on lines of their own."""
    if not _MARKUP.search(text):
        return clean(text)
    text = text[:_MARKUP_READ]
    parser = _Text()
    try:
        parser.feed(text)
        parser.close()
        text = "".join(parser.parts)
    except AssertionError:  # how html.parser refuses a malformed declaration before Python 3.14
        text = _MARKUP.sub("\n", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return clean("\n".join(line for line in lines if line))


def without_networks(text: str) -> str:
    """A prompt without the web UI's calls of LoRAs, `<lora:name:0.8>`."""
    return clean(_NETWORK.sub("", text)).rstrip(", ")


class _Text(HTMLParser):
    """Collects the text of a page, without scripts and styles."""

    _SILENT = ("script", "style")
    _INLINE = ("a", "b", "i", "u", "s", "em", "strong", "span", "code", "mark", "sub", "sup")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent = tag in self._SILENT
        if tag not in self._INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False
        if tag not in self._INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def _read(path: Path) -> SideText:
    """Raises OSError, ValueError and RecursionError with what a user can understand."""
    if not path.is_file():
        path.stat()  # tells a file that is gone from one that is something else
        raise ValueError("is not a file")
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        raise ValueError(f"is larger than {LARGEST_FILE:,} bytes and was not read")
    text = _decode(raw)
    if path.name.lower().endswith(TEXT_SUFFIXES):
        return SideText(description=plain_text(text))
    if not text.strip():
        return SideText()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("is not a JSON object")
    return _from_json(data)


def _decode(raw: bytes) -> str:
    """Text in UTF-8, or in UTF-16 if it says so."""
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8; save it as UTF-8") from None


def _from_json(data: dict[str, Any]) -> SideText:
    top = _Object(data)
    version = _Object(top.dict("civitai") or data, top.notes)
    model = _Object(version.dict("model"), top.notes)
    metas = [_Object(_Object(image).dict("meta")) for image in version.list("images") if isinstance(image, dict)]
    negatives = Counter(text for meta in metas if (text := without_networks(meta.text("negativePrompt"))))
    tips = _Object(top.json("usage_tips"), top.notes)
    bases = top.text("sd version"), top.text("base_model"), version.text("baseModel")
    examples = unique(without_networks(meta.text("prompt")) for meta in metas)
    return SideText(
        title=clean(top.text("model_name") or model.text("name")),
        description=plain_text(
            top.text("modelDescription") or model.text("description") or version.text("description")
        ),
        tags=top.words("tags") or model.words("tags"),
        trigger_words=(top.words("activation text") or version.words("trainedWords"))[:_MOST_WORDS],
        usage_hint=plain_text(top.text("notes")),
        example_prompts=examples[:_MOST_EXAMPLES],
        negative=clean(top.text("negative text")) or next((text for text, _ in negatives.most_common(1)), ""),
        base_model=next(filter(family_of, map(clean, bases)), ""),
        strength=top.strength("preferred weight") or tips.strength("strength"),
        notes=tuple(top.notes),
    )


class _Object:
    """A JSON object whose fields are read by type. A field of another type counts as empty and is noted."""

    def __init__(self, data: dict[str, Any], notes: list[str] | None = None) -> None:
        self._data = data
        self.notes: list[str] = [] if notes is None else notes

    def text(self, key: str) -> str:
        return self._get(key, str, "a text") or ""

    def dict(self, key: str) -> dict[str, Any]:
        return self._get(key, dict, "an object") or {}

    def list(self, key: str) -> list[Any]:
        return self._get(key, list, "a list") or []

    def json(self, key: str) -> dict[str, Any]:
        """An object, or a text that holds one."""
        value = self._data.get(key)
        if isinstance(value, str):
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value or "{}")
        if value is None or isinstance(value, dict):
            return value or {}
        self.notes.append(f"{key} is not an object")
        return {}

    def words(self, key: str) -> tuple[str, ...]:
        """Words from a text, from a list of texts, or from a list of objects with a `name`."""
        value = self._get(key, (str, list), "a text or a list")
        items = value if isinstance(value, list) else [value]
        names = [item.get("name") if isinstance(item, dict) else item for item in items]
        texts = [name for name in names if isinstance(name, str)]
        return unique(word for text in texts for word in split(_NETWORK.sub("", text)))

    def strength(self, key: str) -> float | None:
        """A LoRA's strength. The web UI writes 0 for none."""
        value = self._get(key, (int, float), "a number")
        if not value:
            return None
        if isinstance(value, bool) or not abs(value) <= STRONGEST:
            self.notes.append(f"{key} is not between {-STRONGEST:g} and {STRONGEST:g}")
            return None
        return float(value)

    def _get(self, key: str, kind: type | tuple[type, ...], called: str) -> Any:
        value = self._data.get(key)
        if value is not None and not isinstance(value, kind):
            self.notes.append(f"{key} is not {called}")
            return None
        return value
