"""Small random models of the DiT families, of the host's own classes, for FABRIC's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import comfy.sample
import comfy.supported_models
import torch
from atelier.attention.patches import apply_fabric
from atelier.attention.schedule import FabricSchedule
from small_unets import ALWAYS, SEED, STEPS, Conds, Patcher, filled, normal
from torch import Tensor

TEXT_WIDTH = 24
POOLED_WIDTH = 20
PADDING = 2


@dataclass(frozen=True)
class Small:
    """A model of a family: how it is made, the shape of its latents without rows, and what its prompts have beside
    the text: attributes of each conditioning, made from its seed and its number of tokens."""

    make: Callable[[], Patcher]
    latent: tuple[int, ...] = (16, 8, 8)
    beside: Callable[[int, int], dict[str, Any]] = field(default=lambda seed, tokens: {})

    def prompt(self, seed: int, tokens: int) -> dict[str, Any]:
        """As the host's text encoders answer."""
        return {"cond": normal(1, tokens, TEXT_WIDTH, seed=seed), **self.beside(seed, tokens)}

    def latents(self, count: int, height: int = 8, width: int = 8, seed: int = 100) -> list[Tensor]:
        """Reference latents as the VAE gives them."""
        return [normal(*self.latent[:-2], height, width, seed=seed + index) for index in range(count)]

    def noise(self, rows: int = 1, seed: int = 1) -> Tensor:
        return normal(rows, *self.latent, seed=seed)


def pooled(seed: int, tokens: int) -> dict[str, Any]:
    return {"pooled_output": normal(1, POOLED_WIDTH, seed=seed + 50)}


def padded(seed: int, tokens: int) -> dict[str, Any]:
    """The first two tokens are padding."""
    return {"attention_mask": (torch.arange(tokens) >= PADDING).long()[None]}


FLUX: dict[str, Any] = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": POOLED_WIDTH,
    "context_in_dim": TEXT_WIDTH, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10000, "txt_ids_dims": [], "qkv_bias": True,
    "guidance_embed": True, "dtype": torch.float32,
}  # fmt: skip


def flux(**dit: Any) -> Patcher:
    return filled(comfy.model_base.Flux(comfy.supported_models.Flux({**FLUX, **dit}), device="cpu"))


def flux_schnell() -> Patcher:
    """Without an embedding of the guidance, and with the plain flow sampling."""
    config = comfy.supported_models.FluxSchnell({**FLUX, "guidance_embed": False})
    return filled(comfy.model_base.Flux(config, model_type=comfy.model_base.ModelType.FLOW, device="cpu"))


def flux2() -> Patcher:
    """One patch for each latent pixel, modulation shared by all blocks, text filled up to 512 tokens."""
    dit = {
        **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
        "axes_dim": [4, 4, 4, 4], "txt_ids_dims": [3], "qkv_bias": False, "guidance_embed": False,
        "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    }  # fmt: skip
    return filled(comfy.model_base.Flux2(comfy.supported_models.Flux2(dit), device="cpu"))


def sd3(**dit: Any) -> Patcher:
    unet = {
        "image_model": "mmdit", "in_channels": 16, "patch_size": 2, "depth": 2, "input_size": None, "num_blocks": 3,
        "adm_in_channels": POOLED_WIDTH, "num_patches": 12 * 12, "pos_embed_max_size": 12, "context_size": TEXT_WIDTH,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": TEXT_WIDTH, "out_features": 128},
        },
        "dtype": torch.float32, **dit,
    }  # fmt: skip
    unet.pop("image_model")
    model = comfy.model_base.SD3(comfy.supported_models.SD3(unet), device="cpu")
    model.diffusion_model.pos_embed.copy_(normal(1, 12 * 12, 128, seed=4))
    return filled(model)


def sd35_medium() -> Patcher:
    """With a second attention, of the picture alone, in the first two blocks."""
    return sd3(x_block_self_attn_layers=[0, 1], qk_norm="rms")


def qwen_image() -> Patcher:
    dit = {
        "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": TEXT_WIDTH, "axes_dims_rope": [4, 6, 6],
        "dtype": torch.float32,
    }  # fmt: skip
    return filled(comfy.model_base.QwenImage(comfy.supported_models.QwenImage(dit), device="cpu"))


LUMINA: dict[str, Any] = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 32, "n_layers": 3, "n_refiner_layers": 1,
    "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "cap_feat_dim": TEXT_WIDTH, "axes_dims": [4, 6, 6],
    "axes_lens": [64, 64, 64], "dtype": torch.float32,
}  # fmt: skip


def z_image(**more: Any) -> Patcher:
    """Text and picture are each filled up to a multiple of 12 tokens."""
    wide = {"dim": 256, "n_heads": 16, "n_kv_heads": 16}
    dit = {**LUMINA, **wide, "z_image_modulation": True, "pad_tokens_multiple": 12, "time_scale": 1000.0, **more}
    return filled(comfy.model_base.Lumina2(comfy.supported_models.ZImage(dit), device="cpu"))


def lumina2() -> Patcher:
    """Without padding, and with fewer heads of keys than of queries."""
    dit = {**LUMINA, "n_heads": 4, "n_kv_heads": 2, "axes_dims": [2, 2, 4]}
    return filled(comfy.model_base.Lumina2(comfy.supported_models.Lumina2(dit), device="cpu"))


DITS = {
    "flux": Small(flux, beside=pooled),
    "flux-schnell": Small(flux_schnell, beside=pooled),
    "flux2": Small(flux2, latent=(128, 8, 8)),
    "sd3": Small(sd3, beside=pooled),
    "sd3.5-medium": Small(sd35_medium, beside=pooled),
    "qwen-image": Small(qwen_image, latent=(16, 1, 8, 8)),
    "qwen-image-mask": Small(qwen_image, latent=(16, 1, 8, 8), beside=padded),
    "z-image": Small(z_image),
    "lumina2": Small(lumina2),
}


def conditioning(prompt: dict[str, Any], **more: Any) -> Conds:
    return [[prompt["cond"], {**{name: value for name, value in prompt.items() if name != "cond"}, **more}]]


class Bench:
    """A small model with its prompts, and runs on it."""

    def __init__(self, small: Small) -> None:
        self.small = small
        self.model = small.make()
        # Lengths of text differ, as they do in use.
        self.positive, self.negative, self.empty = small.prompt(11, 7), small.prompt(12, 7), small.prompt(13, 5)

    def sample(self, model: Patcher, x: Tensor, cfg: float = 4.0, seed: int = SEED, **more: Any) -> Tensor:
        """A run of the host's KSampler; returns latents in the model's own scale."""
        result = comfy.sample.sample(
            model, x, STEPS, cfg, "euler", "simple", conditioning(self.positive, **more),
            conditioning(self.negative, **more), torch.zeros_like(x), disable_pbar=True, seed=seed,
        )  # fmt: skip
        return model.model.process_latent_in(result)

    def listen(
        self, liked: Sequence[Tensor], disliked: Sequence[Tensor], schedule: FabricSchedule = ALWAYS, **settings: Any
    ) -> Patcher:
        model = settings.pop("model", self.model)
        return apply_fabric(model, liked, disliked, self.empty, schedule, experimental=True, **settings)
