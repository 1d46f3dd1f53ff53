"""Tiny CLIP models and aesthetic heads, made at random in the layouts that users have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from conftest import COMFYUI
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = COMFYUI / "comfy" / "sd1_tokenizer"
WIDTHS = (1024, 128, 64, 16, 1)
"""Outputs of the layers of the public aesthetic head."""


def pickscore_folder(place: Path, width: int = 8, size: int = 32) -> Path:
    """A transformers CLIP as PickScore has it: config.json, model.safetensors and the tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "projection_dim": width}
    vision = tower | {"image_size": size, "patch_size": 16, "projection_dim": width}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)).save_pretrained(place)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(VOCABULARY / name, place / name)
    return place


def hps_folder(place: Path, model: str) -> Path:
    """The one file of HPS v2, `{"state_dict": ...}`, for a model that open_clip knows by name."""
    import open_clip

    torch.manual_seed(1)
    place.mkdir(parents=True)
    torch.save({"state_dict": open_clip.create_model(model).state_dict()}, place / "HPS_v2_compressed.pt")
    return place


def register_tiny_hps(folder: Path) -> str:
    """Make a tiny ViT known to open_clip; returns its name."""
    import open_clip

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / "atelier-tiny-hps.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "atelier-tiny-hps.json")
    return "atelier-tiny-hps"


def head_weights(width: int = 768, outputs: tuple[int, ...] = WIDTHS) -> dict[str, Tensor]:
    """A head of the public layout: `layers.0`, `.2`, `.4`, `.6`, `.7`, for the dropouts in between have numbers too."""
    rng, weights = torch.Generator().manual_seed(2), {}
    for number, out in zip((0, 2, 4, 6, 7), outputs, strict=True):
        weights[f"layers.{number}.weight"] = torch.randn(out, width, generator=rng) / width**0.5
        weights[f"layers.{number}.bias"] = torch.randn(out, generator=rng)
        width = out
    return weights


def head_file(place: Path, width: int = 768) -> Path:
    """Such a head as a file of the kind that its name says."""
    weights = head_weights(width)
    save_file(weights, place) if place.suffix == ".safetensors" else torch.save(weights, place)
    return place
