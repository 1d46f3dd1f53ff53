"""Builds the model tree and keeps it up to date as files come and go.

A language model gets the new models in batches, with the subjects and styles that are there already, and gives each
one subject and one style (arXiv 2401.10061, section 3.2, where the tree is built from the models' tags as well).
Without one, tags whose embeddings lie close together make one branch.

Models that were placed and did not change stay where they are, also where a person put them by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .backend import LLM
from .clusters import tag_counts
from .embeddings import Encoder
from .records import ModelRecord
from .tree import ModelTree, Style, Subject, model_key
from .tree_sort import Homes, Places, by_llm, by_tags, homes_of, tree_homes

_LABELS = 16
"""Tags that a branch is found by besides its name, the most frequent first."""


@dataclass(frozen=True)
class Built:
    """A tree, and what was done to get it: which models were new, changed or gone, calls, and what went wrong."""

    tree: ModelTree
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    calls: int = 0
    notes: tuple[str, ...] = ()


def grow(
    models: Sequence[ModelRecord],
    encoder: Encoder,
    llm: LLM | None = None,
    old: ModelTree | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """The tree of these models.

    Args:
        models: all that the tree shall hold.
        llm: sorts the models that are new or changed; clusters of their tags do if None, or where it fails. A model
            that it failed to sort is tried again the next time.
        old: the tree so far. Only its models that are gone, new or changed are touched.
        progress: called with the number of models sorted so far and of all to sort; what it raises ends the work.
    """
    records = {model_key(model): model for model in sorted(models, key=model_key)}
    digests = {key: _digest(model) for key, model in records.items()}
    before = _places(old) if old else {}
    stored = {key: old.placed.get(key, digest) for key, digest in digests.items() if key in before} if old else {}
    changed = [key for key, was in stored.items() if was != digests[key] and (was or llm is not None)]
    added = [key for key in records if key not in before]
    dropped = [key for key in before if key not in records]
    if old is not None and not (changed or added or dropped):
        return Built(replace(old, placed=stored))
    todo = {key: records[key] for key in (*added, *changed)}
    kept = {key: pairs for key, pairs in before.items() if key in records and key not in todo}
    places, homes, unsure, calls, notes = _sort(todo, kept, encoder, llm, old, progress)
    tree = _assemble(kept | places, homes, records, old)
    placed = {key: "" if key in unsure else stored[key] if key in kept else digests[key] for key in records}
    sorter = llm.name if llm is not None and len(unsure) < len(todo) else encoder.name
    made_by = old.made_by if old is not None and not todo else sorter
    return Built(
        replace(tree, placed=placed, made_by=made_by), tuple(added), tuple(changed), tuple(dropped), calls, tuple(notes)
    )


def _sort(
    todo: Mapping[str, ModelRecord],
    kept: Places,
    encoder: Encoder,
    llm: LLM | None,
    old: ModelTree | None,
    progress: Callable[[int, int], None],
) -> tuple[Places, Homes, set[str], int, list[str]]:
    """Where the models belong, where tags lead, which models the LLM was to sort and did not, calls, notes."""
    homes = tree_homes(old)
    if llm is None:
        places, homes = by_tags(todo, encoder, homes)
        return places, homes, set(), 0, []
    asked = by_llm(todo, llm, kept, progress)
    said = homes_of(asked.places, todo)
    homes = (said[0] | homes[0], said[1] | homes[1])
    rest = {key: model for key, model in todo.items() if key not in asked.places}
    places, homes = by_tags(rest, encoder, homes)
    if rest:
        asked.notes.append(f"{len(rest)} models were sorted by their tags instead; the next run asks again.")
    return asked.places | places, homes, set(rest), asked.calls, asked.notes


def _assemble(places: Places, homes: Homes, records: Mapping[str, ModelRecord], old: ModelTree | None) -> ModelTree:
    """The tree of these places. Branches keep the order and labels that they have; new ones follow by name."""
    branches: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in sorted(places):
        for subject, style in places[key]:
            branches[subject][style].append(key)
    before = {subject.name: subject for subject in old.subjects} if old else {}
    subjects = []
    for name in _in_order(branches, before):
        was = {style.name: style for style in before[name].styles} if name in before else {}
        styles = []
        for style in _in_order(branches[name], was):
            keys = branches[name][style]
            labels = _labels(style, was, homes[1], [records[key].style_tags for key in keys])
            styles.append(Style(style, tuple(keys), labels))
        inside = dict.fromkeys(key for keys in branches[name].values() for key in keys)
        labels = _labels(name, before, homes[0], [records[key].subject_tags for key in inside])
        subjects.append(Subject(name, tuple(styles), labels))
    return ModelTree(tuple(subjects), tuple(sorted(key for key, pairs in places.items() if not pairs)))


def _in_order(names: Iterable[str], before: Mapping[str, Any]) -> list[str]:
    wanted = set(names)
    return [name for name in before if name in wanted] + sorted(wanted - set(before))


def _labels(
    name: str, before: Mapping[str, Any], homes: Mapping[str, str], tags: list[tuple[str, ...]]
) -> tuple[str, ...]:
    """The labels that a branch has, then the tags of its models that lead to it."""
    counts = tag_counts(tags)
    own = [tag for tag in sorted(counts, key=lambda tag: (-counts[tag], tag)) if homes.get(tag) == name != tag]
    kept = before[name].labels if name in before else ()
    return (*kept, *[tag for tag in own if tag not in kept][: max(0, _LABELS - len(kept))])


def _places(tree: ModelTree) -> Places:
    """Where the models of a tree stand."""
    found: dict[str, list[tuple[str, str]]] = {key: [] for key in tree.unclassified}
    for subject in tree.subjects:
        for style in subject.styles:
            for key in style.models:
                found.setdefault(key, []).append((subject.name, style.name))
    return {key: tuple(dict.fromkeys(pairs)) for key, pairs in found.items()}


def _digest(model: ModelRecord) -> str:
    """What a model is placed by, in 16 hex digits."""
    told = [model.title, model.description, model.subject_tags, model.style_tags]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
