"""Pictures of long prompts, with an adapter or without. Import it after `_world.start_host` and `_world.pack`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from _world import Checkpoint
from atelier.attention.llm_features import LoadedAdapter, encode_pair
from torch import Tensor

BATCH, SEED = 20, 700


def drawn(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    adapter: LoadedAdapter | None,
    llm: comfy.sd.CLIP | None,
    seed: int = SEED,
) -> list[Tensor]:
    """A picture [size, size, 3] for each prompt, from noise that depends on its number alone.

    Without an adapter, the text encoder reads the prompt by itself, as in the stock node.
    """
    comfy.utils.PROGRESS_BAR_ENABLED = False
    made = [
        encode_pair(checkpoint.clip, llm, adapter, (text, ""))
        if adapter is not None and llm is not None
        else (checkpoint.encode([text]), checkpoint.encode([""]))
        for text in prompts
    ]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (positive, negative, *_) in enumerate(made):
        groups.setdefault((positive[0][0].shape[1], negative[0][0].shape[1]), []).append(number)
    pictures: dict[int, Tensor] = {}
    for numbers in groups.values():
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            conds = [_joined([made[number][side] for number in part]) for side in (0, 1)]
            pictures |= dict(zip(part, _sampled(checkpoint, conds, part, seed), strict=True))
    return [pictures[number] for number in range(len(prompts))]


def with_lora(checkpoint: Checkpoint, file: Path) -> Checkpoint:
    """The checkpoint with a LoRA on its model."""
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    return replace(checkpoint, model=comfy.sd.load_lora_for_models(checkpoint.model, None, lora, 1.0, 0.0)[0])


def _joined(conditionings: Sequence[list]) -> list:
    """Conditionings of equal lengths as one, a row for each."""
    about = dict(conditionings[0][0][1])
    if about.get("pooled_output") is not None:
        about["pooled_output"] = torch.cat([one[0][1]["pooled_output"] for one in conditionings])
    return [[torch.cat([one[0][0] for one in conditionings]), about]]


def _sampled(checkpoint: Checkpoint, conds: Sequence[list], numbers: list[int], seed: int) -> Tensor:
    import nodes

    side = checkpoint.size // 8
    latent = {"samples": torch.zeros(len(numbers), 4, side, side), "batch_index": numbers}
    sampled = nodes.KSampler().sample(
        checkpoint.model, seed, checkpoint.steps, checkpoint.cfg, "euler", "normal", *conds, latent
    )[0]
    return checkpoint.vae.decode(sampled["samples"])
