"""Nodes that edit pictures by instruction (InstructPix2Pix, arXiv 2211.09800)."""

from __future__ import annotations

import comfy.model_base
import comfy.samplers
import folder_paths
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor

from ..attention.diffusers_edit import load_edit_model
from ..attention.edit import OFFICIAL, EditRun, check_edit_model, fit, read_instructions
from ..attention.guider import (
    PICTURE_KEYS,
    Conditioning,
    EditGuider,
    has_picture,
    with_picture,
    without_picture,
)
from .edit_inputs import edit_inputs, guidance_inputs, read_guidance, scale_inputs, scheduler_input, size_inputs

EACH, IN_TURN = "each to its picture", "in turn"


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
                scheduler_input(),
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
