"""Sessions of feedback, as in the paper: pictures are drawn, the best one is liked, the worst one disliked, again.

Source: arXiv 2307.10159, section 4: a batch of four, three rounds, one like and one dislike for each round, which a
scorer gives. To be imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from _world import Checkpoint, pack
from torch import Tensor

BATCH, ROUNDS = 4, 3

Score = Callable[[Tensor], list[float]]
"""Pictures [n, height, width, 3] in 0..1 to one number each; more is better."""


@dataclass(frozen=True)
class Arm:
    """A way to use feedback. What is not set here has the node's own default, which is fixed noise on the references;
    the paper's code has noise by the seed, and so have the arms that compare what the paper compares."""

    name: str
    negative: bool = True
    settings: tuple[tuple[str, float | str], ...] = ()


PLAIN = Arm("plain")
"""The same model and seeds, without feedback."""
BY_SEED = ("reference_noise", "seed")
ARMS = (
    Arm("feedback", settings=(BY_SEED,)),
    Arm("positive_only", negative=False, settings=(BY_SEED,)),
    Arm("second_half", settings=(BY_SEED, ("start_percent", 0.5), ("end_percent", 1.0))),
    Arm("exploring", settings=(BY_SEED, ("exploration", 0.25))),
    Arm("fixed_noise"),
)


@dataclass
class Session:
    """One person with one wish: what is asked for, and how the person sees the pictures."""

    number: int
    prompt: str
    score: Score
    seed: int


@dataclass
class Played:
    """A session's pictures [round][BATCH, height, width, 3] and scores [round][BATCH], and what was rated."""

    session: Session
    pictures: list[Tensor] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    liked: list[Tensor] = field(default_factory=list)
    disliked: list[Tensor] = field(default_factory=list)

    def add(self, pictures: Tensor) -> None:
        """Score a round's pictures and rate them. Who sees no difference rates nothing."""
        scores = self.session.score(pictures)
        self.pictures.append(pictures)
        self.scores.append(scores)
        if min(scores) < max(scores):
            self.liked.append(pictures[scores.index(max(scores))])
            self.disliked.append(pictures[scores.index(min(scores))])


def first_round(checkpoint: Checkpoint, session: Session) -> Tensor:
    """The first round of a session, which is the same in all arms."""
    return _draw(checkpoint, session, 0)


def play(checkpoint: Checkpoint, session: Session, first: Tensor, arm: Arm) -> Played:
    """All rounds of a session. The noise is the same in all arms."""
    played = Played(session)
    played.add(first)
    for number in range(1, ROUNDS):
        if arm == PLAIN:
            played.add(_draw(checkpoint, session, number))
            continue
        disliked = played.disliked if arm.negative else []
        model = listening(checkpoint, played.liked, disliked, **dict(arm.settings))
        played.add(_draw(checkpoint, session, number, model))
    return played


def listening(
    checkpoint: Checkpoint, liked: Sequence[Tensor], disliked: Sequence[Tensor], **settings: float | str
) -> Any:
    """The checkpoint's model behind the FABRIC node, with the node's defaults for what is not set."""
    nodes = pack().nodes
    feedback = nodes.AtelierFeedbackFromImages.execute(
        liked=torch.stack(list(liked)) if liked else None, disliked=torch.stack(list(disliked)) if disliked else None
    ).result[0]
    defaults = {
        each.id: each.default
        for each in nodes.AtelierFabric.define_schema().inputs
        if getattr(each, "default", None) is not None
    }
    given = {**defaults, **settings}
    return nodes.AtelierFabric.execute(checkpoint.model, checkpoint.clip, checkpoint.vae, feedback, **given).result[0]


def _draw(checkpoint: Checkpoint, session: Session, number: int, model: Any = None) -> Tensor:
    seed = session.seed + 10_000 * number + session.number
    return checkpoint.draw([session.prompt] * BATCH, seed, model)
