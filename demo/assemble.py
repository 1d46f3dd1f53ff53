"""Puts the demo models together: checkpoints that the stock loader opens, the scorer's open_clip folder, its aesthetic
head, the folders of the prompt policies, the language model of T5's layout, and the Cross-Adapter with its LoRA.

The repository stores what the checkpoints share once: the autoencoder, the text encoder without its unused token
rows, the base UNet; an expert is a low-rank difference to the base UNet, and the editor a difference in 8 bits. The
language model, the adapter, its LoRA and the prompt policies are in 8 bits too.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

PARTS = Path(__file__).resolve().parent / "models"
EXPERTS = ("chalk", "neon", "sticker")
EDITOR = "edit"
LEVELS = 127
"""Steps of a stored difference from 0 to the largest of its row."""
SCORER = HEAD = "shapeworld"
POLICIES = {"shapeworld": "policy", "shapeworld-rl": "policy_rl"}
"""Prompt policies and the files of their weights. All write with the first one's vocabulary."""
LLM, ADAPTER = "shapeworld-t5", "shapeworld"
ADAPTER_LORA = "shapeworld-adapter"
VOCABULARY, T5_VOCABULARY = 49408, 32128


def with_all_tokens(
    weights: dict[str, torch.Tensor], table: str, vocabulary: int = VOCABULARY
) -> dict[str, torch.Tensor]:
    """The weights with a full token table; every token that was not learnt gets the row for strange words."""
    weights = dict(weights)
    ids, rows = weights.pop("token_ids"), weights[table]
    weights[table] = rows[:1].repeat(vocabulary, 1)
    weights[table][ids] = rows[1:]
    return weights


def text_encoder(parts: Path) -> dict[str, torch.Tensor]:
    """The text encoder as the checkpoints hold it."""
    weights = with_all_tokens(load_file(parts / "text.safetensors"), "embeddings.token_embedding.weight")
    return {f"cond_stage_model.transformer.text_model.{k}": v for k, v in weights.items()}


def merge(base: dict[str, torch.Tensor], expert: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base UNet with an expert's low-rank difference added to it."""
    merged = dict(base)
    for key in expert:
        if key.endswith(".up"):
            layer = key.removesuffix(".up")
            weight = base[f"{layer}.weight"]
            change = expert[key].float() @ expert[f"{layer}.down"].float()
            merged[f"{layer}.weight"] = (weight.float() + change.view_as(weight)).half()
    return merged


def as_difference(base: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is to be added to the base UNet: whole numbers in `NAME`, and in `NAME.step` what 1 is, for each row."""
    return in_8_bits({name: weight.float().cpu() - _like(base[name], weight) for name, weight in weights.items()})


def in_8_bits(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as whole numbers in `NAME`, and in `NAME.step` what 1 is, for each row. Whole numbers stay."""
    parts = {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            parts[name] = weight
            continue
        rows = weight.float().cpu().reshape(len(weight), -1)
        step = (rows.abs().amax(1) / LEVELS).clamp(min=1e-12)
        parts[name] = (rows / step[:, None]).round().to(torch.int8).view_as(weight).contiguous()
        parts[f"{name}.step"] = step
    return parts


def from_8_bits(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights, fp16, that `in_8_bits` stored."""
    weights = {}
    for name, part in parts.items():
        if f"{name}.step" in parts:
            weights[name] = _values(parts, name).half()
        elif not name.endswith(".step"):
            weights[name] = part
    return weights


def _values(parts: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A weight of `in_8_bits` in float32."""
    return (parts[name].float().reshape(len(parts[name]), -1) * parts[f"{name}.step"][:, None]).view_as(parts[name])


def add_difference(base: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base UNet plus such a difference. Input channels that the base does not have start at zero."""
    return {name: (_like(base[name], parts[name]) + _values(parts, name)).half() for name in base}


def _like(weight: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The weight in float32, with zeros for the input channels that it lacks."""
    if weight.shape == wanted.shape:
        return weight.float()
    missing = weight.new_zeros(weight.shape[0], wanted.shape[1] - weight.shape[1], *weight.shape[2:])
    return torch.cat([weight, missing], 1).float()


def header(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


def is_current(file: Path, made_from: str) -> bool:
    """Whether the checkpoint is there, whole, and made from these parts."""
    try:
        return header(file).get("atelier.parts") == made_from
    except (FileNotFoundError, SafetensorError):
        return False


def fingerprint(parts: Path, *names: str) -> str:
    """A hash of these parts and of this script, kept in the header of what they make."""
    digest = hashlib.sha256()
    for file in (Path(__file__), *(parts / f"{name}.safetensors" for name in names)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def assemble(models: Path, parts: Path = PARTS) -> list[Path]:
    """Writes the checkpoints into `models/checkpoints` unless they are there already; returns their paths."""
    folder = models / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    shared: dict[str, torch.Tensor] = {}
    base = load_file(parts / "base.safetensors")
    out = []
    for name in ("base", *EXPERTS, EDITOR):
        file = folder / f"shapeworld-{name}.safetensors"
        out.append(file)
        made_from = fingerprint(parts, "text", "vae", "base", name)
        if is_current(file, made_from):
            continue
        if not shared:
            shared = text_encoder(parts)
            shared |= {f"first_stage_model.{k}": v for k, v in load_file(parts / "vae.safetensors").items()}
        if name == "base":
            unet = base
        else:
            unet = (add_difference if name == EDITOR else merge)(base, load_file(parts / f"{name}.safetensors"))
        weights = shared | {f"model.diffusion_model.{k}": v for k, v in unet.items()}
        _write(file, weights, header(parts / f"{name}.safetensors") | {"atelier.parts": made_from})
    return out


def assemble_scorer(models: Path, parts: Path = PARTS) -> Path:
    """Writes the scorer into `models/clip_scorers` unless it is there already; returns its folder."""
    folder, made_from = models / "clip_scorers" / SCORER, fingerprint(parts, "scorer")
    folder.mkdir(parents=True, exist_ok=True)
    file, about = folder / "open_clip_model.safetensors", header(parts / "scorer.safetensors")
    if not is_current(file, made_from):
        (folder / "open_clip_config.json").write_text(about["open_clip_config"], encoding="utf-8")
        weights = with_all_tokens(load_file(parts / "scorer.safetensors"), "token_embedding.weight")
        _write(file, weights, {"modelspec.license": about["modelspec.license"], "atelier.parts": made_from})
    return folder


def assemble_head(models: Path, parts: Path = PARTS) -> Path:
    """Writes the scorer's aesthetic head into `models/aesthetic_heads` unless it is there already; returns its path."""
    file, made_from = models / "aesthetic_heads" / f"{HEAD}.safetensors", fingerprint(parts, "aesthetic")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not is_current(file, made_from):
        part = parts / "aesthetic.safetensors"
        _write(file, load_file(part), header(part) | {"atelier.parts": made_from})
    return file


def assemble_policies(models: Path, parts: Path = PARTS) -> list[Path]:
    """Writes the policies into `models/prompt_optimizers` unless they are there already; returns their folders."""
    about, out = header(parts / "policy.safetensors"), []
    for name, part in POLICIES.items():
        made_from = fingerprint(parts, "policy", part)
        folder = models / "prompt_optimizers" / name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.safetensors"
        out.append(folder)
        if is_current(file, made_from):
            continue
        (folder / "config.json").write_text(about["config"], encoding="utf-8")
        (folder / "vocab.json").write_text(about["vocabulary"], encoding="utf-8")
        weights = from_8_bits(load_file(parts / f"{part}.safetensors"))
        _write(file, weights, {"modelspec.license": about["modelspec.license"], "atelier.parts": made_from})
    return out


def assemble_adapter(models: Path, parts: Path = PARTS) -> list[Path]:
    """Writes the language model, the Cross-Adapter and its LoRA unless they are there already; returns their paths."""
    out = []
    for folder, name, part in (
        ("text_encoders", LLM, "t5"), ("cross_adapters", ADAPTER, "adapter"), ("loras", ADAPTER_LORA, "adapter_lora")
    ):  # fmt: skip
        file = models / folder / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        out.append(file)
        made_from = fingerprint(parts, part)
        if is_current(file, made_from):
            continue
        weights = from_8_bits(load_file(parts / f"{part}.safetensors"))
        if part == "t5":
            weights = with_all_tokens(weights, "shared.weight", T5_VOCABULARY)
        _write(file, weights, header(parts / f"{part}.safetensors") | {"atelier.parts": made_from})
    return out


def _write(file: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    part = file.with_suffix(".part")
    save_file(weights, part, metadata)
    part.replace(file)
    print(f"wrote {file.name} ({file.stat().st_size / 2**20:.0f} MB)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the host's models folder")
    models = parser.parse_args().models
    assemble(models)
    assemble_scorer(models)
    assemble_head(models)
    assemble_policies(models)
    assemble_adapter(models)
