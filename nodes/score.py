"""Nodes that give pictures a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor

from ..feedback.pictures import pictures_from_batch
from ..feedback.records import StoredImage
from ..feedback.scorers import SCORER_TYPE, ClipRelevance, Scorer, TargetSimilarity, label
from ..feedback.store import default_url, open_store
from ..llm.words import without_syntax
from .clip_models import FOLDER_KEY, HostVision, folder_state, load, model_folder, model_names, register_folder
from .rate import register, source_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..feedback.ratings import Store

ScorerSocket = io.Custom(SCORER_TYPE)
NO_MODEL = "none installed"
RELEVANCE, TARGET = "relevance to the prompt", "similarity to a target"

register_folder()


def prompt_input() -> io.Input:
    return io.String.Input(
        "prompt",
        default="",
        multiline=True,
        dynamic_prompts=False,
        optional=True,
        tooltip="What was asked for. Empty: the text of the sampler's positive prompt.",
    )


class AtelierLoadScorer(io.ComfyNode):
    """A scorer, for the nodes that use one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadScorer",
            display_name="Load Scorer",
            category="Atelier/Score",
            description="Loads what scores pictures: how well they fit the prompt, or how near they are to a target.",
            search_aliases=["clip score", "open_clip", "relevance", "similarity", "reward", "ranking"],
            inputs=[
                io.Combo.Input(
                    "scorer",
                    options=[RELEVANCE, TARGET],
                    tooltip="What is measured. The target is a picture that you link.",
                ),
                io.Combo.Input(
                    "clip_model",
                    options=model_names() or [NO_MODEL],
                    tooltip="A folder in models/clip_scorers with open_clip_config.json and the weights. "
                    "Not used when a CLIP Vision is linked.",
                ),
                io.Image.Input(
                    "target", optional=True, tooltip="What pictures should be like. Of several, the mean counts."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For similarity to a target: a CLIP Vision model in place of clip_model.",
                ),
            ],
            outputs=[ScorerSocket.Output(display_name="scorer", tooltip="For Score Images and Auto Rate.")],
        )

    @classmethod
    def fingerprint_inputs(cls, scorer: str = "", clip_model: str = NO_MODEL, **_: object) -> str:
        folder = model_folder(clip_model)
        return f"{scorer} {clip_model} {folder_state(folder) if folder else ''}"

    @classmethod
    def execute(
        cls,
        scorer: str,
        clip_model: str,
        target: Tensor | None = None,
        clip_vision: ClipVisionModel | None = None,
    ) -> io.NodeOutput:
        if scorer == RELEVANCE:
            if clip_vision is not None:
                raise ValueError(
                    "A CLIP Vision model reads no text, so it cannot score the relevance to a prompt. Unlink it and "
                    "choose a clip_model."
                )
            return io.NodeOutput(ClipRelevance(load(_folder(clip_model))))
        if target is None:
            raise ValueError("Similarity to a target needs the picture to compare with. Link it into target.")
        encoder = HostVision(clip_vision) if clip_vision is not None else load(_folder(clip_model))
        pictures = pictures_from_batch(target, "target")
        if not pictures:
            raise ValueError("There is no target: the batch is empty.")
        return io.NodeOutput(TargetSimilarity(encoder, encoder.encode_images(torch.stack(pictures))))


def _folder(name: str) -> Path:
    folder = model_folder(name)
    if folder is None:
        what = "No CLIP model for scoring is installed" if name == NO_MODEL else f"There is no CLIP model {name}"
        raise ValueError(
            f"{what}. Put the folder of one into {' or '.join(folder_paths.get_folder_paths(FOLDER_KEY))}, with "
            "open_clip_config.json and open_clip_model.safetensors, then press R."
        )
    return folder


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
                ScorerSocket.Input("scorer", tooltip="The scorer of Load Scorer."),
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
            "The relevance to a prompt needs a prompt, and none was found in front of the sampler. Write or link it "
            "into prompt."
        )
    scores = scorer.score(torch.stack(pictures), text)
    if not any(map(math.isfinite, scores)):
        raise ValueError(f"{scorer.name} gave none of the {len(scores)} pictures a number. Its weights may be damaged.")
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
