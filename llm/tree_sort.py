"""Says where models belong in a tree: by a language model in bounded batches, or by clusters of their tags."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, Field, create_model

from .ask import ask_traced, calls_of
from .backend import LLM, LLMAnswerError, LLMError
from .clusters import GROUPS, group, tag_counts
from .embeddings import Encoder
from .prompts import question
from .records import ModelRecord, clean
from .tags import ANY_STYLE
from .tree import ANY_SUBJECT, UNCLASSIFIED, ModelTree, styles_of, subjects_of

BATCH = 16
"""Models in one question: with 400 characters each and the known branches, about 3,000 tokens in and 600 out."""

Places = dict[str, tuple[tuple[str, str], ...]]
"""For each model's key its (subject, style) pairs; none for an unclassified one."""

Homes = tuple[dict[str, str], dict[str, str]]
"""Which subject a subject tag leads to, and which style a style tag."""

_GENERAL = frozenset((UNCLASSIFIED, ANY_SUBJECT, ANY_STYLE))


class Placement(BaseModel):
    """Where one model belongs."""

    subject: str = Field(description="what it shows, one to three words")
    style: str = Field(description="how it shows it, one to three words")


@dataclass
class Asked:
    """What a language model said of some models. Those that it did not place are missing."""

    places: Places = field(default_factory=dict)
    calls: int = 0
    notes: list[str] = field(default_factory=list)


def by_tags(todo: Mapping[str, ModelRecord], encoder: Encoder, homes: Homes) -> tuple[Places, Homes]:
    """Place models by the groups of their tags, and say where each tag leads now.

    `homes` says where tags lead so far; a tag in it stays there, and one that means the same follows it.
    """
    subjects = homes[0] | _grouped([m.subject_tags for m in todo.values()], homes[0], encoder)
    styles = homes[1] | _grouped([m.style_tags for m in todo.values()], homes[1], encoder)

    def pairs(model: ModelRecord) -> tuple[tuple[str, str], ...]:
        mine = [subjects.get(tag, tag) for tag in subjects_of(model)]
        ways = [styles.get(tag, tag) for tag in styles_of(model)]
        return tuple(dict.fromkeys((subject, style) for subject in mine for style in ways))

    return {key: pairs(model) if model.classified else () for key, model in todo.items()}, (subjects, styles)


def _grouped(lists: list[tuple[str, ...]], homes: Mapping[str, str], encoder: Encoder) -> dict[str, str]:
    """Where the tags that have no home yet lead: to the branch whose name is in their group, else to a new one."""
    counts = tag_counts(lists)
    new = {tag: count for tag, count in counts.items() if tag not in homes and tag not in _GENERAL}
    # A group is named by its most frequent tag, so the branches that are there count for more than any tag.
    branches = {branch: counts.total() + 1 for branch in homes.values() if branch not in _GENERAL}
    groups = group(new | branches, encoder)
    return {tag: groups[tag] for tag in new}


def by_llm(todo: Mapping[str, ModelRecord], llm: LLM, places: Places, progress: Callable[[int, int], None]) -> Asked:
    """Have a language model place models, BATCH at a time. `places` holds the models that are placed already.

    A batch that gets no usable answer is left out; a model that cannot be reached is not asked again.
    """
    asked, names, keys = Asked(), _Names(places), list(todo)
    for start in range(0, len(keys), BATCH):
        batch = {key: todo[key] for key in keys[start : start + BATCH]}
        try:
            asked.places |= _ask(batch, llm, names, asked)
        except LLMError as error:
            asked.calls += calls_of(error)
            asked.notes.append(f"The language model did not sort {len(batch)} of the models: {error}")
            if not isinstance(error, LLMAnswerError):
                break
        progress(min(start + BATCH, len(keys)), len(keys))
    return asked


def homes_of(places: Places, records: Mapping[str, ModelRecord]) -> Homes:
    """Where tags lead if models stand so: to the branch with most of the models that have the tag."""
    counts: tuple[dict[str, Counter[str]], ...] = (defaultdict(Counter), defaultdict(Counter))
    for key, pairs in places.items():
        tags = (records[key].subject_tags, records[key].style_tags)
        for level in (0, 1):
            for branch in dict.fromkeys(pair[level] for pair in pairs):
                for tag in tags[level]:
                    counts[level][tag][branch] += 1
    subjects, styles = (
        {tag: max(sorted(branches), key=branches.__getitem__) for tag, branches in level.items()} for level in counts
    )
    return subjects, styles


def tree_homes(tree: ModelTree | None) -> Homes:
    """Where the names and labels of a tree lead. What stands at two branches leads to the first."""
    subjects: dict[str, str] = {}
    styles: dict[str, str] = {}
    for subject in tree.subjects if tree else ():
        for tag in (subject.name, *subject.labels):
            subjects.setdefault(tag, subject.name)
        for style in subject.styles:
            for tag in (style.name, *style.labels):
                styles.setdefault(tag, style.name)
    return subjects, styles


def _ask(batch: Mapping[str, ModelRecord], llm: LLM, names: _Names, asked: Asked) -> Places:
    ids = {f"m{number}": key for number, key in enumerate(batch, 1)}
    listed = "\n".join(f"{number}: {_about(batch[key])}" for number, key in ids.items())
    answer = create_model("Placements", **dict.fromkeys(ids, (Placement, ...)))
    slots = {"subjects": names.listed(0), "styles": names.listed(1), "models": listed}
    said, trace = ask_traced(llm, question("tree_place", **slots), answer)
    asked.calls += trace.calls
    return {key: names.pair(getattr(said, number)) for number, key in ids.items()}


class _Names:
    """The branches so far. A name that differs from one of them in case, spaces or plural alone is that one."""

    def __init__(self, places: Places) -> None:
        self._levels: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._used: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for pair in (pair for pairs in places.values() for pair in pairs):
            for level, name in enumerate(pair):
                self._use(level, name)

    def listed(self, level: int) -> str:
        """The names on a level, the most used first, one on a line."""
        names = self._levels[level].values()
        return "\n".join(sorted(names, key=lambda name: (-self._used[level][name], name))[:GROUPS]) or "(none yet)"

    def pair(self, said: Placement) -> tuple[tuple[str, str], ...]:
        """The branch that an answer means."""
        subject, style = _name(said.subject) or ANY_SUBJECT, _name(said.style) or ANY_STYLE
        return () if subject == UNCLASSIFIED else ((self._use(0, subject), self._use(1, style)),)

    def _use(self, level: int, name: str) -> str:
        """The branch of a name. Where a level is full, a new name becomes the general one."""
        names = self._levels[level]
        if _stem(name) not in names and len(names) >= GROUPS:
            name = (ANY_SUBJECT, ANY_STYLE)[level]
        known = names.setdefault(_stem(name), name)
        self._used[level][known] += 1
        return known


def _about(model: ModelRecord) -> str:
    """A model on one line of at most 400 characters."""
    tags = ", ".join((*model.subject_tags[:8], *model.style_tags[:8]))
    parts: Sequence[str] = (model.title or model.name, tags and f"tags: {tags}", model.description[:160])
    return " ".join("; ".join(part for part in parts if part).split())[:400]


def _name(text: str) -> str:
    """A branch's name as it is kept: lower-case, one line, at most four words and 40 characters."""
    return " ".join(re.sub(r"[^\w' -]+", " ", clean(text).casefold()).split()[:4])[:40].strip()


def _stem(name: str) -> str:
    return " ".join(word.removesuffix("s") for word in re.findall(r"\w+", name.casefold())) or name
