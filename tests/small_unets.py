"""Small random UNets of the host's own classes, and runs of the host's own samplers on them, for FABRIC's tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import pytest
import torch
from atelier.attention.patches import FabricSchedule, apply_fabric
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

Patcher = comfy.model_patcher.ModelPatcher
Conds = list[list[Any]]

ALWAYS = FabricSchedule(weight=0.8, start_percent=0.0, end_percent=1.0, weight_outside=0.0, negative_scale=0.5)
NEVER = FabricSchedule(weight=0.8, start_percent=0.0, end_percent=0.0, weight_outside=0.0, negative_scale=0.5)
SEED, STEPS, CFG = 7, 3, 4.0
TEXT_TOKENS, TEXT_WIDTH = 8, 64


class SmallSD15(comfy.supported_models.SD15):
    """SD1.5 with fewer channels and layers: the same kinds of blocks, heads and latents."""


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL with fewer channels and layers: no attention at full size, deeper transformers, a vector beside the text."""


SMALL_UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [1, 2, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 2, 2, 0, 0],
    "use_linear_in_transformer": False,
    "context_dim": TEXT_WIDTH,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float32,
}


SMALL_SDXL_UNET: dict[str, Any] = {
    **SMALL_UNET,
    "transformer_depth": [0, 1, 3],
    "transformer_depth_middle": 3,
    "transformer_depth_output": [0, 0, 1, 1, 3, 3],
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": TEXT_WIDTH + 6 * 256,
}


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights that keep signals near unit size; the host leaves them uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        norm = isinstance(part, torch.nn.GroupNorm | torch.nn.LayerNorm)
        for name, weight in part.named_parameters(recurse=False):
            noise = torch.randn(weight.shape, generator=generator)
            if name == "weight":
                noise = 1.0 + 0.1 * noise if norm else noise / math.sqrt(weight[0].numel())
            else:
                noise = 0.1 * noise
            weight.data = noise.to(weight.dtype)


def filled(base: comfy.model_base.BaseModel, seed: int = 1) -> Patcher:
    """The model with random weights, ready to be patched."""
    fill(base.diffusion_model, seed)
    return patcher(base)


def sd15(**unet: Any) -> Patcher:
    """A small SD1.5, with other settings of the UNet where they are given."""
    return filled(comfy.model_base.BaseModel(SmallSD15({**SMALL_UNET, **unet}), device="cpu"))


def sdxl(**unet: Any) -> Patcher:
    """A small SDXL."""
    return filled(comfy.model_base.SDXL(SmallSDXL({**SMALL_SDXL_UNET, **unet}), device="cpu"))


def patcher(base: comfy.model_base.BaseModel) -> Patcher:
    return Patcher(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(count: int, height: int = 8, width: int = 8, seed: int = 100) -> list[Tensor]:
    """Reference latents as a VAE gives them: about 1/0.18 in size."""
    return [normal(4, height, width, seed=seed + index) * 5.0 for index in range(count)]


def text(seed: int) -> Tensor:
    return normal(1, TEXT_TOKENS, TEXT_WIDTH, seed=seed)


POSITIVE, NEGATIVE, EMPTY = text(11), text(12), text(13)
POOLED = {
    id(prompt): normal(1, TEXT_WIDTH, seed=seed) for prompt, seed in ((POSITIVE, 14), (NEGATIVE, 15), (EMPTY, 16))
}
EMPTY_PROMPT = {"cond": EMPTY, "pooled_output": POOLED[id(EMPTY)]}


def conditioning(prompt: Tensor) -> Conds:
    """One of the three prompts as the host's text nodes give it."""
    return [[prompt, {"pooled_output": POOLED[id(prompt)]}]]


def sample(model: Patcher, x: Tensor, positive: Conds | None = None, cfg: float = CFG, **settings: Any) -> Tensor:
    """A run of the host's KSampler from noise `x`; returns latents in the model's own scale."""
    settings = {"sampler_name": "euler", "scheduler": "normal", "seed": SEED, **settings}
    negative = settings.pop("negative", None) or conditioning(NEGATIVE)
    result = comfy.sample.sample(
        model, x, STEPS, cfg, settings.pop("sampler_name"), settings.pop("scheduler"),
        positive or conditioning(POSITIVE), negative, torch.zeros_like(x), disable_pbar=True, **settings,
    )  # fmt: skip
    return model.model.process_latent_in(result)


def listen(
    model: Patcher,
    liked: Sequence[Tensor],
    disliked: Sequence[Tensor],
    schedule: FabricSchedule = ALWAYS,
    weights: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Patcher:
    """The model with feedback; `weights` are those of the liked and of the disliked pictures."""
    liked_weights, disliked_weights = weights or (None, None)
    return apply_fabric(
        model, liked, disliked, EMPTY_PROMPT, schedule, liked_weights=liked_weights, disliked_weights=disliked_weights
    )


def call(model: Patcher, x: Tensor, context: Tensor, conds: list[int], sigma: float = 2.0) -> Tensor:
    """One model call of one step, with rows in any order, as a sampler's step would make it."""
    base = model.model
    base.current_patcher = model

    def step(x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int) -> Tensor:
        options = {
            **model_options["transformer_options"],
            "wrappers": model.wrappers,
            "cond_or_uncond": conds,
        }
        return base.apply_model(x, timestep.expand(len(x)), c_crossattn=context, transformer_options=options)

    wrappers = model.get_all_wrappers(WrappersMP.PREDICT_NOISE)
    return WrapperExecutor.new_executor(step, wrappers).execute(x, torch.tensor([sigma]), model.model_options, SEED)


def count_passes(
    model: Patcher, monkeypatch: pytest.MonkeyPatch, counts: Callable[[int], bool] = lambda rows: True
) -> list[int]:
    """The number of rows of each pass through the model, as they happen, of those whose number `counts`."""
    passes: list[int] = []
    original = model.model._apply_model

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if counts(len(x)):
            passes.append(len(x))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "_apply_model", counted)
    return passes
