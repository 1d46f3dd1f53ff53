"""Edits by instruction with an InstructPix2Pix UNet (arXiv 2211.09800): the picture's size, and runs of the sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from .guider import Conditioning, EditGuidance, EditGuider, SharedStart, edit_noise, with_picture, without_picture
from .patches import encode_text, join_texts

KEEP, OFFICIAL = "keep", "official"
SMALLEST = 64
"""The smallest side of a picture that is edited, in px: smaller ones are scaled up."""

LARGEST = 16384
"""The longest side of a picture that is edited, in px."""


def official_size(width: int, height: int, side: int) -> tuple[int, int]:
    """The size that the method's official tool edits at: the long side about `side`, both multiples of 64.

    After edit_cli.py of github.com/timothybrooks/instruct-pix2pix: scaled so that the long side is `side`, then so that
    the short one is the next multiple of 64.
    """
    scale = side / max(width, height)
    short = min(width, height)
    scale = math.ceil(short * scale / 64) * 64 / short
    return max(64, int(width * scale // 64) * 64), max(64, int(height * scale // 64) * 64)


def fit(pictures: Tensor, rule: str, side: int, step: int) -> Tensor:
    """Pictures [B, H, W, C] at a size to edit them at, [B, h, w, 3]; a fourth channel, alpha, is left out.

    OFFICIAL: see `official_size`, cropped in the middle to that aspect and scaled by Lanczos. KEEP: each side is the
    nearest multiple of `step`, at least SMALLEST.

    Raises:
        ValueError: There is no picture, it holds NaN or infinity, or a side would be longer than LARGEST.
    """
    if pictures.ndim != 4 or not pictures.numel():
        raise ValueError(f"There is no picture to edit: the images have the shape {list(pictures.shape)}.")
    if not bool(pictures.isfinite().all()):
        raise ValueError(
            "The picture holds NaN or infinity. Look at the node that makes it; a VAE in fp16 can do this."
        )
    height, width = pictures.shape[1:3]
    if rule == OFFICIAL:
        size = official_size(width, height, side)
    else:
        size = tuple(max(SMALLEST, round(length / step) * step) for length in (width, height))
    if max(size) > LARGEST:
        raise ValueError(
            f"The picture of {width}x{height} px would be edited at {size[0]}x{size[1]} px; the longest side may be "
            f"{LARGEST}. Crop it, or take a smaller resolution."
        )
    colours = pictures[..., :3] if pictures.shape[-1] >= 3 else pictures[..., :1].expand(-1, -1, -1, 3)
    if (width, height) == size:
        return colours
    return comfy.utils.common_upscale(colours.movedim(-1, 1), *size, "lanczos", "center").movedim(1, -1)


def check_edit_model(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise ValueError unless the model is a UNet with 8 input channels, of which 4 take the picture to edit."""
    if isinstance(model.model, comfy.model_base.IP2P):
        return
    raise ValueError(
        f"The connected model ({type(model.model).__name__}) has no input for a picture to edit. Load an "
        "InstructPix2Pix checkpoint: one whose UNet has 8 input channels, such as instruct-pix2pix for SD1.5 or "
        "cosxl_edit. For Kontext and Qwen-Image-Edit use AtelierDualCFGGuider."
    )


def read_instructions(text: str, pictures: int, in_turn: bool) -> list[list[str]]:
    """The instructions of each turn, one for each picture that comes out.

    Each line is an instruction. `in_turn`: all lines are applied to every picture, one after another. Else one line
    serves all pictures, as many lines as pictures are paired with them, and several lines edit one picture in as many
    ways.

    Raises:
        ValueError: There is no instruction, or the lines do not go with the pictures.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError('The instruction is empty. Say what to change, such as "make it night".')
    if in_turn:
        return [[line] * pictures for line in lines]
    if len(lines) == 1:
        return [lines * pictures]
    if pictures not in (1, len(lines)):
        raise ValueError(
            f"There are {len(lines)} instructions for {pictures} pictures. Write one line, one for each picture, or "
            "connect one picture; or set 'apply' to 'in turn'."
        )
    return [lines]


@dataclass(frozen=True)
class EditRun:
    """What edits of one model share: how to sample, and how much instruction and picture count."""

    model: comfy.model_patcher.ModelPatcher
    clip: comfy.sd.CLIP
    guidance: EditGuidance
    sampler_name: str = "euler"
    scheduler: str = "normal"
    steps: int = 20
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The text encoder's, by text; runs that differ in other things may share it."""

    def __post_init__(self) -> None:
        check_edit_model(self.model)
        if self.steps < 1:
            raise ValueError(f"An edit needs 1 step or more, not {self.steps}.")

    def apply(
        self,
        picture: Tensor,
        instructions: Sequence[str],
        seed: int,
        mask: Tensor | None = None,
        shared: SharedStart | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Edit latents [B, 4, h, w] as the VAE gives them; the result is of the same kind.

        One picture is used for all instructions. Row i is drawn from the seed `seed + i`, or from `noise`. `mask`
        [B or 1, H, W], 1 where the picture may change: elsewhere the latent comes back as it was.
        """
        rows = len(instructions)
        picture = comfy.utils.repeat_to_batch_size(picture, rows)
        silent = self._encoded([""] * rows)
        guider = EditGuider(self.model, self.guidance, shared)
        guider.set_conds(
            with_picture(self._encoded(instructions), picture, concat=True),
            with_picture(silent, picture, concat=True),
            without_picture(silent),
        )
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, self.scheduler, self.steps)
        made = guider.sample(
            edit_noise(picture.shape, seed) if noise is None else noise,
            torch.zeros_like(picture) if mask is None else picture,
            comfy.samplers.sampler_object(self.sampler_name),
            sigmas,
            denoise_mask=mask,
            callback=latent_preview.prepare_callback(self.model, self.steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return made.to(comfy.model_management.intermediate_device())

    def apply_in_turn(
        self, picture: Tensor, turns: Sequence[Sequence[str]], seed: int, mask: Tensor | None = None
    ) -> Tensor:
        """Edit after edit: each works on the last one's latents, so nothing is lost to decoding and encoding."""
        for turn, instructions in enumerate(turns):
            picture = self.apply(picture, instructions, seed + turn * len(instructions), mask)
        return picture

    def _encoded(self, texts: Sequence[str]) -> Conditioning:
        """One conditioning whose rows are the texts', each encoded once."""
        for text in dict.fromkeys(texts):
            if text not in self.answers:
                self.answers[text] = encode_text(self.clip, text)
        found = [self.answers[text] for text in texts]
        options = {key: value for key, value in found[0].items() if key != "cond"}
        if isinstance(options.get("pooled_output"), Tensor):
            options["pooled_output"] = torch.cat([answer["pooled_output"] for answer in found])
        return [[join_texts([answer["cond"] for answer in found]), options]]
