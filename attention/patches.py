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

from .dit_fabric import FAMILIES, DitFabric, Family, dit_family
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
    experimental: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that listens to feedback; a plain clone where feedback cannot count.

    Args:
        liked, disliked: VAE latents [channels, (frames,) height, width], not scaled by the model's latent format.
        empty_prompt: The text encoder's answer to "", with `cond` [1, tokens, channels] and what
            else the encoder returns.
        fixed_noise: The references' noise depends on the reference and the noise level, and not on the
            seed. What the model makes of them is then kept for later runs, in at most `cache_bytes` of the
            machine's memory. It stays with `model`, so other feedback and other LoRAs on it share it.
        liked_weights, disliked_weights: How much each picture counts on its side, all in full where there are none.
        experimental: Take the models of FAMILIES too.

    Raises:
        ValueError: The model is of a class that is not taken, already has feedback, or does not go with the VAE or
            the text encoder.
    """
    check_model(model, experimental)
    patched = model.clone()
    if max(schedule.weight, schedule.weight_outside) <= 0.0:
        return patched
    if schedule.negative_scale <= 0.0:
        disliked, disliked_weights = (), None
    if not liked and not disliked:
        return patched
    unet = model.get_model_object("diffusion_model")
    family = dit_family(unet)
    check_fit(model, family, (*liked, *disliked), empty_prompt["cond"])
    latent_format = model.get_model_object("latent_format")
    references = tuple(
        Reference(latent_format.process_in(latent.unsqueeze(0))[0], side, weight)
        for side, latents, weights in ((LIKED, liked, liked_weights), (DISLIKED, disliked, disliked_weights))
        for latent, weight in zip(latents, weights or [1.0] * len(latents), strict=True)
        if weight > 0.0
    )
    depths = self_attentions(unet) if family is None else family.depths
    blocks = {block: weight for block, depth in depths.items() if (weight := DEPTHS[schedule.depth](depth)) > 0.0}
    if not blocks:
        return patched
    options = patched.model_options["transformer_options"]
    cache = shared_cache(model, cache_bytes) if fixed_noise else None
    before = options.get("optimized_attention_override")
    settings = (references, empty_prompt, schedule, blocks, before, fixed_noise, cache)
    fabric = Fabric(*settings) if family is None else DitFabric(*settings, family=family)
    options["optimized_attention_override"] = fabric.attend
    fabric.hook_blocks(patched)
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


def encode_text(clip: comfy.sd.CLIP, text: str) -> dict[str, Any]:
    """The text encoder's answer: `cond` [1, tokens, channels] and what comes with it."""
    return clip.encode_from_tokens(clip.tokenize(text), return_dict=True)


def join_texts(conds: Sequence[Tensor]) -> Tensor:
    """Texts [1, tokens, channels] as one batch. As in the host, a shorter one is repeated, which changes nothing."""
    longest = math.lcm(*(cond.shape[1] for cond in conds))
    return torch.cat([cond.repeat(1, longest // cond.shape[1], 1) for cond in conds])


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


def check_model(model: comfy.model_patcher.ModelPatcher, experimental: bool = False) -> None:
    """Raise ValueError unless `model` is a UNet of the SD1.x, SD2.x or SDXL class without feedback yet.

    With `experimental`, the models of FAMILIES are taken too.
    """
    known = is_picture_unet(model) or (experimental and dit_family(model.get_model_object("diffusion_model")))
    if not known:
        raise ValueError(
            "AtelierFabric works with Stable Diffusion 1.x, 2.x and XL models; the connected model is "
            f"{type(model.model).__name__}. Connect an SD1.5 or SDXL checkpoint, or take AtelierFabric out. "
            f"For {FAMILIES} there is the switch 'experimental'."
        )
    if model.get_wrappers(WrappersMP.APPLY_MODEL, _PATCH):
        raise ValueError(
            "The model already went through an AtelierFabric. Use one, and join feedback by the input "
            "'previous' of AtelierFeedbackFromImages."
        )


def is_picture_unet(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether it is a UNet of the SD1.x, SD2.x or SDXL class."""
    unet = model.get_model_object("diffusion_model")
    # "sequential" is SDXL's vector of pooled text and sizes; video models of this UNet have the same, and time.
    return (
        isinstance(unet, UNetModel)
        and unet.num_classes in (None, "sequential")
        and not model.model.model_config.unet_config.get("use_temporal_attention")
    )


def check_fit(
    model: comfy.model_patcher.ModelPatcher, family: Family | None, latents: Sequence[Tensor], empty_prompt: Tensor
) -> None:
    """Raise ValueError unless latents [channels, (frames,) height, width] and prompt [1, tokens, channels] suit."""
    latent_format = model.get_model_object("latent_format")
    channels = latent_format.latent_channels
    if latents[0].ndim != 1 + latent_format.latent_dimensions or latents[0].shape[0] != channels:
        raise ValueError(
            f"The VAE makes latents of shape {tuple(latents[0].shape)}; the model works with {channels} "
            "channels. Connect the VAE that belongs to the model's checkpoint."
        )
    if family is not None:
        check_length(family, latents)
    width = model.model.model_config.unet_config.get("context_dim") if family is None else family.text_width
    if width is not None and empty_prompt.shape[-1] != width:
        raise ValueError(
            f"The CLIP gives {empty_prompt.shape[-1]} numbers for each token; the model wants {width}. "
            "Connect the CLIP that belongs to the model's checkpoint."
        )


def check_length(family: Family, latents: Sequence[Tensor]) -> None:
    """Raise ValueError if a latent [channels, (frames,) height, width] has a side that the model has no places for."""
    for latent in latents:
        height, width = (math.ceil(side / family.order.patch) for side in latent.shape[-2:])
        if family.longest is not None and max(height, width) > family.longest:
            raise ValueError(
                f"A feedback picture is {width}x{height} patches of this model, which has places for at most "
                f"{family.longest} to a side. Crop the picture."
            )
