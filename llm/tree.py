"""The model tree: subjects, below them styles, below them models; and its form as JSON that a person can edit.

After DiffusionGPT (arXiv 2401.10061, section 3.2). A `ModelTree` names models by key and can be saved. `bind` puts
the records of a library into it and gives the `Node`s that the search walks; a model that the tree does not know
goes to the unclassified leaf, so that every model can be reached.

The JSON form, with `labels`, `made_by` and `placed` optional:

    {"format": 1,
     "subjects": [{"name": "people", "labels": ["girl", "portrait"],
                   "styles": [{"name": "anime", "labels": ["manga"],
                               "models": ["a.safetensors", "lora:b.safetensors"]}]}],
     "unclassified": ["c.ckpt"],
     "made_by": "all-MiniLM-L6-v2",
     "placed": {"a.safetensors": "5f0c…"}}

A model's key is the host's name of its file, after `lora:` for a LoRA. `labels` are words that lead to a branch
besides its name. `placed` says by which tags a model was placed, so that one whose tags changed is placed anew.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any, Literal

from .records import ModelRecord, name_in_words
from .tags import ANY_STYLE

MODEL_TREE_TYPE = "ATELIER_MODEL_TREE"
"""Name of the socket that carries a `ModelTree`."""

ANY_SUBJECT = "any subject"
UNCLASSIFIED = "unclassified"

_LABELS = 64
"""Labels that a branch is compared by, at most: its own, then those of its models."""


class TreeError(ValueError):
    """A tree that cannot be used. The text names the place and says what to do."""


@dataclass(frozen=True)
class Style:
    """A leaf of the saved tree. `models` are keys."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    models: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    __pydantic_config__ = {"extra": "forbid"}

    name: str
    styles: tuple[Style, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelTree:
    """The saved tree. A model may stand in several leaves. `made_by` names the encoder or LLM that sorted it."""

    __pydantic_config__ = {"extra": "forbid"}

    subjects: tuple[Subject, ...]
    unclassified: tuple[str, ...] = ()
    made_by: str = ""
    placed: Mapping[str, str] = field(default_factory=dict)
    format: Literal[1] = 1


@dataclass(frozen=True)
class Node:
    """A node of the tree. A leaf has models; any other node has children. `labels` is what evokes it."""

    name: str
    labels: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    models: tuple[ModelRecord, ...] = ()


def model_key(model: ModelRecord) -> str:
    """What a tree calls a model: the host's name of its file, with the kind before it unless it is a checkpoint."""
    return model.name if model.kind == "checkpoint" else f"{model.kind}:{model.name}"


def leaves(node: Node) -> Iterator[Node]:
    """The leaves below a node, or the node itself if it is one."""
    if not node.children:
        yield node
    for child in node.children:
        yield from leaves(child)


def tree_from_tags(models: Sequence[ModelRecord]) -> ModelTree:
    """The tree that the tags make as they are: a model stands under each of its subjects and styles."""
    tagged = [model for model in models if model.classified]
    subjects = sorted({subject for model in tagged for subject in subjects_of(model)})
    branches = tuple(
        Subject(subject, _styles([model for model in tagged if subject in subjects_of(model)])) for subject in subjects
    )
    unclassified = sorted(model_key(model) for model in models if not model.classified)
    return ModelTree(branches, tuple(unclassified), made_by="tags")


def subjects_of(model: ModelRecord) -> tuple[str, ...]:
    return tuple(tag for tag in model.subject_tags if tag != UNCLASSIFIED) or (ANY_SUBJECT,)


def styles_of(model: ModelRecord) -> tuple[str, ...]:
    return model.style_tags or (ANY_STYLE,)


def _styles(models: Sequence[ModelRecord]) -> tuple[Style, ...]:
    styles = sorted({style for model in models for style in styles_of(model)})
    return tuple(
        Style(style, tuple(sorted(model_key(model) for model in models if style in styles_of(model))))
        for style in styles
    )


def bind(tree: ModelTree, models: Sequence[ModelRecord]) -> tuple[Node, list[str]]:
    """The tree with the records of these models, and notes on what does not fit.

    A model that is not there is left out and noted; a branch that is empty then is left out; a model without a place
    goes to the unclassified leaf.
    """
    find, notes, seen = _finder(models), [], set()

    def found(keys: Iterable[str]) -> tuple[ModelRecord, ...]:
        records = {}
        for key in keys:
            model = find(key)
            if model is None:
                notes.append(_unknown(key, models))
            else:
                records[model_key(model)] = model
        seen.update(records)
        return tuple(records[key] for key in sorted(records))

    children = []
    for subject in tree.subjects:
        styles = tuple(_leaf(style, bound) for style in subject.styles if (bound := found(style.models)))
        if styles:
            children.append(Node(subject.name, _evoked_by(subject.name, subject.labels, ANY_SUBJECT), styles))
    stated = {model_key(model) for model in found(tree.unclassified)}
    rest = [m for m in models if model_key(m) in stated or model_key(m) not in seen]
    if rest:
        rest.sort(key=model_key)
        names = tuple(name_in_words(model.name) for model in rest)
        children.append(Node(UNCLASSIFIED, labels=names, models=tuple(rest)))
    return Node("models", children=tuple(children)), list(dict.fromkeys(notes))


def _leaf(style: Style, models: tuple[ModelRecord, ...]) -> Node:
    """A style is evoked by its name and labels, and by the trigger words and descriptions of its models."""
    own = _evoked_by(style.name, style.labels, ANY_STYLE)
    texts = [text for model in models for text in (*model.trigger_words, model.description) if text] if own else []
    return Node(style.name, tuple(dict.fromkeys([*own, *texts]))[:_LABELS], models=models)


def _evoked_by(name: str, labels: tuple[str, ...], general: str) -> tuple[str, ...]:
    """What a branch is found by; nothing for one that stands for anything."""
    return () if name == general else tuple(dict.fromkeys([name, *labels]))


def _finder(models: Sequence[ModelRecord]) -> Callable[[str], ModelRecord | None]:
    """Finds a model by its key. Other separators and Unicode forms are the same key, unless two models share it."""
    exact = {model_key(model): model for model in models}
    loose: dict[str, list[ModelRecord]] = {}
    for key, model in exact.items():
        loose.setdefault(_loose(key), []).append(model)

    def find(key: str) -> ModelRecord | None:
        alike = loose.get(_loose(key), [])
        return exact.get(key) or (alike[0] if len(alike) == 1 else None)

    return find


def _loose(key: str) -> str:
    return unicodedata.normalize("NFC", key).replace("\\", "/")


def _unknown(key: str, models: Sequence[ModelRecord]) -> str:
    name = PureWindowsPath(key.rpartition(":")[2]).name.casefold()
    alike = sorted(model_key(m) for m in models if PureWindowsPath(m.name).name.casefold() == name)
    hint = f" Did you mean {' or '.join(alike[:3])}?" if alike else ""
    return f"The tree names {key}, which is not among the models to choose from; it is ignored.{hint}"


def to_json(tree: ModelTree) -> str:
    """The tree as text that a person can read and edit."""
    return json.dumps(dataclasses.asdict(tree), ensure_ascii=False, indent=1) + "\n"


def from_json(text: str, source: str) -> ModelTree:
    """Read what `to_json` wrote and a person may have edited. `source` names the text in messages.

    Raises:
        TreeError: it is no such tree. The message names the place.
    """
    from pydantic import ValidationError

    try:
        tree = _reader().validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{_place(item)}: {item['msg']}" for item in error.errors()[:5])
        raise TreeError(f"{source} is no model tree. {problems}. {_ADVICE}") from None
    _check_names(tree, source)
    return tree


_ADVICE = "Correct it there, or rebuild the tree, which keeps the old file beside the new one."


@functools.cache
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(ModelTree)


def _place(item: Mapping[str, Any]) -> str:
    """`subjects[0].styles[2].models`, or what the parser says of a text that is no JSON."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    return place.lstrip(".") or "the file"


def _check_names(tree: ModelTree, source: str) -> None:
    """Names are shown to people and to models as choices: none is empty, and none stands twice on one level."""
    levels = {"subjects": tree.subjects}
    levels |= {f"subjects[{i}].styles": subject.styles for i, subject in enumerate(tree.subjects)}
    for place, level in levels.items():
        names = {UNCLASSIFIED} if place == "subjects" else set()
        for i, branch in enumerate(level):
            name = branch.name.strip().casefold()
            if not name or name in names:
                what = "has no name" if not name else f'has the name "{branch.name}", which is taken'
                raise TreeError(f"{source} is no model tree. {place}[{i}] {what}. {_ADVICE}")
            names.add(name)
