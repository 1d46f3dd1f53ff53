"""What FABRIC costs: whole runs with feedback against the same model without it, in turn in one process.

A UNet of the SD1.5 layout with random weights draws latents of 64×64 by the host's own sampler with cfg and with
feedback in the first half of the steps. "Cold" reads the pictures and keeps them; "warm" finds them; each with merged
tokens too. Full size, in fp16 on a GPU, and on a CPU in bfloat16, or in fp32 where it does not compute in that. To be
imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import product

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import torch
from _figures import Figure, mean, single
from atelier.attention.patches import FabricSchedule, apply_fabric, shared_cache
from atelier.attention.reference_cache import ReferenceCache
from atelier.attention.schedule import MERGE_ABOVE
from training.host import has_bf16

COUNTS = ((1, 0), (1, 1), (4, 4))
SIDE, CFG, TEXT = 64, 7.0, (1, 77, 768)
CHANNELS, REPEATS, COST_STEPS = (320, 5, 20) if torch.cuda.is_available() else (320, 2, 4)
CACHE = 2**33
Patcher = comfy.model_patcher.ModelPatcher


def sd15(channels: int) -> Patcher:
    """A UNet of the SD1.5 layout with random weights that keep signals near unit size."""
    dtype = torch.float16 if torch.cuda.is_available() else torch.bfloat16 if has_bf16() else torch.float32
    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels, "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4], "num_heads": 8, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3,
        "use_linear_in_transformer": False, "context_dim": TEXT[-1], "use_temporal_attention": False,
        "adm_in_channels": None, "use_spatial_transformer": True, "legacy": False, "dtype": dtype,
    }  # fmt: skip
    device = comfy.model_management.get_torch_device()
    base = comfy.model_base.BaseModel(comfy.supported_models.SD15(unet), device=device)
    for name, weight in base.diffusion_model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
        else:
            torch.nn.init.constant_(weight, float(name.endswith("weight")))
    return Patcher(base, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def listening(
    model: Patcher, liked: int, disliked: int, merge_above: int | None = None
) -> tuple[Patcher, ReferenceCache]:
    """The model with the node's own defaults but for merged tokens, and its cache, which is empty."""
    alone = model.clone()
    alone.remove_attachments("atelier_fabric_cache")
    cache = shared_cache(alone, CACHE)
    pictures = torch.randn(liked + disliked, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 5
    schedule = FabricSchedule(0.8, 0.0, 0.5, 0.0, 0.5, merge_above=merge_above)
    likes, dislikes = list(pictures[:liked]), list(pictures[liked:])
    return apply_fabric(alone, likes, dislikes, {"cond": torch.zeros(TEXT)}, schedule, True, CACHE), cache


def seconds(model: Patcher, steps: int) -> float:
    """One whole run."""
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    positive, negative = torch.randn(TEXT), torch.randn(TEXT)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    comfy.sample.sample(
        model, noise, steps, CFG, "euler", "normal", [[positive, {}]], [[negative, {}]], torch.zeros_like(noise),
        disable_pbar=True, seed=4,
    )  # fmt: skip
    return time.perf_counter() - start


def peak(model: Patcher, steps: int) -> int:
    """Bytes of the GPU's memory that a run takes at most."""
    torch.cuda.reset_peak_memory_stats()
    seconds(model, steps)
    return torch.cuda.max_memory_allocated()


def costs(repeats: int, steps: int, channels: int, progress: Callable[[dict[str, Figure]], None]) -> None:
    """Ratios of whole runs, each to the plain run of the same repeat, which came just before it."""
    model = sd15(channels)
    size = sum(weight.numel() for weight in model.model.diffusion_model.parameters()) / 1e6
    progress({"cost_model": single(size, "million"), "cost_steps": single(steps, "steps")})
    seconds(model, 2)
    for (liked, disliked), merge_above in product(COUNTS, (None, MERGE_ABOVE)):
        cold, warm = [], []
        for _ in range(repeats):
            patched, cache = listening(model, liked, disliked, merge_above)
            plain = seconds(model, steps)
            cold.append(seconds(patched, steps) / plain)
            warm.append(seconds(patched, steps) / plain)
        counts = f"{'merged_' if merge_above else ''}{liked}_{disliked}"
        progress(
            {
                f"cold_{counts}": mean(cold, "ratio"),
                f"warm_{counts}": mean(warm, "ratio"),
                f"cache_mib_{counts}": single(cache.size / 2**20, "MiB"),
            }
        )
        if torch.cuda.is_available():
            progress({f"gpu_peak_{counts}": single(peak(patched, steps) / peak(model, steps), "ratio")})
