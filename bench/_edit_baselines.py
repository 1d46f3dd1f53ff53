"""Two ways to edit a picture without a model trained for it, which InstructPix2Pix is compared with.

SDEdit (Meng et al., arXiv 2108.01073) noises the picture and denoises it under the caption after the edit.
Prompt-to-Prompt (Hertz et al., arXiv 2208.01626) draws two pictures from one noise; a given picture gets its noise by
DDIM inversion (Song, Meng, Ermon, arXiv 2010.02502, section 4.3) under the caption before the edit, as in the paper's
section 4. It is self-attention that is shared, as for the data of InstructPix2Pix: of 20 recolour edits of the demo
no more were done with the maps of words too.

Pictures are [N, 128, 128, 3] in 0..1. Import this after `_world.start_host()` and `_world.pack()`.
"""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from _world import BATCH, Checkpoint
from atelier.attention.prompt_to_prompt_patch import apply_prompt_to_prompt
from torch import Tensor

import nodes

INVERSION_STEPS = 50
INVERTED_CFG = 2.0
"""Inverted noise draws its picture again without guidance; with more than this less of the picture stays."""


def sdedit(checkpoint: Checkpoint, pictures: Tensor, captions_after: list[str], strength: float, seed: int) -> Tensor:
    """Pictures noised to `strength`, 0 (nothing) to 1 (pure noise), and drawn under their captions from there.

    A picture's noise depends on the seed and its number alone.
    """
    comfy.utils.PROGRESS_BAR_ENABLED = False
    edited = []
    for start in range(0, len(pictures), BATCH):
        part = slice(start, start + BATCH)
        latent = {"samples": checkpoint.vae.encode(pictures[part])}
        latent["batch_index"] = list(range(start, start + len(latent["samples"])))
        texts, empty = checkpoint.encode(captions_after[part]), checkpoint.encode([""] * len(latent["samples"]))
        (sampled,) = nodes.KSampler().sample(
            checkpoint.model, seed, checkpoint.steps, checkpoint.cfg, "euler", "normal", texts, empty, latent, strength
        )
        edited.append(checkpoint.vae.decode(sampled["samples"]))
    return torch.cat(edited)


def edit_by_prompts(
    checkpoint: Checkpoint,
    pictures: Tensor,
    captions_before: list[str],
    captions_after: list[str],
    share: float,
    cfg: float = INVERTED_CFG,
) -> Tensor:
    """Given pictures under the captions after the edit: Prompt-to-Prompt from the noise that they come from.

    `share` is the part of the steps that share self-attention.
    """
    comfy.utils.PROGRESS_BAR_ENABLED = False
    model = apply_prompt_to_prompt(checkpoint.model, share)
    edited = []
    for start in range(0, len(pictures), BATCH // 2):
        part = slice(start, start + BATCH // 2)
        noised = invert(checkpoint, pictures[part], captions_before[part])
        texts = checkpoint.encode(captions_before[part] + captions_after[part])
        empty = checkpoint.encode([""] * 2 * len(noised))
        (sampled,) = nodes.KSamplerAdvanced().sample(
            model, "disable", 0, checkpoint.steps, cfg, "ddim", "normal", texts, empty,
            {"samples": noised.repeat(2, 1, 1, 1)}, 0, checkpoint.steps, "disable",
        )  # fmt: skip
        edited.append(checkpoint.vae.decode(sampled["samples"][len(noised) :]))
    return torch.cat(edited)


def invert(checkpoint: Checkpoint, pictures: Tensor, captions: list[str]) -> Tensor:
    """The noised latents [N, 4, 16, 16] that DDIM draws the pictures from under their captions, without guidance.

    DDIM's steps run backwards, from the lowest noise level to the highest.
    """
    latent = checkpoint.vae.encode(pictures)
    sampling = checkpoint.model.get_model_object("model_sampling")
    rising = comfy.samplers.calculate_sigmas(sampling, "normal", INVERSION_STEPS)[:-1].flip(0)
    texts: list[Any] = checkpoint.encode(captions)
    sampler = comfy.samplers.sampler_object("ddim")
    return comfy.sample.sample_custom(
        checkpoint.model, torch.zeros_like(latent), 1.0, sampler, rising, texts, texts, latent,
        disable_pbar=True, seed=0,
    )  # fmt: skip
