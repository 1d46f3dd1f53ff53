"""The node that gives pictures a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..feedback.pictures import pictures_from_batch
from ..feedback.records import StoredImage
from ..feedback.scorers import SCORER_TYPE, Scorer, label
from ..feedback.store import default_url, open_store
from ..llm.words import without_syntax
from .rate import register, source_of

if TYPE_CHECKING:
    from ..feedback.ratings import Store

ScorerSocket = io.Custom(SCORER_TYPE)


def prompt_input() -> io.Input:
    return io.String.Input(
        "prompt",
        default="",
        multiline=True,
        dynamic_prompts=False,
        optional=True,
        tooltip="What was asked for. Empty: the text of the sampler's positive prompt.",
    )


class AtelierScoreImages(io.ComfyNode):
    """Scores a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierScoreImages",
            display_name="Score Images",
            category="Atelier/Score",
            description="Gives each picture its score and sorts them, the best first.",
            search_aliases=["clip score", "rank images", "sort images", "best of n", "relevance", "reward"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score."),
                ScorerSocket.Input("scorer", tooltip="From Load Scorer, Load Taste or Combine Scorers."),
                prompt_input(),
                io.String.Input(
                    "session",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Name of a session to keep the scores in, as in Rate Images. Empty: they are not kept.",
                ),
                io.String.Input(
                    "trace",
                    optional=True,
                    force_input=True,
                    tooltip="The trace of the Model Tree Router, as in Rate Images. Counts only with a session.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "scores", is_output_list=True, tooltip="One for each picture, in the order of the input."
                ),
                io.String.Output("report", tooltip="The scores as a text, the best first."),
                io.Image.Output("best_first", tooltip="The pictures, the best first."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, images: Tensor, scorer: Scorer, prompt: str = "", session: str = "", trace: str | None = None
    ) -> io.NodeOutput:
        source = source_of(cls)
        wish = prompt or source.prompt
        scores = score_batch(images, scorer, wish)
        if session.strip():
            store = open_store(default_url())
            _, registered = register(cls, store, images, session, wish, source, trace)
            keep_scores(store, registered, scorer, scores)
        ranks = order(scores)
        return io.NodeOutput(scores, report(scorer, scores), images[ranks])


def score_batch(images: Tensor, scorer: Scorer, prompt: str) -> list[float]:
    """The score of each picture; syntax in the prompt does not count.

    Raises:
        ValueError: there is no picture or no prompt, a picture is not made of numbers, or no score is a number.
    """
    pictures = pictures_from_batch(images, "new")
    if not pictures:
        raise ValueError("There are no pictures to score: the batch is empty.")
    text = without_syntax(prompt).strip()
    if scorer.needs_prompt and not text:
        raise ValueError(
            f"The scorer {scorer.name} needs a prompt, and none was found in front of the sampler. Write or link it "
            "into prompt."
        )
    scores = scorer.score(torch.stack(pictures), text)
    if not any(map(math.isfinite, scores)):
        raise ValueError(
            f"{scorer.name} gave none of the {len(scores)} pictures a number. Diversity needs more pictures than one; "
            "otherwise the weights may be damaged."
        )
    return scores


def keep_scores(store: Store, pictures: list[StoredImage], scorer: Scorer, scores: list[float]) -> None:
    """Keep the scores of registered pictures with the scorer's name and version; what is no number is left out."""
    for picture, score in zip(pictures, scores, strict=True):
        if math.isfinite(score):
            store.score(picture.key, label(scorer), score)


def report(scorer: Scorer, scores: list[float], remarks: Sequence[str] = ()) -> str:
    """One line for each picture, the best first, numbered from 1, with a remark on each if there are any."""
    lines = [label(scorer)]
    for i in order(scores):
        score = f"{scores[i]:.4f}" if math.isfinite(scores[i]) else "no number"
        lines.append(f"{score}  picture {i + 1}  {remarks[i] if remarks else ''}".rstrip())
    return "\n".join(lines)


def order(scores: list[float]) -> list[int]:
    """Indices from the best score to the worst. Of equal ones the earlier is first; what is no number is last."""
    return sorted(range(len(scores)), key=lambda i: (not math.isfinite(scores[i]), -scores[i], i))
