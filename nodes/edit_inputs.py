"""The inputs that the edit nodes share, and the guidance that they say."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from ..attention.edit import KEEP, OFFICIAL
from ..attention.guidance import SHAPES, ScaleSchedule
from ..attention.guider import EditGuidance

DEFAULTS = {"text_start": 0.0, "text_end": 0.8, "image_start": 0.0, "image_end": 0.4}
"""Where each scale counts. Outside it is 1, and a step asks the model less: 3 questions, then 2, then 1, or 2.2 a step.
Chosen on ShapeWorld, where edits come out as well as without intervals."""


def scale_inputs() -> list[io.Input]:
    """The two scales."""
    return [
        io.Float.Input(
            "text_scale",
            default=7.5,
            min=-100.0,
            max=1000.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly the instruction is followed. The paper uses 5 to 10. 1 is no guidance.",
        ),
        io.Float.Input(
            "image_scale",
            default=1.5,
            min=-100.0,
            max=1000.0,
            step=0.05,
            round=0.01,
            tooltip="How strongly the picture is kept. The paper uses 1 to 1.5. If nothing changes, lower it; if too "
            "much changes, raise it.",
        ),
    ]


def guidance_inputs() -> list[io.Input]:
    """When the scales count, and what else shapes the guidance."""

    def percent(name: str, which: str, end: str) -> io.Input:
        return io.Float.Input(
            name,
            default=DEFAULTS[name],
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip=f"Where {which} {end} to count, as a share of sampling: 0 is pure noise, 1 the finished picture. "
            "Elsewhere it is 1, and steps cost less.",
        )

    def shape(name: str, which: str) -> io.Input:
        return io.Combo.Input(
            name,
            options=list(SHAPES),
            default="constant",
            optional=True,
            advanced=True,
            tooltip=f"How {which} goes in its interval: it stays, falls to 1 or rises from 1.",
        )

    return [
        percent("text_start", "text_scale", "begins"),
        percent("text_end", "text_scale", "ceases"),
        percent("image_start", "image_scale", "begins"),
        percent("image_end", "image_scale", "ceases"),
        shape("text_shape", "text_scale"),
        shape("image_shape", "image_scale"),
        io.Float.Input(
            "rescale",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Takes back the contrast that high scales add: 0 is off, 1 in full.",
        ),
        io.Float.Input(
            "reuse_tolerance",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.005,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="Serves the answer without picture and instruction from an earlier step while the estimated error "
            "of a latent, whose values are about 1, stays below this. 0 is off.",
        ),
    ]


def read_guidance(
    text_scale: float | Tensor, image_scale: float | Tensor, settings: dict[str, float | str]
) -> EditGuidance:
    """The guidance that the inputs of `scale_inputs` and `guidance_inputs` say."""
    given = {**DEFAULTS, "text_shape": "constant", "image_shape": "constant", **settings}
    text = ScaleSchedule(text_scale, given["text_start"], given["text_end"], given["text_shape"])
    picture = ScaleSchedule(image_scale, given["image_start"], given["image_end"], given["image_shape"])
    return EditGuidance(text, picture, given.get("rescale", 0.0), given.get("reuse_tolerance", 0.0))


def edit_inputs() -> list[io.Input]:
    """What an edit needs beside its scales."""
    return [
        io.Model.Input("model", tooltip="A model with 8 input channels: InstructPix2Pix for SD1.5, CosXL edit."),
        io.Clip.Input("clip", tooltip="The model's text encoder."),
        io.Vae.Input("vae", tooltip="The model's VAE."),
        io.Image.Input("image", tooltip="The picture to edit, or several. An alpha channel is ignored."),
        io.String.Input(
            "instruction",
            default="",
            multiline=True,
            dynamic_prompts=False,
            tooltip='What to change, as an order: "make it night". One for each line; see apply.',
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="Start of the noise. Picture n of a batch uses seed + n - 1.",
        ),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of sampling. The paper uses 100."),
    ]


def size_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "resize",
            options=[OFFICIAL, KEEP],
            default=OFFICIAL,
            optional=True,
            advanced=True,
            tooltip="Official: the long side near the resolution, both sides multiples of 64. Keep: the picture's own "
            "size, to the VAE's step.",
        ),
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=4096,
            step=64,
            optional=True,
            advanced=True,
            tooltip="The long side to edit at, in px, where resize is official. 512 for SD1.5, 1024 for SDXL.",
        ),
    ]


def scheduler_input() -> io.Input:
    return io.Combo.Input(
        "scheduler",
        options=comfy.samplers.SCHEDULER_NAMES,
        default="normal",
        optional=True,
        advanced=True,
        tooltip="How the steps are spread over the noise levels.",
    )
