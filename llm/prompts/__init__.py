"""Questions from template files, with what a user wrote in delimited slots.

A template is a text file of this folder. What stands before its line `---` is for the system role, the rest for
the user role. `$name` is a slot: the text that fills it stands between the lines `<name>` and `</name>`,
byte for byte, except that it cannot close its own slot. `$$` is a dollar sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ..backend import Picture

FOLDER = Path(__file__).parent

_CHAT_MARKERS = re.compile(
    r"<\|[^|<>\n]{1,64}\|?>"  # ChatML, Llama 3, Phi, gpt-oss, Gemma 4: <|im_start|>, <|turn>
    r"|<[^|<>\n]{1,64}\|>"  # Gemma 4: <turn|>
    r"|<｜[^<>\n]{1,64}｜>"  # DeepSeek
    r"|\[\|[^|\[\]\n]{1,64}\|\]"  # EXAONE: [|user|]
    r"|</?(?:start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|bos|eos|pad|unk|s"
    r"|think|thinking|seed:\w{1,16}|tool_call|tool_response|unused\d{1,5})>"
    r"|<</?SYS>>|\[/?(?:gMASK|INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|IMG|MODEL_SETTINGS)\]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Question:
    """What is asked: the system text says what to do, the user text and the picture hold what to do it with."""

    system: str
    user: str
    picture: Picture | None = None


def question(template: str, picture: Picture | None = None, /, **slots: str) -> Question:
    """Fill the slots of `<template>.txt`. A picture is shown before the user text.

    Raises:
        FileNotFoundError: there is no such template.
        KeyError: a slot is not filled, or a text has no slot.
        ValueError: the template has no line `---`, or a stray dollar sign.
    """
    text = (FOLDER / f"{template}.txt").read_text(encoding="utf-8")
    system, line, user = text.partition("\n---\n")
    if not line:
        raise ValueError(f"The template {template} has no line --- between its system and its user part.")
    wanted = {match["named"] or match["braced"] for match in Template.pattern.finditer(text)} - {None}
    if wanted != set(slots):
        raise KeyError(f"The template {template} has the slots {sorted(wanted)}, not {sorted(slots)}.")
    filled = {name: slot(name, value) for name, value in slots.items()}
    system, user = (Template(part).substitute(filled).strip() for part in (system, user))
    return Question(system, user, picture)


def fragment(name: str, /, **values: str) -> str:
    """The text of `<name>.txt` with values of our own put in as they are: schemas and errors, no user text."""
    return Template((FOLDER / f"{name}.txt").read_text(encoding="utf-8")).substitute(values).strip()


def slot(name: str, text: str) -> str:
    """A text between the lines `<name>` and `</name>`, which it cannot close itself."""
    held = re.sub(rf"<(?=\s*/\s*{re.escape(name)}\b)", "< ", text, flags=re.IGNORECASE)
    return f"<{name}>\n{held}\n</{name}>"


def neutralise(text: str) -> str:
    """The text with a space in each chat marker, `< |im_start|>`, so that no tokenizer reads it as one."""
    return _CHAT_MARKERS.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
