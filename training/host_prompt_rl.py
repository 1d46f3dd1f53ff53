"""The pictures that a prompt policy is rewarded for: drawn by the host with the workflow's own model, and scored."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..attention.llm_features import even_tokens
from ..feedback.reward import aesthetic_gain
from ..feedback.scorers import Scorer, score_each
from ..llm.content_guard import plain_words

DRAWN_AT_ONCE = 8
"""Pictures that go through the model together."""


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn. `size` is their side in px."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE
    size: int = 512
    steps: int = 8
    cfg: float = 7.0
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    negative: str = ""

    @torch.inference_mode()
    def draw(self, prompts: Sequence[str], seed: int, numbers: Sequence[int]) -> Tensor:
        """Pictures [n, size, size, 3] in 0..1 on the CPU; the noise of each depends on the seed and its number."""
        pictures = []
        for start in range(0, len(prompts), DRAWN_AT_ONCE):
            part = slice(start, start + DRAWN_AT_ONCE)
            comfy.model_management.throw_exception_if_processing_interrupted()
            pictures.append(self._draw(prompts[part], seed, list(numbers[part])))
        return torch.cat(pictures)

    def _draw(self, prompts: Sequence[str], seed: int, numbers: list[int]) -> Tensor:
        shape = self.model.get_model_object("latent_format")
        side = self.size // shape.spacial_downscale_ratio
        empty = torch.zeros(len(prompts), shape.latent_channels, side, side)
        latents = comfy.sample.sample(
            self.model,
            comfy.sample.prepare_noise(empty, seed, numbers),
            self.steps,
            self.cfg,
            self.sampler,
            self.scheduler,
            self._encode(prompts),
            self._encode([self.negative] * len(prompts)),
            comfy.sample.fix_empty_latent_channels(self.model, empty),
            disable_pbar=True,
            seed=seed,
        )
        return self.vae.decode(latents)[..., :3].float().cpu().clamp(0, 1)

    def _encode(self, prompts: Sequence[str]) -> list[Any]:
        """The prompts as one conditioning, a row for each."""
        encoded = [
            self.clip.encode_from_tokens(tokens, return_dict=True)
            for tokens in even_tokens(self.clip, tuple(map(plain_words, prompts)))
        ]
        pooled = [one["pooled_output"] for one in encoded if one.get("pooled_output") is not None]
        told = {"pooled_output": torch.cat(pooled)} if pooled else {}
        return [[torch.cat([one["cond"] for one in encoded]), told]]


@dataclass(frozen=True)
class PictureReward:
    """What a candidate is worth: how much better its pictures score than those of the prompt, and how relevant they
    are to the prompt (arXiv 2212.09611, equations 2 to 4, with `PromptistRelevance` and `Aesthetic`).

    `pictures` are drawn for each candidate and for each prompt, of the same noise. `say` is told what is done.
    """

    drawing: Drawing
    scorer: Scorer
    relevance: Scorer | None = None
    pictures: int = 3
    say: Callable[[str], None] = lambda text: None

    @torch.inference_mode()
    def __call__(self, pairs: Sequence[tuple[str, str]], seed: int) -> list[float]:
        """The rewards of pairs of a prompt and a candidate. NaN where a picture holds no numbers or has no score."""
        of = defaultdict(list)
        for row, (prompt, _) in enumerate(pairs):
            of[prompt].append(row)
        rewards = [math.nan] * len(pairs)
        for number, (prompt, rows) in enumerate(of.items()):
            self.say(f"Drawing for prompt {number + 1} of {len(of)}")
            texts = list(dict.fromkeys([prompt, *(pairs[row][1] for row in rows)]))
            numbers = list(range(number * self.pictures, (number + 1) * self.pictures))
            drawn = self.drawing.draw(
                [text for text in texts for _ in numbers], seed, [each for _ in texts for each in numbers]
            )
            found = dict(zip(texts, self._rewards(prompt, drawn), strict=True))
            for row in rows:
                rewards[row] = found[pairs[row][1]]
        return rewards

    def _rewards(self, prompt: str, drawn: Tensor) -> list[float]:
        """The rewards of the prompt itself and of candidates, from its own pictures and, behind them, theirs."""
        whole = drawn.flatten(1).isfinite().all(1)
        scorers = [self.scorer] if self.relevance is None else [self.scorer, self.relevance]
        found = torch.full((len(scorers), len(drawn)), math.nan)
        if whole.any():
            found[:, whole] = torch.tensor(score_each(scorers, drawn[whole], prompt))
        scores, *relevant = found.unflatten(1, (-1, self.pictures))
        reward = aesthetic_gain(scores, scores[:1]) + sum(one.mean(-1) for one in relevant)
        return [float(each) if math.isfinite(each) else math.nan for each in reward]
