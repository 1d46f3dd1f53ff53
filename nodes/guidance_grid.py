"""The node that draws one edit at every pair of scales."""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from torch import Tensor

from ..attention.edit import OFFICIAL, EditRun, check_edit_model, fit, read_instructions
from ..attention.guider import SharedStart, edit_noise
from .edit_inputs import edit_inputs, guidance_inputs, read_guidance, scheduler_input, size_inputs
from .grid_picture import draw_grid

MOST_CELLS = 64

EXACT_SAMPLERS = ("euler", "dpmpp_2m", "heun", "ddim", "uni_pc")
"""Samplers that add no noise of their own, so that a cell of the grid is what the same scales give alone."""


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
                scheduler_input(),
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
        shared, answers, edits = SharedStart(), {}, []
        for scale in rows:
            text = torch.tensor(columns).view(-1, 1, 1, 1)
            guidance = read_guidance(text, torch.full_like(text, scale), settings)
            run = EditRun(model, clip, guidance, sampler_name, scheduler, steps, answers)
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
