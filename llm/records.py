"""What is known of one installed model, and how text from files of strangers is made fit to keep."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Literal

Kind = Literal["checkpoint", "diffusion_model", "lora"]

LONGEST = 1000
"""Characters kept of one text: encoders read about as much, and some files carry whole web pages."""

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, overrides of the writing direction, and halves of characters, which no file can hold."""


@dataclass(frozen=True)
class ModelRecord:
    """One installed model.

    `name` is the host's name of the file: relative to its models folder, with the host's separators. `kind` says
    which folder that is. Two models may have the same name if their kinds differ.
    `tags` are all tags; `style_tags` and `subject_tags` are those of them that place the model in a tree. All are
    lower-case. `family` is the base model that a LoRA goes with (see `families`), empty when unknown. `strength` is
    the one to apply a LoRA with, None when nobody says. `preview` is the path of a picture.
    `notes` says what about the model could not be read.
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
    kind: Kind = "checkpoint"
    family: str = ""
    tags: tuple[str, ...] = ()
    strength: float | None = None
    negative: str = ""
    preview: str | None = None

    @property
    def classified(self) -> bool:
        """Whether the model has any tag to place it by."""
        return bool(self.subject_tags or self.style_tags)


@dataclass(frozen=True)
class Library:
    """The models that can be chosen, by name, and the files that cannot, with the reason.

    `notes` says what concerns no single model, such as a file of edits that cannot be read.
    """

    models: tuple[ModelRecord, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...] = ()


def name_in_words(name: str) -> str:
    """A file's name as words: `anime\\pixelArt_v2.safetensors` → "pixel Art v2"."""
    return in_words(PureWindowsPath(name).stem)


def in_words(stem: str) -> str:
    """A name without its ending as words; the name itself if it has no letter or digit."""
    stem = unicodedata.normalize("NFC", stem)  # otherwise an accent of its own would end a word
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return re.sub(r"[\W_]+", " ", spaced).strip() or stem


def clean(text: str, longest: int = LONGEST) -> str:
    """The text in NFC, without what cannot be seen or saved, cut to its longest."""
    return _UNSEEN.sub("", unicodedata.normalize("NFC", text)).strip()[:longest].rstrip()


def split(text: str) -> tuple[str, ...]:
    """The parts between commas, semicolons and line ends, each once."""
    return unique(clean(part) for part in re.split(r"[,;\n]", text))


def unique(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts that are not empty, each once, in their first order."""
    return tuple(dict.fromkeys(text for text in texts if text))
