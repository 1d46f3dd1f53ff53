"""Refined captions: a model that sees rewrites the short captions of a folder of pictures densely.

This is how LLM4GEN (arXiv 2407.00737, section 4.1) makes its training data out of LAION's captions. What the model
writes is not believed as it is: refusals and texts of a wrong length are sent back once, and the model is shown its own
caption again to list what it names and the picture does not show. A picture whose caption fails keeps the one it had.

    target/X.txt            the caption of picture X, refined or kept
    target/refined.jsonl    one line for each picture: what it was, what was written, why it was refused

A picture's line is written behind its caption, so a run that is cut off goes on behind the last whole line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from .answers import without_reasoning
from .ask import ask
from .backend import LLM, LLMAnswerError, Picture
from .files import write_whole
from .pictures import SUFFIXES, read_picture
from .prompts import FOLDER, question
from .words import content_words, missing_words, words

LOG = "refined.jsonl"
RETRIES = 1
"""How often a caption or a check that cannot be used is sent back. A refusal seldom turns into a caption."""
MAX_LISTED = 20
"""Pictures that a report names."""

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")
"""What is written in the picture may well say sorry."""
_REFUSAL = re.compile(
    r"\bi(?:['’]m| am) (?:sorry|afraid|unable|not able)\b"
    r"|\bi (?:cannot|can ?not|can['’]t|could not|couldn['’]t|won['’]t)\b"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model|visual assistant)\b"
    r"|\b(?:unable|not able) to (?:see|view|describe|help|assist|identify|process|provide)\b"
    r"|\bno (?:image|picture|photo) (?:was|is|has been) (?:provided|attached|given|uploaded)\b"
    r"|\b(?:sorry|apologi[sz]e), (?:but|i)\b",
    re.IGNORECASE,
)


class CaptionFolderError(ValueError):
    """A folder cannot be read or written; the message says what to do."""


@dataclass(frozen=True)
class Wanted:
    """What a refined caption has to be: its number of words, and whether it is checked against the picture."""

    least: int = 25
    most: int = 140
    check: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise ValueError(f"min_words ({self.least}) is above max_words ({self.most}). Swap them.")

    def problem(self, caption: str) -> str | None:
        """Why nothing can be learned from a caption, None if something can."""
        count = len(words(caption))
        if not count:
            return "it is empty"
        if _REFUSAL.search(_QUOTED.sub("", caption)):
            return "it is a refusal"
        if not self.least <= count <= self.most:
            return f"it has {count} words, and {self.least} to {self.most} are wanted"
        return None


@dataclass(frozen=True)
class Entry:
    """What became of one picture: a line of the log.

    `key` is a digest of all that the caption depends on; `refused` says why `refined` is not taken.
    """

    picture: str
    key: str
    original: str
    refined: str
    refused: str | None

    @property
    def caption(self) -> str:
        """The caption to learn from; empty if there is none."""
        return self.original if self.refused else self.refined


@dataclass(frozen=True)
class Outcome:
    """The entries of all pictures in the order of their names, and for how many of them the model was asked now."""

    entries: tuple[Entry, ...]
    asked: int

    @property
    def refined(self) -> int:
        return sum(not entry.refused for entry in self.entries)

    @property
    def kept(self) -> int:
        """How many keep the caption that they had."""
        return sum(bool(entry.refused and entry.original) for entry in self.entries)


def refine_folder(
    source: Path, target: Path, llm: LLM, wanted: Wanted, progress: Callable[[int, int], None] = lambda done, of: None
) -> Outcome:
    """Refine the captions of all pictures of a folder, and write them into another one.

    Args:
        source: pictures with captions beside them, `X.png` and `X.txt`. Nothing in it is changed.
        target: where the captions and the log go. What the log has is not asked again, unless the picture, its caption,
            the model or `wanted` is another one.
        progress: takes how many pictures are done, and of how many. What it raises stops the work without loss.

    Raises:
        CaptionFolderError: There is no picture, or a folder cannot serve.
        LLMError: The model cannot be asked, or does not see. Pictures that it cannot caption raise nothing.
    """
    pictures, settings = find_pictures(source), _settings(llm, wanted)
    known = {entry.picture: entry for entry in _open_target(source, target)}
    log, entries, asked = target / LOG, [], 0
    write_whole(log, "".join(map(_line, known.values())).encode())  # without a line that was cut off
    with log.open("a", encoding="utf-8") as out:
        for path in pictures:
            progress(len(entries), len(pictures))
            caption, key, fault = _read(path, settings)
            entry, text = known.get(path.name), target / f"{path.stem}.txt"
            if entry is None or not key or entry.key != key:
                refined, refused = ("", fault) if fault else refine(path, caption, llm, wanted)
                entry, asked = Entry(path.name, key, caption, refined, refused), asked + 1
                text.unlink(missing_ok=True)
                _write(text, entry)
                out.write(_line(entry))
                out.flush()
            elif not text.exists():
                _write(text, entry)
            entries.append(entry)
    return Outcome(tuple(entries), asked)


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        CaptionFolderError: There is none, or two would share one caption file.
    """
    if not folder.is_dir():
        raise CaptionFolderError(f"There is no folder {folder}. Write the path of a folder with pictures.")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not pictures:
        raise CaptionFolderError(f"{folder} holds no picture. Pictures are {', '.join(sorted(SUFFIXES))} files.")
    stems = {}
    for path in pictures:
        other = stems.setdefault(path.stem, path)
        if other is not path:
            raise CaptionFolderError(f"{other.name} and {path.name} would share {path.stem}.txt. Rename one of them.")
    return pictures


def refine(path: Path, caption: str, llm: LLM, wanted: Wanted) -> tuple[str, str | None]:
    """A picture's refined caption, and why it is not to be used; None if it is. Raises LLMError as `refine_folder`."""
    refined = ""
    try:
        picture = read_picture(path)
        refined = ask_caption(llm, picture, caption, wanted)
        unseen = ask_unseen(llm, picture, refined) if wanted.check else []
    except OSError as error:
        return "", str(error)
    except LLMAnswerError as error:
        return refined, f"{'the check' if refined else 'the caption'} failed: {_why(error)}"
    return refined, f"it names what the picture does not show: {', '.join(unseen)}" if unseen else None


class CaptionAnswer(BaseModel):
    """A refined caption."""

    caption: str = Field(description="the dense caption")


class CheckAnswer(BaseModel):
    """What is wrong with a caption."""

    not_seen: list[str] = Field(
        description="what the caption names and the picture does not show; empty if all is there"
    )


def ask_caption(llm: LLM, picture: Picture, caption: str, wanted: Wanted) -> str:
    """A dense caption of a picture on one line. Raises LLMError; LLMAnswerError if no caption can be used."""

    class Checked(CaptionAnswer):
        @field_validator("caption")
        @classmethod
        def _can_be_learned_from(cls, value: str) -> str:
            text = " ".join(without_reasoning(value).split())
            problem = wanted.problem(text)
            if problem:
                raise ValueError(problem)
            return text

    length = f"{wanted.least} to {wanted.most}"
    return ask(llm, question("refine_caption", picture, caption=caption, words=length), Checked, RETRIES).caption


def ask_unseen(llm: LLM, picture: Picture, caption: str) -> list[str]:
    """What a caption names and the picture does not show, as the model sees it. Raises LLMError.

    What the caption does not name is no fault of it, so it is left out.
    """
    answer = ask(llm, question("caption_check", picture, caption=caption), CheckAnswer, RETRIES)
    return [thing for thing in answer.not_seen if content_words(thing) and not missing_words(thing, caption)]


def report(outcome: Outcome, llm: LLM) -> str:
    """What was done, for people."""
    entries = outcome.entries
    without = len(entries) - outcome.refined - outcome.kept
    lines = [
        f"{len(entries)} pictures: {outcome.refined} captions refined by {llm.name}, {outcome.kept} kept as they were, "
        f"{without} pictures left without.",
        f"Worked on now: {outcome.asked}. Done before: {len(entries) - outcome.asked}.",
    ]
    failed = [f"- {entry.picture}: {entry.refused}" for entry in entries if entry.refused]
    if failed:
        more = [f"- and {len(failed) - MAX_LISTED} more; {LOG} has them all"] if len(failed) > MAX_LISTED else []
        lines += ["Not refined:", *failed[:MAX_LISTED], *more]
    return "\n".join(lines)


def _open_target(source: Path, target: Path) -> Sequence[Entry]:
    """The whole lines of the log of a folder, which is made if it is not there. Raises CaptionFolderError."""
    target.mkdir(parents=True, exist_ok=True)
    if target.samefile(source):
        raise CaptionFolderError(f"{target} holds the captions to refine. Choose another name for the refined ones.")
    log = target / LOG
    if not log.exists():
        if any(target.iterdir()):
            raise CaptionFolderError(f"{target} holds other files. Choose another name, or empty the folder.")
        return []
    try:
        lines = log.read_bytes().rpartition(b"\n")[0].decode().split("\n")
        return [Entry(**json.loads(line)) for line in lines if line]
    except (ValueError, TypeError):
        raise CaptionFolderError(f"{log} is damaged. Choose another name, or delete the folder.") from None


def _settings(llm: LLM, wanted: Wanted) -> list[object]:
    """What a refined caption depends on beside its picture and its caption."""
    templates = [_digest((FOLDER / f"{name}.txt").read_bytes()) for name in ("refine_caption", "caption_check")]
    return [llm.name, llm.seed, llm.temperature, asdict(wanted), templates]


def _read(path: Path, settings: list[object]) -> tuple[str, str, str | None]:
    """A picture's caption, empty if it has none; the digest of all that its refined one depends on, empty if a file
    cannot be read; and what is wrong, None if nothing is."""
    beside = path.with_suffix(".txt")
    try:
        said = beside.read_bytes() if beside.exists() else b""
        parts = [_digest(path.read_bytes()), _digest(said)]
    except OSError as error:
        return "", "", f"it cannot be read ({error.strerror})"
    key = _digest(json.dumps([*settings, parts]).encode())
    try:
        return said.decode("utf-8-sig").strip(), key, None
    except UnicodeDecodeError:
        return "", key, f"its caption {beside.name} is no UTF-8 text"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(text: Path, entry: Entry) -> None:
    """Write a picture's caption, if it has one."""
    if entry.caption:
        write_whole(text, f"{entry.caption}\n".encode())


def _line(entry: Entry) -> str:
    return f"{json.dumps(asdict(entry), ensure_ascii=False)}\n"


def _why(error: LLMAnswerError) -> str:
    """Why the last reply could not be used."""
    attempts = error.trace.attempts if error.trace else ()
    return (attempts[-1].error if attempts else str(error)).replace("Value error, ", "")
