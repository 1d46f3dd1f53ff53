"""Inputs of the nodes that draw small pictures on the way and score them."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..feedback.scorers import Scorer
from ..training.host_prompt_rl import Drawing, PictureReward
from .score import ScorerSocket


def drawing_sockets(scorer: str, relevance: str) -> list[io.Input]:
    """Sockets for what draws, and for what scores, with their tooltips."""
    return [
        io.Model.Input("model", optional=True, tooltip="The model that draws the pictures. It is not trained."),
        io.Clip.Input("clip", optional=True, tooltip="The model's text encoder. It is not trained."),
        io.Vae.Input("vae", optional=True, tooltip="The model's VAE. It is not trained."),
        ScorerSocket.Input("scorer", optional=True, tooltip=scorer),
        ScorerSocket.Input("relevance", optional=True, tooltip=relevance),
    ]


def drawing_settings(pictures: int, advanced: bool | None = None) -> list[io.Input]:
    """How the pictures are drawn. `pictures` is the default number for each prompt."""
    return [
        io.Int.Input(
            "size",
            default=Drawing.size,
            min=64,
            max=2048,
            step=64,
            optional=True,
            advanced=advanced,
            tooltip="Side of the pictures, in pixels.",
        ),
        io.Int.Input(
            "pictures",
            default=pictures,
            min=1,
            max=64,
            optional=True,
            advanced=advanced,
            tooltip="Pictures drawn for each candidate.",
        ),
        io.Int.Input(
            "sampler_steps",
            default=Drawing.steps,
            min=1,
            max=1000,
            optional=True,
            advanced=advanced,
            tooltip="Steps in which a picture is drawn.",
        ),
        io.Float.Input(
            "cfg",
            default=Drawing.cfg,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            advanced=advanced,
            tooltip="Guidance scale.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default=Drawing.sampler,
            optional=True,
            advanced=True,
            tooltip="The sampler that draws.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default=Drawing.scheduler,
            optional=True,
            advanced=True,
            tooltip="The scheduler that draws.",
        ),
        io.String.Input(
            "negative",
            default=Drawing.negative,
            optional=True,
            advanced=True,
            tooltip="Negative prompt of all pictures.",
        ),
    ]


def picture_reward(
    why: str,
    model: ModelPatcher | None,
    clip: CLIP | None,
    vae: VAE | None,
    scorer: Scorer | None,
    relevance: Scorer | None,
    say: Callable[[str], None],
    pictures: int,
    size: int = Drawing.size,
    sampler_steps: int = Drawing.steps,
    cfg: float = Drawing.cfg,
    sampler_name: str = Drawing.sampler,
    scheduler: str = Drawing.scheduler,
    negative: str = Drawing.negative,
) -> PictureReward:
    """The reward of a candidate by its pictures, from the inputs above.

    Raises:
        ValueError: What draws or scores is not linked; the message begins with `why` it is needed.
    """
    needed = {"model": model, "clip": clip, "vae": vae, "scorer": scorer}
    if missing := [what for what, linked in needed.items() if linked is None]:
        raise ValueError(f"{why} Link {', '.join(missing)}.")
    drawing = Drawing(model, clip, vae, size, sampler_steps, cfg, sampler_name, scheduler, negative)
    return PictureReward(drawing, scorer, relevance, pictures, say)
