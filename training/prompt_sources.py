"""Where good prompts come from: a text file, the pictures that somebody kept, the prompts of liked pictures.

Each gives its prompts once, in their first order, as they were written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..feedback.made_by import made_by
from ..llm.pictures import SUFFIXES
from ..llm.words import words

if TYPE_CHECKING:
    from ..feedback.ratings import Store


class NoPromptsError(ValueError):
    """A source has no prompt; the message says what to do."""


@dataclass(frozen=True)
class Prompts:
    """Prompts, and by name the files that gave none, with the reason."""

    prompts: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)


def prompts_of_file(path: Path) -> Prompts:
    """One prompt on each line of a UTF-8 text file; lines without a word are left out.

    Raises:
        NoPromptsError: the file is not there, is no such text, or has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NoPromptsError(f"{path} cannot be read ({error.strerror}). Name a text file of prompts.") from error
    except UnicodeDecodeError:
        raise NoPromptsError(f"{path} is not UTF-8. Save it as UTF-8, one prompt on each line.") from None
    prompts = _once(text.splitlines())
    if not prompts:
        raise NoPromptsError(f"{path} holds no prompt. Write one on each line.")
    return Prompts(prompts)


def prompts_of_pictures(folder: Path) -> Prompts:
    """The positive prompts that the pictures of a folder carry, in the order of their names.

    A picture of ComfyUI has its queued graph under `prompt`, one of the web UI of AUTOMATIC1111 its text under
    `parameters`.

    Raises:
        NoPromptsError: there is no such folder, or no picture in it has a prompt.
    """
    if not folder.is_dir():
        raise NoPromptsError(f"There is no folder {folder}. Name one with pictures that hold their prompts.")
    found, skipped = [], {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            prompt = prompt_of_picture(path)
        except (OSError, ValueError, SyntaxError, RecursionError) as error:  # Pillow raises SyntaxError too
            skipped[path.name] = f"cannot be read ({error})"
            continue
        if words(prompt):
            found.append(prompt)
        else:
            skipped[path.name] = "holds no prompt"
    if not found:
        raise NoPromptsError(
            f"No picture in {folder} holds a prompt. Take pictures as ComfyUI or AUTOMATIC1111 saved them: most other "
            "programs and sites remove it."
        )
    return Prompts(_once(found), skipped)


def prompts_of_store(store: Store) -> Prompts:
    """The prompts of the ratings store that were liked more often than disliked, oldest first.

    Raises:
        NoPromptsError: there is none.
    """
    values = Counter[str]()
    for prompt, value in store.prompt_values():
        values[prompt] += value
    liked = _once(prompt for prompt, value in values.items() if value > 0)
    if not liked:
        raise NoPromptsError("No prompt was liked more often than disliked. Rate some pictures with Rate Images first.")
    return Prompts(liked)


def prompt_of_picture(path: Path) -> str:
    """The positive prompt that a picture carries, empty if it has none. Raises OSError and ValueError."""
    from PIL import Image

    with Image.open(path) as picture:
        data = dict(picture.info)
    graph, text = data.get("prompt"), data.get("parameters")
    if isinstance(graph, str) and (prompt := prompt_of_graph(json.loads(graph))):
        return prompt
    return prompt_of_parameters(text) if isinstance(text, str) else ""


def prompt_of_graph(graph: Any) -> str:
    """The positive prompt of the first node of a queued graph that takes pictures from a sampler."""
    if not isinstance(graph, dict):
        return ""
    nodes = {
        name: node for name, node in graph.items() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    prompts = (made_by(nodes, name, "images").prompt for name in nodes)
    return next(filter(None, prompts), "")


def prompt_of_parameters(text: str) -> str:
    """What stands before the negative prompt and the settings in a text of AUTOMATIC1111."""
    lines = text.splitlines()
    ends = (i for i, line in enumerate(lines) if line.startswith(("Negative prompt:", "Steps: ")))
    return "\n".join(lines[: next(ends, len(lines))]).strip()


def _once(prompts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(prompt.strip() for prompt in prompts if words(prompt)))
