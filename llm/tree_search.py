"""The search down the model tree that picks a model for a wish.

After DiffusionGPT (arXiv 2401.10061, sections 3.3 and 3.4). At each level the branches that the wish leads to are
opened: by the votes of several voices of a language model, a Tree-of-Thought search (arXiv 2305.10601); or, with no
model, by sentence similarity, which always gives the same answer. Then one of the models in the opened leaves is
picked: by the ratings of similar prompts where they tell the models apart, else by the voices, else by nearness.

Without a language model, a level is decided by what the wish names. Every run of up to four words of the wish is
compared with the labels of every child, because the few words that name a style drown in the rest of a sentence. A
child whose label is such a run is meant, and nothing is compared. Else a child is *evoked* if its best run reaches the
encoder's bar, and the evoked children near the best are opened. If a wish names no style, the models of any style are
meant. If it names nothing, everything stays open, so no model is lost by a doubtful step.

The nearest model is the one whose description, tags and example prompts have the mean with the least distance to the
wish. A model with many different examples has a short mean, near to everything; that is the right prior for an
all-round model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .embeddings import INSTALL_HINT, Encoder, LexicalEncoder, embed
from .records import ModelRecord
from .tags import ANY_STYLE
from .tree import ANY_SUBJECT, Node
from .voting import Ballot, Panel

BEAM = 0.05
"""Evoked children this near to the best one are opened with it."""

SHOWN = 24
"""Branches that are put before a voice, the nearest ones: more would not fit a small context."""

_WORD = re.compile(r"[\w'-]+")
_LONGEST_RUN = 4
_WORDS_AT_EACH_END = 60
"""Of a longer wish, only so many words from its start and its end are looked at one run at a time."""

_EMPTY_WORDS_LISTED = """
a an and as at be by create draw drawing drawn for from generate give i image in is it its like make me
my of on or picture see show that the this to want with
"""

_EMPTY_WORDS = frozenset(_EMPTY_WORDS_LISTED.split())
"""No run of words starts or ends with these: they name nothing, and "draw" is not yet "drawn in chalk"."""


@dataclass
class Search:
    """One walk: what it goes by, and the steps it took so far, as JSON data."""

    wish: str
    encoder: Encoder
    panel: Panel
    steps: list[dict[str, Any]] = field(default_factory=list)

    def walk(self, node: Node) -> list[Node]:
        """The leaves that the wish leads to below a node. Adds one step for each level with a choice."""
        if not node.children:
            return [node]
        opened = node.children
        if len(node.children) > 1:
            opened = self._step(node)
        return [leaf for child in opened for leaf in self.walk(child)]

    def _step(self, node: Node) -> tuple[Node, ...]:
        runs = word_runs(self.wish)
        # The voices are shown the nearest branches, so for them all are compared.
        named = {} if self.panel.ready else _named(node.children, runs)
        scores = named or _evidence(node.children, runs, self.encoder)
        opened, why = _open(node.children, scores, self.encoder.evoked)
        step: dict[str, Any] = {"at": node.name, "by": "words" if named else self.encoder.name}
        if self.panel.ready:
            shown = _nearest(node.children, scores)
            options = [(child.name, _about_branch(child)) for child in shown]
            ballot = self.panel.vote("tree_step", self.wish, options, none=True)
            step["votes"] = ballot.as_json()
            if len(shown) < len(node.children):
                step["not_shown"] = len(node.children) - len(shown)
            if ballot.winners:
                opened, why = _elected(node.children, ballot)
                step["by"] = self.panel.llm.name
            else:
                why = f"No voice gave a usable vote, so words decided. {why}"
        step["scores"] = {name: round(score, 4) for name, score in scores.items()}
        self.steps.append(step | {"opened": [child.name for child in opened], "why": why})
        return opened

    def nearness(self, model: ModelRecord) -> float:
        return nearness(self.wish, model, self.encoder)


def word_runs(wish: str) -> tuple[str, ...]:
    """Every run of one to four words that has content at both ends, lower-case, each once, in order."""
    words = _WORD.findall(wish.casefold())
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
    mean = _mean(encoder, _profile(model))
    return float(1 - np.square(embed(encoder, (wish,))[0] - mean).sum() / 2)


@functools.lru_cache(maxsize=4096)
def _mean(encoder: Encoder, texts: tuple[str, ...]) -> np.ndarray:
    """The mean of the texts' vectors: 1.5 kB for a model with MiniLM."""
    return embed(encoder, texts).mean(0)


def search_notes(wish: str, candidates: Iterable[ModelRecord], encoder: Encoder) -> list[str]:
    """What a user should know about how the search went."""
    notes = [f"{model.name}: {note}" for model in candidates for note in model.notes]
    if isinstance(encoder, LexicalEncoder):
        notes.append(f"Compared by words and letters; {INSTALL_HINT}.")
    if len(_WORD.findall(wish)) > 2 * _WORDS_AT_EACH_END:
        notes.append(f"Of the long wish, the first and last {_WORDS_AT_EACH_END} words decided the path.")
    return notes


def _open(children: Sequence[Node], scores: dict[str, float], evoked: float) -> tuple[tuple[Node, ...], str]:
    """The children to go on with by similarity, and why."""
    best = max(scores, key=scores.__getitem__)
    if scores[best] >= evoked:
        bar = max(scores[best] - BEAM, evoked)
        opened = tuple(c for c in children if scores.get(c.name, 0.0) >= bar or c.name == ANY_SUBJECT)
        return opened, f'The wish names "{best}" ({scores[best]:.2f}).'
    general = tuple(child for child in children if child.name == ANY_STYLE)
    if general:
        return general, f'The wish names no style (nearest: "{best}", {scores[best]:.2f} of {evoked:.2f}).'
    return tuple(children), f"The wish names none of: {_few(child.name for child in children)}."


def _elected(children: Sequence[Node], ballot: Ballot) -> tuple[tuple[Node, ...], str]:
    """The children that the voices opened, and why. Tied ones are opened together; none of them means all."""
    winners = [name for name in ballot.winners if name is not None]
    if not winners:
        return tuple(children), "The voices say that the wish means none of the branches, so all stay open."
    opened = tuple(child for child in children if child.name in winners)
    names = " and ".join(f'"{name}"' for name in winners)
    if len(ballot.winners) > 1:
        return opened, f"The voices are tied, so what they chose stays open: {names}."
    return opened, f"{ballot.share()} chose {names}."


def _named(children: Sequence[Node], runs: tuple[str, ...]) -> dict[str, float]:
    """The children that have a run of words for a label, each with the similarity of a text to itself."""
    said = set(runs)
    return {child.name: 1.0 for child in children if any(label.casefold() in said for label in child.labels)}


def _evidence(children: Sequence[Node], runs: tuple[str, ...], encoder: Encoder) -> dict[str, float]:
    """For each child the best similarity of a run of words and a label; 0 for one that stands for anything."""
    labels = tuple(dict.fromkeys(label for child in children for label in child.labels))
    if not labels:
        return {child.name: 0.0 for child in children}
    best = (embed(encoder, runs) @ embed(encoder, labels).T).max(0)
    by_label = dict(zip(labels, best.tolist(), strict=True))
    return {child.name: max((by_label[label] for label in child.labels), default=0.0) for child in children}


def _nearest(children: Sequence[Node], scores: dict[str, float]) -> list[Node]:
    """The children that a voice is shown, in the tree's order. One that stands for anything is always shown."""
    ranked = sorted(children, key=lambda child: (bool(child.labels), -scores[child.name]))
    shown = {child.name for child in ranked[:SHOWN]}
    return [child for child in children if child.name in shown]


def _about_branch(child: Node) -> str:
    return _few(child.labels[1:9], 8) if child.labels else "models that are not tied to one"


def _few(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", …" if len(listed) > most else "")


def _profile(model: ModelRecord) -> tuple[str, ...]:
    """The texts that describe a model; at least its title, which is never empty."""
    texts = (model.title, model.description, *model.subject_tags, *model.style_tags, *model.trigger_words)
    found = tuple(text for text in (*texts, model.usage_hint, *model.example_prompts) if text)
    return found or (model.name,)
