"""Nodes that make scorers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor

from ..feedback.aesthetic import Aesthetic, load_head
from ..feedback.combined import combine
from ..feedback.pictures import pictures_from_batch
from ..feedback.reward import ENOUGH, PromptistRelevance
from ..feedback.scorers import (
    ClipRelevance,
    Diversity,
    HpsV2,
    ImageEncoder,
    PickScore,
    Scorer,
    TargetSimilarity,
)
from .clip_models import (
    NO_HEAD,
    NO_MODEL,
    HostVision,
    folder_state,
    head_file,
    head_names,
    installed_folder,
    load,
    model_folder,
    model_names,
    register_folders,
)
from .score import ScorerSocket

RELEVANCE, TARGET = "relevance to the prompt", "similarity to a target"
PROMPTIST = "relevance, as Promptist rewards it"
AESTHETIC, DIVERSITY = "aesthetic", "diversity of the batch"
READERS: dict[str, Callable[..., Scorer]] = {
    RELEVANCE: ClipRelevance,
    PROMPTIST: PromptistRelevance,
    "PickScore": PickScore,
    "HPS v2": HpsV2,
}
"""Scorers that read the prompt with a CLIP model, which they take first."""

register_folders()


def clip_model_input(remark: str = "") -> io.Input:
    return io.Combo.Input(
        "clip_model",
        options=model_names() or [NO_MODEL],
        tooltip="A folder in models/clip_scorers with a CLIP model of open_clip or transformers, or with HPS_v2*.pt."
        + remark,
    )


def scorer_output() -> io.Output:
    return ScorerSocket.Output(display_name="scorer", tooltip="For Score Images, Auto Rate and Combine Scorers.")


class AtelierLoadScorer(io.ComfyNode):
    """A scorer, for the nodes that use one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadScorer",
            display_name="Load Scorer",
            category="Atelier/Score",
            description="Loads what scores pictures: how well they fit the prompt, how much people would like them, "
            "how near they are to a target, or how unlike each other.",
            search_aliases=[
                "clip score",
                "open_clip",
                "relevance",
                "similarity",
                "reward",
                "ranking",
                "aesthetic score",
                "PickScore",
                "HPS",
                "human preference",
                "diversity",
                "Promptist",
            ],
            inputs=[
                io.Combo.Input(
                    "scorer",
                    options=[RELEVANCE, TARGET, *list(READERS)[1:], AESTHETIC, DIVERSITY],
                    tooltip="What is measured. The target is a picture that you link.",
                ),
                clip_model_input(" Not used when a CLIP Vision is linked."),
                io.Image.Input(
                    "target", optional=True, tooltip="What pictures should be like. Of several, the mean counts."
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For aesthetic, diversity and similarity to a target: a CLIP Vision model in place of "
                    "clip_model.",
                ),
                io.Combo.Input(
                    "aesthetic_head",
                    options=[NO_HEAD, *head_names()],
                    default=NO_HEAD,
                    optional=True,
                    tooltip="For aesthetic: a file in models/aesthetic_heads, made for this CLIP model.",
                ),
                io.Float.Input(
                    "enough",
                    default=ENOUGH,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="For relevance as Promptist rewards it: the cosine from which a picture fits its prompt "
                    "well enough. 0.28 is right for CLIP ViT-L/14; other models have other cosines.",
                ),
            ],
            outputs=[scorer_output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        scorer: str = "",
        clip_model: str = NO_MODEL,
        aesthetic_head: str = NO_HEAD,
        enough: float = ENOUGH,
        **_: object,
    ) -> str:
        folder = model_folder(clip_model)
        head = "" if aesthetic_head == NO_HEAD else str(head_file(aesthetic_head).stat().st_mtime_ns)
        return f"{scorer} {clip_model} {folder_state(folder) if folder else ''} {aesthetic_head} {head} {enough}"

    @classmethod
    def execute(
        cls,
        scorer: str,
        clip_model: str,
        target: Tensor | None = None,
        clip_vision: ClipVisionModel | None = None,
        aesthetic_head: str = NO_HEAD,
        enough: float = ENOUGH,
    ) -> io.NodeOutput:
        if scorer in READERS:
            if clip_vision is not None:
                raise ValueError(
                    f"A CLIP Vision model reads no text, so it cannot score {scorer}. Unlink it and choose a "
                    "clip_model."
                )
            encoder = load(installed_folder(clip_model))
            told = {"enough": enough} if scorer == PROMPTIST else {}
            return io.NodeOutput(READERS[scorer](encoder, **told))
        if scorer == AESTHETIC:
            head = load_head(head_file(aesthetic_head))
            return io.NodeOutput(Aesthetic(_image_encoder(clip_model, clip_vision), head))
        if scorer == DIVERSITY:
            return io.NodeOutput(Diversity(_image_encoder(clip_model, clip_vision)))
        return io.NodeOutput(_similarity(target, lambda: _image_encoder(clip_model, clip_vision)))


def _image_encoder(clip_model: str, clip_vision: ClipVisionModel | None) -> ImageEncoder:
    return HostVision(clip_vision) if clip_vision is not None else load(installed_folder(clip_model))


def _similarity(target: Tensor | None, encoder_of: Callable[[], ImageEncoder]) -> TargetSimilarity:
    if target is None:
        raise ValueError("Similarity to a target needs the picture to compare with. Link it into target.")
    pictures = pictures_from_batch(target, "target")
    if not pictures:
        raise ValueError("There is no target: the batch is empty.")
    encoder = encoder_of()
    return TargetSimilarity(encoder, encoder.encode_images(torch.stack(pictures)))


class AtelierCombineScorers(io.ComfyNode):
    """The weighted sum of scorers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs: list[io.Input] = []
        for number in (1, 2, 3, 4):
            optional = number > 2
            inputs += [
                ScorerSocket.Input(
                    f"scorer_{number}",
                    optional=optional,
                    tooltip="A scorer of Load Scorer, Load Taste or another Combine Scorers.",
                ),
                io.Float.Input(
                    f"weight_{number}",
                    default=1.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.05,
                    optional=optional,
                    tooltip="Its scores are multiplied by this and added to the others. Below 0 less is better; at 0 "
                    "it is left out.",
                ),
            ]
        return io.Schema(
            node_id="AtelierCombineScorers",
            display_name="Combine Scorers",
            category="Atelier/Score",
            description="One scorer from several: the sum of their scores, each times its weight.",
            search_aliases=["weighted reward", "sum of scores", "multi reward", "mix scorers", "Promptist"],
            inputs=inputs,
            outputs=[scorer_output()],
        )

    @classmethod
    def execute(
        cls,
        scorer_1: Scorer,
        weight_1: float,
        scorer_2: Scorer,
        weight_2: float,
        scorer_3: Scorer | None = None,
        weight_3: float = 1.0,
        scorer_4: Scorer | None = None,
        weight_4: float = 1.0,
    ) -> io.NodeOutput:
        parts = ((scorer_1, weight_1), (scorer_2, weight_2), (scorer_3, weight_3), (scorer_4, weight_4))
        return io.NodeOutput(combine(*((scorer, weight) for scorer, weight in parts if scorer is not None)))
