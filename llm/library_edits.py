"""The user's own words about models: `model_edits.json`, which wins over every other source.

    {
      "checkpoint": {
        "anime/pixelArt_v2.safetensors": {"title": "Pixel art", "tags": ["style:pixel art", "subject:people"]}
      },
      "diffusion_model": {},
      "lora": {
        "chalk.safetensors": {"family": "sdxl", "strength": 0.8, "trigger_words": ["drawn in chalk"]}
      }
    }

A name is the one that the loader shows, with `/` or `\\`. What an entry does not mention stays as it was read; what it
mentions replaces it, so `"negative": ""` takes a negative prompt away.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .families import family_of
from .records import Kind, ModelRecord, clean, unique
from .sidefiles import STRONGEST
from .tags import sort_tags

EDITS_FILE = "model_edits.json"


class Edit(BaseModel):
    """One entry. Only the fields that it mentions count."""

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    description: str = ""
    tags: list[str] = Field(default_factory=list)
    trigger_words: list[str] = Field(default_factory=list)
    usage_hint: str = ""
    example_prompts: list[str] = Field(default_factory=list)
    family: str = ""
    strength: float | None = Field(default=None, ge=-STRONGEST, le=STRONGEST, allow_inf_nan=False)
    negative: str = ""


@dataclass(frozen=True)
class Edits:
    """The entries by kind and name, and what could not be read."""

    entries: Mapping[tuple[str, str], Edit] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def apply(self, record: ModelRecord) -> ModelRecord:
        """The record as the user wants it."""
        edit = self.entries.get((record.kind, _key(record.name)))
        return record if edit is None else replace(record, **_changes(edit))


def read_edits(folder: Path | None) -> Edits:
    """Read the edits in a folder; none without a folder or a file. What cannot be read is noted; it never raises."""
    if folder is None:
        return Edits()
    try:
        data = json.loads((folder / EDITS_FILE).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return Edits()
    except OSError as error:
        return Edits(notes=(f"{EDITS_FILE} cannot be read: {error.strerror}",))
    except (ValueError, RecursionError):
        return Edits(notes=(f"{EDITS_FILE} is not JSON in UTF-8, so no edit counts",))
    if not isinstance(data, dict):
        return Edits(notes=(f"{EDITS_FILE} is not a JSON object, so no edit counts",))
    entries: dict[tuple[str, str], Edit] = {}
    notes: list[str] = []
    for kind, models in data.items():
        if kind not in get_args(Kind) or not isinstance(models, dict):
            notes.append(f'{EDITS_FILE}: "{clean(kind, 60)}" is not an object named {", ".join(get_args(Kind))}')
            continue
        for name, entry in models.items():
            try:
                entries[kind, _key(name)] = Edit.model_validate(entry)
            except ValidationError as error:
                notes.append(f"{EDITS_FILE}: {kind} {clean(name)}: {_reason(error)}")
    return Edits(entries, tuple(notes))


def _changes(edit: Edit) -> dict[str, Any]:
    """The fields of a record that an edit replaces, with their new values."""
    changes: dict[str, Any] = {}
    for name in edit.model_fields_set:
        value = getattr(edit, name)
        if name == "tags":
            changes["tags"], changes["subject_tags"], changes["style_tags"] = sort_tags(value)
        elif name == "family":
            changes["family"] = family_of(value)
        elif isinstance(value, list):
            changes[name] = unique(map(clean, value))
        else:
            changes[name] = clean(value) if isinstance(value, str) else value
    return changes


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
