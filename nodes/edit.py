"""Nodes that edit pictures by instruction (InstructPix2Pix, arXiv 2211.09800)."""

from __future__ import annotations

import comfy.model_base
import comfy.samplers
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor

from ..attention.diffusers_edit import load_edit_model
from ..attention.edit import KEEP, OFFICIAL, EditRun, check_edit_model, fit, read_instructions
from ..attention.guidance import SHAPES, ScaleSchedule
from ..attention.guider import (
    PICTURE_KEYS,
    Conditioning,
    EditGuidance,
    EditGuider,
    SharedStart,
    edit_noise,
    has_picture,
    with_picture,
    without_picture,
)
from .grid_picture import draw_grid

EACH, IN_TURN = "each to its picture", "in turn"
MOST_CELLS = 64
DEFAULTS = {"text_start": 0.0, "text_end": 1.0, "image_start": 0.0, "image_end": 1.0}
"""Where each scale counts. Outside it is 1, and then a step asks the model less."""

EXACT_SAMPLERS = ("euler", "dpmpp_2m", "heun", "ddim", "uni_pc")
"""Samplers that add no noise of their own, so that a cell of the grid is what the same scales give alone."""


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


class AtelierDualCFGGuider(io.ComfyNode):
    """Equation 3 as a guider for `SamplerCustomAdvanced`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierDualCFGGuider",
            display_name="Dual CFG Guider (Edit)",
            category="Atelier/Edit",
            description="Guides an edit by two scales, for the instruction and for the picture, at the least cost.",
            search_aliases=["InstructPix2Pix", "dual CFG", "image guidance", "edit guider", "Kontext", "Qwen edit"],
            inputs=[
                io.Model.Input("model", tooltip="An edit model: InstructPix2Pix, CosXL edit, Kontext, Qwen edit."),
                io.Conditioning.Input("positive", tooltip="The instruction."),
                io.Conditioning.Input("negative", tooltip="The empty prompt, or what to avoid."),
                *scale_inputs(),
                io.Latent.Input(
                    "image",
                    optional=True,
                    tooltip="The picture to edit, encoded by the VAE. Leave it out if positive and negative have the "
                    "picture already, as InstructPixToPixConditioning and ReferenceLatent make them.",
                ),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: Conditioning,
        negative: Conditioning,
        text_scale: float,
        image_scale: float,
        image: dict[str, Tensor] | None = None,
        **settings: float | str,
    ) -> io.NodeOutput:
        concat = isinstance(model.model, comfy.model_base.IP2P)
        if not concat and isinstance(model.get_model_object("diffusion_model"), UNetModel):
            check_edit_model(model)
        silent = negative
        if image is not None:
            positive, silent = (with_picture(cond, image["samples"], concat) for cond in (positive, negative))
        elif not has_picture(positive):
            raise ValueError(
                "There is no picture to edit. Connect its latent (VAE Encode) to 'image', or make positive and "
                "negative with InstructPixToPixConditioning or ReferenceLatent."
            )
        elif not has_picture(negative):
            pictures = {key: positive[0][1][key] for key in PICTURE_KEYS if key in positive[0][1]}
            silent = [[cond, {**options, **pictures}] for cond, options in negative]
        guider = EditGuider(model, read_guidance(text_scale, image_scale, settings))
        guider.set_conds(positive, silent, without_picture(negative))
        return io.NodeOutput(guider)


class AtelierLoadEditModel(io.ComfyNode):
    """An edit UNet alone, in either layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadEditModel",
            display_name="Load Edit Model",
            category="Atelier/Edit",
            description="Loads an InstructPix2Pix UNet with 8 input channels, also in diffusers' layout.",
            search_aliases=["load InstructPix2Pix", "diffusers UNet", "UNet loader", "ip2p model"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file of the folder models/diffusion_models, such as a diffusers repository's "
                    "unet/diffusion_pytorch_model.safetensors.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model. Its CLIP and VAE come from a checkpoint of the same base.")],
        )

    @classmethod
    def execute(cls, unet_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_edit_model(folder_paths.get_full_path_or_raise("diffusion_models", unet_name)))


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


class AtelierInstructPix2Pix(io.ComfyNode):
    """A picture and an instruction to an edited latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierInstructPix2Pix",
            display_name="InstructPix2Pix Edit",
            category="Atelier/Edit",
            description="Edits a picture as an instruction says and keeps the rest.",
            search_aliases=["InstructPix2Pix", "ip2p", "instruction", "edit picture", "CosXL edit", "image edit"],
            inputs=[
                *edit_inputs(),
                *scale_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the picture may change. Composite with the same mask afterwards to keep the "
                    "rest exact to the pixel.",
                ),
                io.Combo.Input(
                    "apply",
                    options=[EACH, IN_TURN],
                    default=EACH,
                    optional=True,
                    advanced=True,
                    tooltip="Several lines: one for each picture, or all to every picture one after another, without "
                    "decoding in between.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="euler",
                    optional=True,
                    advanced=True,
                    tooltip="The sampler. The paper uses euler_ancestral.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    optional=True,
                    advanced=True,
                    tooltip="How the steps are spread over the noise levels.",
                ),
                *size_inputs(),
                *guidance_inputs(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The edited picture. Decode it, and scale it to the input's size."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        image: Tensor,
        instruction: str,
        seed: int,
        steps: int,
        text_scale: float,
        image_scale: float,
        mask: Tensor | None = None,
        apply: str = EACH,
        sampler_name: str = "euler",
        scheduler: str = "normal",
        resize: str = OFFICIAL,
        resolution: int = 512,
        **settings: float | str,
    ) -> io.NodeOutput:
        run = EditRun(model, clip, read_guidance(text_scale, image_scale, settings), sampler_name, scheduler, steps)
        turns = read_instructions(instruction, len(image), apply == IN_TURN)
        picture = vae.encode(fit(image, resize, resolution, vae.spacial_compression_encode()))
        mask = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
        return io.NodeOutput({"samples": run.apply_in_turn(picture, turns, seed, mask)})


class AtelierGuidanceGrid(io.ComfyNode):
    """One edit at every pair of scales, as a labelled picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierGuidanceGrid",
            display_name="Guidance Grid",
            category="Atelier/Edit",
            description="Draws one edit at several text and image scales, to find the pair that suits.",
            search_aliases=["XY plot", "scale grid", "InstructPix2Pix grid", "text scale", "image scale", "compare"],
            inputs=[
                *edit_inputs(),
                io.String.Input(
                    "text_scales",
                    default="2.5, 5, 7.5, 10",
                    tooltip="The text scales, one for each column, with commas.",
                ),
                io.String.Input(
                    "image_scales",
                    default="1, 1.25, 1.5, 2",
                    tooltip="The image scales, one for each row, with commas.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=list(EXACT_SAMPLERS),
                    default="euler",
                    optional=True,
                    advanced=True,
                    tooltip="The sampler: one that adds no noise of its own.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    optional=True,
                    advanced=True,
                    tooltip="How the steps are spread over the noise levels.",
                ),
                *size_inputs(),
                *guidance_inputs(),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="The labelled picture."),
                io.Image.Output("edits", tooltip="The edits alone, row by row."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        image: Tensor,
        instruction: str,
        seed: int,
        steps: int,
        text_scales: str,
        image_scales: str,
        sampler_name: str = "euler",
        scheduler: str = "normal",
        resize: str = OFFICIAL,
        resolution: int = 512,
        **settings: float | str,
    ) -> io.NodeOutput:
        columns, rows = read_scales(text_scales, "text_scales"), read_scales(image_scales, "image_scales")
        if len(columns) * len(rows) > MOST_CELLS:
            raise ValueError(f"The grid would have {len(columns) * len(rows)} cells; {MOST_CELLS} is the most.")
        check_edit_model(model)
        if len(image) != 1:
            raise ValueError(f"The grid shows one picture; there are {len(image)}. Take one with ImageFromBatch.")
        ((line, *others),) = read_instructions(instruction, 1, in_turn=False)
        if others:
            raise ValueError("The grid shows one instruction. Write one line.")
        picture = vae.encode(fit(image, resize, resolution, vae.spacial_compression_encode()))
        noise = edit_noise(picture.shape, seed).expand(len(columns), -1, -1, -1)
        shared, edits = SharedStart(), []
        for scale in rows:
            text = torch.tensor(columns).view(-1, 1, 1, 1)
            guidance = read_guidance(text, torch.full_like(text, scale), settings)
            run = EditRun(model, clip, guidance, sampler_name, scheduler, steps)
            made = run.apply(picture, [line] * len(columns), seed, shared=shared, noise=noise)
            edits.append(vae.decode(made))
        found = torch.cat(edits)
        return io.NodeOutput(draw_grid(found, columns, rows, line), found)


def read_scales(text: str, name: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        scales = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        scales = []
    if not scales:
        raise ValueError(f"{name} is {text!r}. Write numbers with commas, such as 2.5, 5, 7.5.")
    return scales
