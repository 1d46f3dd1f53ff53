"""Puts the methods of this package on the host's `ModelPatcher`, and makes from its models what they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .fabric import Fabric
from .reference import DISLIKED, LIKED, BlockKey, Reference
from .reference_cache import ReferenceCache
from .schedule import DEPTHS, FabricSchedule

MAX_REFERENCE_PIXELS = 1024 * 1024
"""Larger pictures are scaled down to this many pixels: attention costs the square of it."""

_PATCH = "atelier_fabric"
_CACHE = "atelier_fabric_cache"


def apply_fabric(
    model: comfy.model_patcher.ModelPatcher,
    liked: Sequence[Tensor],
    disliked: Sequence[Tensor],
    empty_prompt: dict[str, Any],
    schedule: FabricSchedule,
    fixed_noise: bool = False,
    cache_bytes: int = 0,
    liked_weights: Sequence[float] | None = None,
    disliked_weights: Sequence[float] | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that listens to feedback; a plain clone where feedback cannot count.

    Args:
        liked, disliked: VAE latents [channels, height, width], not scaled by the model's latent format.
        empty_prompt: The text encoder's answer to "", with `cond` [1, tokens, channels] and what
            else the encoder returns.
        fixed_noise: The references' noise depends on the reference and the noise level, and not on the
            seed. What the model makes of them is then kept for later runs, in at most `cache_bytes` of the
            machine's memory. It stays with `model`, so other feedback and other LoRAs on it share it.
        liked_weights, disliked_weights: How much each picture counts on its side, all in full where there are none.

    Raises:
        ValueError: The model is not a UNet of the SD1.x, SD2.x or SDXL class, already has feedback, or does
            not go with the VAE or the text encoder.
    """
    check_unet(model)
    patched = model.clone()
    if max(schedule.weight, schedule.weight_outside) <= 0.0:
        return patched
    if schedule.negative_scale <= 0.0:
        disliked, disliked_weights = (), None
    if not liked and not disliked:
        return patched
    check_fit(model, (*liked, *disliked), empty_prompt["cond"])
    latent_format = model.get_model_object("latent_format")
    references = tuple(
        Reference(latent_format.process_in(latent), side, weight)
        for side, latents, weights in ((LIKED, liked, liked_weights), (DISLIKED, disliked, disliked_weights))
        for latent, weight in zip(latents, weights or [1.0] * len(latents), strict=True)
        if weight > 0.0
    )
    depths = self_attentions(model.get_model_object("diffusion_model"))
    blocks = {block: weight for block, depth in depths.items() if (weight := DEPTHS[schedule.depth](depth)) > 0.0}
    if not blocks:
        return patched
    options = patched.model_options["transformer_options"]
    cache = shared_cache(model, cache_bytes) if fixed_noise else None
    before = options.get("optimized_attention_override")
    fabric = Fabric(references, empty_prompt, schedule, blocks, before, fixed_noise, cache)
    options["optimized_attention_override"] = fabric.attend
    patched.set_model_attn1_patch(fabric.enter_self_attention)
    patched.set_model_attn1_output_patch(fabric.leave_self_attention)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, _PATCH, fabric.prepare_sampling)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, _PATCH, fabric.predict_noise)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _PATCH, fabric.calc_cond_batch)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _PATCH, fabric.apply_model)
    return patched


def self_attentions(unet: UNetModel) -> dict[BlockKey, float]:
    """The depth of each self-attention, in the order in which they run: 0 at the full resolution, 1 at the bottleneck.

    A UNet of n resolutions has steps of 1/n, as in the method's official code.
    """
    inputs, outputs = list(unet.input_blocks), list(unet.output_blocks)
    steps_down = [_has(block, Downsample) for block in inputs]
    levels = sum(steps_down) + 1
    depths = {}
    for index, block in enumerate(inputs):
        depths |= _layers(block, "input", index, sum(steps_down[: index + 1]) / levels)
    depths |= _layers(unet.middle_block, "middle", 0, 1.0)
    for index, block in enumerate(outputs):
        steps_up = sum(_has(before, Upsample) for before in outputs[:index])
        depths |= _layers(block, "output", index, (levels - 1 - steps_up) / levels)
    return depths


def _has(block: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    return any(isinstance(part, kind) for part in block.modules())


def _layers(block: torch.nn.Module | None, stage: str, index: int, depth: float) -> dict[BlockKey, float]:
    """The self-attentions of one block of a UNet."""
    parts = block.modules() if block is not None else ()
    transformers = [part for part in parts if isinstance(part, SpatialTransformer)]
    return {(stage, index, i): depth for part in transformers for i in range(len(part.transformer_blocks))}


def shared_cache(model: comfy.model_patcher.ModelPatcher, budget: int) -> ReferenceCache:
    """The cache that stays with the model, and with the clones that are made of it, held to `budget` bytes."""
    cache = model.get_attachment(_CACHE)
    if cache is None:
        cache = ReferenceCache(budget)
        model.set_attachments(_CACHE, cache)
    cache.limit(budget)
    return cache


def encode_empty_prompt(clip: comfy.sd.CLIP) -> dict[str, Any]:
    """The text encoder's answer to the empty prompt: `cond` [1, tokens, channels] and what comes with it."""
    return clip.encode_from_tokens(clip.tokenize(""), return_dict=True)


def encode_pictures(vae: comfy.sd.VAE, pictures: Sequence[Tensor], side: str) -> list[Tensor]:
    """Pictures [height, width, 3] as VAE latents [channels, height, width] on the CPU.

    A picture above `MAX_REFERENCE_PIXELS` is scaled down, aspect kept. Sides that are no multiple of the
    VAE's step are cropped in the middle by the host.

    Raises:
        ValueError: A picture is smaller than the VAE's step, or the VAE answers with NaN.
    """
    latents = []
    step = vae.spacial_compression_encode()
    for number, picture in enumerate(pictures, start=1):
        height, width, _ = picture.shape
        if min(height, width) < step:
            raise ValueError(
                f"The {side} picture {number} is {width}x{height} pixels. The smallest that the VAE can read "
                f"is {step}x{step}."
            )
        latent = vae.encode(shrink(picture, MAX_REFERENCE_PIXELS).unsqueeze(0))
        if not latent.isfinite().all():
            raise ValueError(
                f"The VAE turned the {side} picture {number} into NaN. Start the host with --fp32-vae or use "
                "another VAE."
            )
        latents.append(latent[0].float().cpu())
    return latents


def shrink(picture: Tensor, max_pixels: int) -> Tensor:
    """A picture [height, width, 3] with at most `max_pixels`, its aspect kept to the pixel."""
    height, width, _ = picture.shape
    scale = math.sqrt(max_pixels / (height * width))
    if scale >= 1.0:
        return picture
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return comfy.utils.common_upscale(picture.movedim(-1, 0).unsqueeze(0), *size, "area", "disabled")[0].movedim(0, -1)


def check_unet(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise ValueError unless `model` is a UNet of the SD1.x, SD2.x or SDXL class without feedback yet."""
    unet = model.get_model_object("diffusion_model")
    # "sequential" is SDXL's vector of pooled text and sizes; video models of this UNet have the same, and time.
    if (
        not isinstance(unet, UNetModel)
        or unet.num_classes not in (None, "sequential")
        or model.model.model_config.unet_config.get("use_temporal_attention")
    ):
        raise ValueError(
            "AtelierFabric works with Stable Diffusion 1.x, 2.x and XL models; the connected model is "
            f"{type(model.model).__name__}. Connect an SD1.5 or SDXL checkpoint, or take AtelierFabric out."
        )
    if model.get_wrappers(WrappersMP.APPLY_MODEL, _PATCH):
        raise ValueError(
            "The model already went through an AtelierFabric. Use one, and join feedback by the input "
            "'previous' of AtelierFeedbackFromImages."
        )


def check_fit(model: comfy.model_patcher.ModelPatcher, latents: Sequence[Tensor], empty_prompt: Tensor) -> None:
    """Raise ValueError unless latents [channels, height, width] and prompt [1, tokens, channels] suit."""
    channels = model.get_model_object("latent_format").latent_channels
    if latents[0].ndim != 3 or latents[0].shape[0] != channels:
        raise ValueError(
            f"The VAE makes latents of shape {tuple(latents[0].shape)}; the model works with {channels} "
            "channels. Connect the VAE that belongs to the model's checkpoint."
        )
    width = model.model.model_config.unet_config.get("context_dim")
    if width is not None and empty_prompt.shape[-1] != width:
        raise ValueError(
            f"The CLIP gives {empty_prompt.shape[-1]} numbers for each token; the model wants {width}. "
            "Connect the CLIP that belongs to the model's checkpoint."
        )
