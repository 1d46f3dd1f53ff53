"""A tree of the installed models, and the walk down it that picks one for a wish.

After DiffusionGPT (arXiv 2401.10061, sections 3.2 and 3.3): subjects, below them styles, below them
models. There a language model builds the tree and walks it. Here the models' own tags build it, and the
walk goes by sentence similarity, so it needs no language model and always gives the same answer.

A level is decided by what the wish names. Every run of up to four words of the wish is compared with
the labels of every child, because the few words that name a style drown in the rest of a sentence. A child
is *evoked* if its best run reaches the encoder's bar. The evoked children near the best are opened. If a
wish names no style, the models of any style are meant. If it names nothing, everything stays open, so no
model is lost by a doubtful step.

The models in the opened leaves are compared with the whole wish: the nearest is the one whose description,
tags and example prompts have the mean with the least distance to the wish. A model with many different
examples has a short mean, near to everything; that is the right prior for an all-round model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .embeddings import INSTALL_HINT, Encoder, LexicalEncoder, embed
from .library import ANY_STYLE, Library, ModelRecord, name_in_words

ANY_SUBJECT = "any subject"
UNCLASSIFIED = "unclassified"

BEAM = 0.05
"""Evoked children this near to the best one are opened with it."""

MARGIN = 0.01
"""A lead over the runner-up below this is no decision: two wordings of one wish differ by as much."""

_LONGEST_RUN = 4
_WORDS_AT_EACH_END = 60
"""Of a longer wish, only so many words from its start and its end are looked at one run at a time."""

_EMPTY_WORDS_LISTED = """
a an and as at be by create draw drawing drawn for from generate give i image in is it its like make me
my of on or picture see show that the this to want with
"""

_EMPTY_WORDS = frozenset(_EMPTY_WORDS_LISTED.split())
"""No run of words starts or ends with these: they name nothing, and "draw" is not yet "drawn in chalk"."""


@dataclass(frozen=True)
class Node:
    """A node of the tree. A leaf has models; any other node has children. `labels` is what evokes it."""

    name: str
    labels: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    models: tuple[ModelRecord, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The model picked, why in a sentence or two, and the whole evidence as plain JSON data."""

    model: ModelRecord
    reason: str
    trace: dict[str, Any]


def build_tree(models: Sequence[ModelRecord]) -> Node:
    """Subjects, then styles, then models, each sorted by name. A model stands under each of its tags."""
    tagged = [model for model in models if model.classified]
    subjects = sorted({subject for model in tagged for subject in _subjects(model)})
    children = [
        _subject_node(subject, [m for m in tagged if subject in _subjects(m)]) for subject in subjects
    ]
    untagged = _by_name(model for model in models if not model.classified)
    if untagged:
        names = tuple(name_in_words(model.name) for model in untagged)
        children.append(Node(UNCLASSIFIED, labels=names, models=untagged))
    return Node("models", children=tuple(children))


def choose(library: Library, wish: str, encoder: Encoder, fallback: ModelRecord | None = None) -> Choice:
    """Pick the model that suits the wish best, or the fallback when the best has no clear lead.

    Raises ValueError for an empty wish or an empty library.
    """
    if not wish.strip():
        raise ValueError("The wish is empty. Write what you want to see.")
    if not library.models:
        raise ValueError("There is no model to choose from.")
    steps: list[dict[str, Any]] = []
    leaves = _walk(build_tree(library.models), word_runs(wish), encoder, steps)
    candidates = {model.name: model for leaf in leaves for model in leaf.models}
    scores = {name: nearness(wish, model, encoder) for name, model in candidates.items()}
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    model, why = candidates[ranked[0]], _lead(ranked, scores)
    if len(ranked) > 1 and scores[ranked[0]] - scores[ranked[1]] < MARGIN:
        model, why = _without_lead(model, why, fallback)
    reason = " ".join([f"{model.name}:", *(step["why"] for step in steps), why])
    trace = {
        "chosen": model.name,
        "reason": reason,
        "path": steps,
        "candidates": [{"name": name, "score": round(scores[name], 4)} for name in ranked],
        "skipped": dict(library.skipped),
        "notes": _notes(wish, candidates.values(), encoder),
    }
    return Choice(model, reason, trace)


def missing_triggers(wish: str, model: ModelRecord) -> tuple[str, ...]:
    """The model's trigger words that the wish does not contain, upper and lower case being the same."""
    said = wish.casefold()
    return tuple(words for words in model.trigger_words if words.casefold() not in said)


def word_runs(wish: str) -> tuple[str, ...]:
    """Every run of one to four words that has content at both ends, lower-case, each once, in order."""
    words = re.findall(r"[\w'-]+", wish.casefold())
    if len(words) > 2 * _WORDS_AT_EACH_END:
        words = words[:_WORDS_AT_EACH_END] + words[-_WORDS_AT_EACH_END:]
    runs = [
        words[start : start + length]
        for length in range(1, _LONGEST_RUN + 1)
        for start in range(len(words) - length + 1)
    ]
    full = [" ".join(run) for run in runs if run[0] not in _EMPTY_WORDS and run[-1] not in _EMPTY_WORDS]
    return tuple(dict.fromkeys(full)) or (wish,)


def nearness(wish: str, model: ModelRecord, encoder: Encoder) -> float:
    """1 - d²/2, where d is the distance of the wish's vector to the mean of the model's; at most 1."""
    mean = embed(encoder, _profile(model)).mean(0)
    return float(1 - np.square(embed(encoder, (wish,))[0] - mean).sum() / 2)


def _walk(node: Node, runs: tuple[str, ...], encoder: Encoder, steps: list[dict[str, Any]]) -> list[Node]:
    """The leaves that the wish leads to below a node. Adds one step for each level with a choice."""
    if not node.children:
        return [node]
    opened = node.children
    if len(node.children) > 1:
        scores = {child.name: _evidence(child, runs, encoder) for child in node.children}
        opened, why = _open(node.children, scores, encoder.evoked)
        steps.append(
            {
                "at": node.name,
                "scores": {name: round(score, 4) for name, score in scores.items()},
                "opened": [child.name for child in opened],
                "why": why,
            }
        )
    return [leaf for child in opened for leaf in _walk(child, runs, encoder, steps)]


def _open(children: Sequence[Node], scores: dict[str, float], evoked: float) -> tuple[tuple[Node, ...], str]:
    """The children to go on with, and why."""
    best = max(children, key=lambda child: scores[child.name])
    if scores[best.name] >= evoked:
        near = scores[best.name] - BEAM
        opened = [c for c in children if scores[c.name] >= max(near, evoked) or c.name == ANY_SUBJECT]
        return tuple(opened), f'The wish names "{best.name}" ({scores[best.name]:.2f}).'
    general = tuple(child for child in children if child.name == ANY_STYLE)
    if general:
        return (
            general,
            f'The wish names no style (nearest: "{best.name}", {scores[best.name]:.2f} of {evoked:.2f}).',
        )
    return tuple(children), f"The wish names none of: {', '.join(child.name for child in children)}."


def _evidence(node: Node, runs: tuple[str, ...], encoder: Encoder) -> float:
    """The best similarity of a run of words and a label; 0 for a node that stands for anything."""
    if not node.labels:
        return 0.0
    return float((embed(encoder, runs) @ embed(encoder, node.labels).T).max())


def _subject_node(subject: str, models: Sequence[ModelRecord]) -> Node:
    styles = sorted({style for model in models for style in _styles(model)})
    leaves = [_style_leaf(style, [model for model in models if style in _styles(model)]) for style in styles]
    return Node(subject, labels=() if subject == ANY_SUBJECT else (subject,), children=tuple(leaves))


def _style_leaf(style: str, models: Sequence[ModelRecord]) -> Node:
    """A style is evoked by its name, and by the trigger words and descriptions of its models."""
    if style == ANY_STYLE:
        return Node(style, models=_by_name(models))
    texts = [text for model in models for text in (*model.trigger_words, model.description) if text]
    return Node(style, labels=tuple(dict.fromkeys([style, *texts])), models=_by_name(models))


def _subjects(model: ModelRecord) -> tuple[str, ...]:
    return model.subject_tags or (ANY_SUBJECT,)


def _styles(model: ModelRecord) -> tuple[str, ...]:
    return model.style_tags or (ANY_STYLE,)


def _by_name(models: Any) -> tuple[ModelRecord, ...]:
    return tuple(sorted(models, key=lambda model: model.name))


def _profile(model: ModelRecord) -> tuple[str, ...]:
    """The texts that describe a model; at least its title, which is never empty."""
    texts = (model.title, model.description, *model.subject_tags, *model.style_tags, *model.trigger_words)
    return tuple(text for text in (*texts, model.usage_hint, *model.example_prompts) if text)


def _lead(ranked: Sequence[str], scores: dict[str, float]) -> str:
    if len(ranked) == 1:
        return "It is the only model there."
    return f"It is nearest to the wish ({scores[ranked[0]]:.3f}; next {ranked[1]}, {scores[ranked[1]]:.3f})."


def _without_lead(best: ModelRecord, why: str, fallback: ModelRecord | None) -> tuple[ModelRecord, str]:
    """What to take when the best model's lead is below the margin, and why."""
    if fallback is None:
        return best, f"{why} The lead is below {MARGIN}; no fallback is set, so the nearest is taken."
    return fallback, f"The fallback is taken, because {best.name} leads by less than {MARGIN}."


def _notes(wish: str, candidates: Any, encoder: Encoder) -> list[str]:
    notes = [f"{model.name}: {note}" for model in candidates for note in model.notes]
    if isinstance(encoder, LexicalEncoder):
        notes.append(f"Compared by words and letters; {INSTALL_HINT}.")
    if len(re.findall(r"[\w'-]+", wish)) > 2 * _WORDS_AT_EACH_END:
        notes.append(f"Of the long wish, the first and last {_WORDS_AT_EACH_END} words decided the path.")
    return notes
