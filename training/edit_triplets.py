"""What an edit data set is made of: caption, instruction, edited caption (arXiv 2211.09800, section 3.1.1).

A language model writes them to a user's captions, as GPT-3 does in the paper; without one, rules change a word of the
caption or add a few. Triplets that somebody wrote before are read from JSON Lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from ..llm.ask import ask
from ..llm.backend import LLM, LLMAnswerError
from ..llm.prompts import question
from ..llm.wish import style_words
from ..llm.words import folded_words, words
from .edit_shards import EditDataError, replace_file

LONGEST_CAPTION, LONGEST_INSTRUCTION = 400, 200
"""Characters. A CLIP text encoder reads about 300."""


@dataclass(frozen=True)
class Triplet:
    """A picture in words, what to change in it, and the changed picture in words."""

    caption: str
    instruction: str
    edited_caption: str

    @property
    def problem(self) -> str | None:
        """Why nothing can be learned from it, None if something can."""
        for name, text in asdict(self).items():
            longest = LONGEST_INSTRUCTION if name == "instruction" else LONGEST_CAPTION
            if not words(text):
                return f"{name} is empty"
            if len(text) > longest:
                return f"{name} has {len(text)} characters, {longest} are the most"
        if folded_words(self.caption) == folded_words(self.edited_caption):
            return "edited_caption says the same as the caption"
        return None


def read_captions(text: str) -> tuple[str, ...]:
    """One caption on each line; blank lines and repetitions are left out.

    Raises:
        EditDataError: There is none, or one is too long.
    """
    captions = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if words(line)))
    if not captions:
        raise EditDataError("There is no caption. Write captions of pictures into captions, one on each line.")
    for caption in captions:
        if len(caption) > LONGEST_CAPTION:
            raise EditDataError(
                f"The caption '{caption[:60]}…' has {len(caption)} characters; {LONGEST_CAPTION} are the most."
            )
    return captions


def read_triplets(text: str) -> tuple[Triplet, ...]:
    """Triplets from JSON Lines with the keys caption, instruction and edited_caption; repetitions are left out.

    Raises:
        EditDataError: A line is no triplet, or there is none.
    """
    found: list[Triplet] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            triplet = Triplet(*(said[name].strip() for name in ("caption", "instruction", "edited_caption")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise EditDataError(
                f'Line {number} of the triplets is not of the form {{"caption": "a red star", "instruction": "turn the '
                f'star blue", "edited_caption": "a blue star"}}: {line.strip()[:80]}'
            ) from None
        if triplet.problem:
            raise EditDataError(f"Line {number} of the triplets cannot be used: {triplet.problem}.")
        found.append(triplet)
    if not found:
        raise EditDataError("There is no triplet.")
    return tuple(dict.fromkeys(found))


# With a language model


class EditAnswer(BaseModel):
    """One edit."""

    instruction: str = Field(description="what to change, as one would tell a person who edits pictures")
    edited_caption: str = Field(description="the caption of the picture after the change")


class EditsAnswer(BaseModel):
    """Edits of one picture."""

    edits: list[EditAnswer]


def ask_triplets(llm: LLM, caption: str) -> list[Triplet]:
    """Different edits of one picture, as the model thinks of them; those with a problem are left out.

    Raises:
        LLMAnswerError: The model gave no edit that can be used.
        LLMError: The model could not be asked.
    """

    class Checked(EditsAnswer):
        @model_validator(mode="after")
        def _one_can_be_used(self) -> Checked:
            problems = [triplet.problem for triplet in _triplets(caption, self)]
            if None not in problems:
                raise ValueError(problems[0] if problems else "edits is empty")
            return self

    answer = ask(llm, question("edit_triplets", caption=caption), Checked)
    return [triplet for triplet in dict.fromkeys(_triplets(caption, answer)) if triplet.problem is None]


def _triplets(caption: str, answer: EditsAnswer) -> list[Triplet]:
    return [
        Triplet(caption, " ".join(edit.instruction.split()), " ".join(edit.edited_caption.split()))
        for edit in answer.edits
    ]


def collect_triplets(
    file: Path,
    source: Mapping[str, Any],
    captions: Sequence[str],
    write: Callable[[str], list[Triplet]],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[Triplet, ...], int]:
    """The triplets of all captions, asked for once: what a run that was cut off has asked is in `file`.

    Args:
        file: JSON Lines; the first line is `source`, each other one what was written to one caption.
        source: what the triplets depend on beside the captions, such as the language model's name.
        write: gives the triplets of a caption; a LLMAnswerError of it leaves the caption out.
        progress: takes how many captions are done. What it raises stops the work without loss.

    Returns:
        The triplets, and to how many captions there are none.

    Raises:
        EditDataError: The file holds triplets of another source or to other captions, or there is no triplet at all.
    """
    head = json.loads(json.dumps(source))
    lines = _read_lines(file) or [head]
    asked = [line["caption"] for line in lines[1:]]
    if lines[0] != head or asked != list(captions[: len(asked)]):
        raise EditDataError(
            f"{file.parent} holds a data set of other captions or of another language model. Give this one another "
            "name, or delete the folder."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    with file.open("a", encoding="utf-8") as out:
        for caption in captions[len(asked) :]:
            progress(len(lines) - 1)
            try:
                line: dict[str, Any] = {"caption": caption, "edits": [_edit(one) for one in write(caption)]}
            except LLMAnswerError as error:
                line = {"caption": caption, "edits": [], "why": str(error)}
            lines.append(line)
            out.write(f"{json.dumps(line, ensure_ascii=False)}\n")
            out.flush()
    found = tuple(Triplet(line["caption"], **edit) for line in lines[1:] for edit in line["edits"])
    if not found:
        raise EditDataError(f"The language model wrote no edit that can be used. {lines[-1].get('why', '')}".strip())
    return found, sum(not line["edits"] for line in lines[1:])


def _edit(triplet: Triplet) -> dict[str, str]:
    return {"instruction": triplet.instruction, "edited_caption": triplet.edited_caption}


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, which may have been cut off in the middle of the last one."""
    if not file.exists():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0]
    try:
        return [json.loads(line) for line in whole.decode().split("\n") if line]
    except ValueError:
        raise EditDataError(f"{file} is damaged. Delete the folder {file.parent}, and queue again.") from None


# Without one

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
MATERIALS = {
    "wooden": "wood",
    "golden": "gold",
    "marble": "marble",
    "glass": "glass",
    "stone": "stone",
    "steel": "steel",
    "paper": "paper",
}
"""A material as it stands before a thing, and what the thing is made out of."""
TIMES = {
    "at dawn": "make it dawn",
    "at noon": "make it noon",
    "at sunset": "make it sunset",
    "at night": "make it night",
    "in the rain": "let it rain",
    "in the fog": "add fog",
    "in winter": "make it winter",
    "in spring": "make it spring",
    "in autumn": "make it autumn",
}
LOOKS = {
    "as an oil painting": "turn it into an oil painting",
    "as a watercolour": "turn it into a watercolour",
    "as a pencil sketch": "turn it into a pencil sketch",
    "as a woodcut": "turn it into a woodcut",
    "as a mosaic": "turn it into a mosaic",
    "as pixel art": "turn it into pixel art",
    "as a black and white photo": "turn it into a black and white photo",
}
"""What is added to a caption, and the instruction that asks for it."""
_NO_THING = frozenset(("and", "or", "on", "in", "at", "of", "with", "by", "to", "the", "a", "an", "is", "are"))


def rule_triplets(caption: str, seed: int) -> list[Triplet]:
    """Edits of a picture by rules: another colour, another material, another time or weather, another look.

    A colour or material of the caption gives way to another one; a time or look that the caption has gives way, or is
    added. What a caption has nothing for is left out, so there are two to four edits.
    """
    rng = np.random.default_rng([seed, *caption.encode()])
    edits = [
        _swap(caption, {colour: colour for colour in COLOURS}, "turn the {old} {thing} {new}", rng),
        _swap(caption, MATERIALS, "make the {old} {thing} out of {new}", rng),
        _set(caption, TIMES, rng),
    ]
    own = any(phrase in caption.casefold() for phrase in LOOKS)
    if own or not style_words(caption):
        edits.append(_set(caption, LOOKS, rng))
    return [edit for edit in edits if edit is not None and edit.problem is None]


def _swap(caption: str, table: Mapping[str, str], instruction: str, rng: np.random.Generator) -> Triplet | None:
    """The first word of the table that stands before a thing becomes another one."""
    for match in re.finditer(rf"\b({'|'.join(table)}) ([^\W\d_]+)\b", caption, re.IGNORECASE):
        old, thing = match[1].lower(), match[2]
        last = folded_words(caption[: match.start()])[-1:]
        if {thing.lower(), *last} & table.keys() or thing.lower() in _NO_THING or last in (["and"], ["or"]):
            continue  # two words of the table that belong together: "red and white", "blue green"
        others = [word for word in table if word not in folded_words(caption)]
        if not others:
            return None
        new = str(rng.choice(others))
        said = instruction.format(old=old, thing=thing, new=table[new])
        before = caption[: match.start()]
        article = re.search(r"\b(an?) \Z", before, re.IGNORECASE)
        if article:
            before = before[: article.start()] + _article(article[1], new) + " "
        return Triplet(caption, said, before + new + caption[match.end(1) :])
    return None


def _article(old: str, word: str) -> str:
    """ "a" or "an" before a word, with the capital of what stood there."""
    article = "an" if word[0] in "aeiou" else "a"
    return article.capitalize() if old[0].isupper() else article


def _set(caption: str, table: Mapping[str, str], rng: np.random.Generator) -> Triplet:
    """The phrase of the table that is in the caption becomes another one; if there is none, one is added."""
    match = re.search(rf"\b({'|'.join(table)})\b", caption, re.IGNORECASE)
    old = match[1].lower() if match else ""
    new = str(rng.choice([phrase for phrase in table if phrase != old]))
    if match:
        return Triplet(caption, table[new], caption[: match.start()] + new + caption[match.end() :])
    return Triplet(caption, table[new], f"{caption.rstrip(' .,')}, {new}")
