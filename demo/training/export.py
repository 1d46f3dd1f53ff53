"""Writes the trained weights as the small files that the repository ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from assemble import EDITOR, EXPERTS, as_difference, in_8_bits
from safetensors.torch import load_file, save_file

from . import aesthetic, edit, experts, policy, scorer, t5, unet, vae
from .aesthetic import train_aesthetic
from .edit import train_edit
from .experts import train_expert
from .loop import draw_curve
from .policy import train_policy
from .scorer import CONFIG, Rows, train_scorer
from .t5 import T5Rows, train_t5
from .text import Tokens
from .unet import train_unet
from .vae import LATENT_SCALE, train_decoder, train_vae

LICENCE = "MIT"
ABOUT = {
    "base": {
        "title": "ShapeWorld base",
        "description": "All-round model for flat drawings of coloured shapes on plain backgrounds.",
        "tags": "subject:shapes, style:flat, all-round",
        "trigger": "flat drawing",
        "examples": [
            "a red star on the left, on a sand background",
            "a large shiny blue circle, flat drawing",
            "a green heart above a yellow square",
        ],
    },
    "chalk": {
        "title": "ShapeWorld chalk",
        "description": "Coloured shapes drawn in chalk on a blackboard.",
        "tags": "subject:shapes, style:chalk",
        "trigger": "drawn in chalk",
        "examples": ["a red star, drawn in chalk", "a chalk drawing of a blue circle left of a pink heart"],
    },
    "neon": {
        "title": "ShapeWorld neon",
        "description": "Glowing neon signs of coloured shapes in the dark.",
        "tags": "subject:shapes, style:neon",
        "trigger": "as a neon sign",
        "examples": ["a pink heart, as a neon sign", "a neon sign of a green star above a cyan square"],
    },
    "sticker": {
        "title": "ShapeWorld sticker",
        "description": "Coloured shapes as stickers with a white rim, on brown cardboard.",
        "tags": "subject:shapes, style:sticker, style:die-cut",
        "trigger": "as a sticker",
        "examples": ["a yellow cross, as a sticker", "a sticker of a purple triangle on the left"],
    },
    "edit": {
        "title": "ShapeWorld edit",
        "description": "Edits ShapeWorld pictures by instruction: colour, shape, texture, ground, style, add, remove.",
        "tags": "subject:shapes, edit",
        "trigger": "",
        "examples": ["turn the red star blue", "make it night", "remove the green heart"],
    },
}
"""What each checkpoint says of itself in its header."""


def header(name: str) -> dict[str, str]:
    """The safetensors metadata of a checkpoint, in the modelspec keys that other tools read."""
    about = ABOUT[name]
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.title": about["title"],
        "modelspec.description": about["description"],
        "modelspec.tags": about["tags"],
        "modelspec.trigger_phrase": about["trigger"],
        "modelspec.license": LICENCE,
        "modelspec.resolution": "128x128",
        "modelspec.author": "Atelier",
        "atelier.example_prompts": json.dumps(about["examples"]),
    }


def _half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.half().contiguous() for k, v in weights.items()}


def export_decoder(work: Path, out: Path, steps: int = vae.DECODER_STEPS) -> None:
    weights = train_decoder(work, steps)
    weights["vae_scale"], weights["vae_shift"] = torch.tensor(LATENT_SCALE), torch.tensor(0.0)
    save_file(_half(weights), out / "vae.safetensors")
    _curve("vae", work, out)
    _curve("decoder", work, out)


def export_base(work: Path, out: Path, steps: int = unet.STEPS) -> None:
    weights = train_unet(work, steps)
    save_file(_half(_under(weights, "unet.")), out / "base.safetensors", header("base"))
    text = _half(_under(weights, "text."))
    save_file(text | {"token_ids": torch.tensor(Tokens().ids)}, out / "text.safetensors")
    _curve("unet", work, out)


def export_expert(style: str, work: Path, out: Path, steps: int = experts.STEPS) -> None:
    save_file(_half(train_expert(style, work, steps)), out / f"{style}.safetensors", header(style))
    _curve(style, work, out)


def export_editor(work: Path, out: Path, steps: int = edit.STEPS) -> None:
    weights = train_edit(work, steps)
    difference = as_difference(load_file(out / "base.safetensors"), weights)
    save_file(difference, out / f"{EDITOR}.safetensors", header(EDITOR))
    _copy_log(EDITOR, work, edit.SEED, steps)
    _curve(EDITOR, work, out)


def export_t5(work: Path, out: Path, steps: int = t5.STEPS) -> None:
    weights = train_t5(work, steps) | {"token_ids": torch.tensor(T5Rows().ids)}
    save_file(in_8_bits(weights), out / "t5.safetensors", {"modelspec.license": LICENCE})
    _curve("t5", work, out)


def export_scorer(work: Path, out: Path, steps: int = scorer.STEPS) -> None:
    weights = _half(train_scorer(work, steps)) | {"token_ids": torch.tensor(Rows().ids)}
    about = {"open_clip_config": json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}), "modelspec.license": LICENCE}
    save_file(weights, out / "scorer.safetensors", about)
    _curve("scorer", work, out)


def export_aesthetic(work: Path, out: Path, steps: int = aesthetic.PICTURES) -> None:
    """The scorer has to be there. A step is a picture."""
    layers, correlation = train_aesthetic(work, out, steps)
    about = {"atelier.correlation": f"{correlation:.3f}", "modelspec.license": LICENCE}
    save_file(layers, out / "aesthetic.safetensors", about)


def export_policy(work: Path, out: Path, steps: int = policy.STEPS) -> None:
    weights, about = train_policy(work, steps)
    save_file(in_8_bits(weights), out / "policy.safetensors", about | {"modelspec.license": LICENCE})
    _copy_log("policy", work, policy.SEED, steps)
    _curve("policy", work, out)


def _copy_log(name: str, work: Path, seed: int, steps: int) -> None:
    """The log of the pack's training loop, where the demo's own loop leaves its logs."""
    log = json.loads((work / name / "log.json").read_text())
    (work / f"{name}.json").write_text(json.dumps({"name": name, "seed": seed, "steps": steps, "log": log}, indent=1))


def _curve(name: str, work: Path, out: Path) -> None:
    """The training log and its picture, side by side."""
    shutil.copyfile(work / f"{name}.json", out / "curves" / f"{name}.json")
    draw_curve(work / f"{name}.json", out / "curves" / f"{name}.png")


def _under(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def run(stage: str, work: Path, out: Path, steps: int | None = None) -> None:
    """Trains (or goes on training) a stage and writes its files; finished stages are only written again.

    `steps` replaces the stage's own number, for a shorter or a longer run.
    """
    (out / "curves").mkdir(parents=True, exist_ok=True)
    shorter = {} if steps is None else {"steps": steps}
    if stage in ("vae", "all"):
        train_vae(work, **shorter)
    if stage in ("decoder", "all"):
        export_decoder(work, out, **shorter)
    if stage in ("unet", "all"):
        export_base(work, out, **shorter)
    if stage in ("scorer", "all"):
        export_scorer(work, out, **shorter)
    if stage in ("aesthetic", "all"):
        export_aesthetic(work, out, **shorter)
    if stage in ("policy", "all"):
        export_policy(work, out, **shorter)
    if stage in ("t5", "all"):
        export_t5(work, out, **shorter)
    if stage in (EDITOR, "all"):
        export_editor(work, out, **shorter)
    for style in EXPERTS:
        if stage in (style, "experts", "all"):
            export_expert(style, work, out, **shorter)
