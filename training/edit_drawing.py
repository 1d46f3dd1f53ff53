"""Draws pairs for edit data with the host's sampler and the pack's Prompt-to-Prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.patches import join_texts
from ..attention.prompt_to_prompt_patch import apply_prompt_to_prompt
from ..feedback.scorers import weights_version
from .edit_data import DrawTask, Recipe
from .edit_shards import EditDataError
from .edit_triplets import Triplet

SAMPLER, SCHEDULER = "euler", "normal"


@dataclass(frozen=True)
class Sampling:
    """How a picture is drawn: steps, guidance scale, and its width and height in px, multiples of 8."""

    steps: int = 20
    cfg: float = 7.5
    width: int = 512
    height: int = 512


@dataclass(frozen=True, eq=False)
class HostDraw:
    """Draws pairs; a pair depends on its seed and share alone, whatever is drawn along with it."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    sampling: Sampling

    def __call__(self, triplet: Triplet, seeds: Sequence[int], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        how = self.sampling
        latent = torch.zeros(2 * len(seeds), 4, how.height // 8, how.width // 8)
        noise = torch.cat([comfy.sample.prepare_noise(latent[:1], seed) for seed in seeds] * 2)
        samples = comfy.sample.sample(
            apply_prompt_to_prompt(self.model, shares), noise, how.steps, how.cfg, SAMPLER, SCHEDULER,
            self._rows(triplet.caption, triplet.edited_caption, len(seeds)), self._encoded(""), latent,
            disable_pbar=True, seed=seeds[0],
        )  # fmt: skip
        return self.vae.decode(samples).split(len(seeds))

    def _encoded(self, text: str) -> list[Any]:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def _rows(self, caption: str, edited: str, pairs: int) -> list[Any]:
        """One conditioning with a row for each picture of a batch: the caption's, then the edited caption's."""
        (first, extra), (second, other) = self._encoded(caption)[0], self._encoded(edited)[0]
        rows = join_texts([first, second]).repeat_interleave(pairs, 0)
        pooled = [more.get("pooled_output") for more in (extra, other)]
        if all(isinstance(pool, Tensor) for pool in pooled):
            return [[rows, {"pooled_output": torch.cat([pool.repeat(pairs, 1) for pool in pooled])}]]
        return [[rows, {}]]


def model_version(model: ModelPatcher) -> str:
    """Changes with the model's weights, and with the LoRAs on it and their strengths."""
    entries = model.get_key_patches("diffusion_model.")
    strengths = [[name, *(patch[0] for patch in entries[name][1:])] for name in sorted(entries)]
    digest = hashlib.sha256(json.dumps(strengths, default=str).encode()).hexdigest()[:8]
    return f"{weights_version({name: entry[0][0] for name, entry in entries.items()})}-{digest}"


def checkpoint_of(model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE) -> str:
    """The path of the checkpoint that all three were loaded from, for workers that load it themselves.

    Raises:
        EditDataError: They were not loaded from one checkpoint, or they were changed since.
    """
    patchers = (model, clip.patcher, vae.patcher)
    files = {str(patcher.cached_patcher_init[1][0]) if patcher.cached_patcher_init else "" for patcher in patchers}
    if len(files) > 1 or "" in files or any(patcher.patches for patcher in patchers):
        raise EditDataError(
            "Workers load the checkpoint themselves, so model, clip and vae must all come from one Load Checkpoint "
            "node, without a LoRA. Link them so, or set workers to 1."
        )
    return files.pop()


def load_task(checkpoint: str, sampling: Sampling, triplets: Sequence[Triplet], recipe: Recipe) -> DrawTask:
    """What a worker does, with the checkpoint loaded in this process."""
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(checkpoint)[:3]
    return DrawTask(triplets, recipe, HostDraw(model, clip, vae, sampling))
