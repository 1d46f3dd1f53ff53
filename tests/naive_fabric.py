"""FABRIC written from the paper (arXiv 2307.10159, section 3), for tests to compare with.

It shares the model's weights, the references' noise and their size with the code under test, and nothing else: one
pass for each reference, hidden states instead of keys and values, equation 2 as it is printed, an own Euler loop.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.samplers
import torch
from atelier.attention.reference import reference_noise, shrink_latent
from small_unets import CFG, EMPTY, NEGATIVE, POOLED, POSITIVE, SEED, STEPS, Patcher
from torch import Tensor

LATENT_SCALE = {"SD15": 0.18215, "SDXL": 0.13025}


class NaiveFabric:
    """One pass per reference, and an explicit softmax, reweighted and renormalised (equation 2)."""

    def __init__(self, model: Patcher, depths: Sequence[float] | None = None) -> None:
        self.base = model.model
        self.is_sdxl = self.base.diffusion_model.num_classes is not None
        self.unet = self.base.diffusion_model
        blocks = [part for part in self.unet.modules() if isinstance(part, host_attention.BasicTransformerBlock)]
        self.attentions = [block.attn1 for block in blocks]
        self.depths = dict(zip(self.attentions, depths or [1.0] * len(blocks), strict=True))

    @contextlib.contextmanager
    def self_attention(self, forward: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
        for attention in self.attentions:
            attention.forward = lambda x, attention=attention, **_: forward(attention, x)
        try:
            yield
        finally:
            for attention in self.attentions:
                del attention.forward

    def predict(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """The noise that the UNet finds in x = clean + sigma * noise."""
        timestep = self.base.model_sampling.timestep(sigma).float().expand(len(x))
        vector = {"y": self.vector(x, prompt)} if self.is_sdxl else {}
        return self.unet(x / (sigma**2 + 1) ** 0.5, timestep, context=prompt.expand(len(x), -1, -1), **vector)

    def vector(self, x: Tensor, prompt: Tensor) -> Tensor:
        """SDXL's vector: pooled text, then size, crop and target size, each height first."""
        height, width = (side * 8 for side in x.shape[-2:])
        sizes = self.base.embedder(torch.tensor([height, width, 0, 0, height, width])).flatten()
        return torch.cat([POOLED[id(prompt)][0], sizes]).expand(len(x), -1)

    @staticmethod
    def attend(attention: Any, x: Tensor, references: list[Tensor], weights: Sequence[float]) -> Tensor:
        context = torch.cat([x, *(reference.expand(len(x), -1, -1) for reference in references)], dim=1)
        q, k, v = (
            projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for projected in (attention.to_q(x), attention.to_k(context), attention.to_v(context))
        )
        probability = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        counts = torch.tensor([x.shape[1], *(reference.shape[1] for reference in references)])
        scale = torch.tensor([1.0, *weights]).repeat_interleave(counts)
        probability = probability * scale
        probability = probability / probability.sum(dim=-1, keepdim=True)
        return attention.to_out((probability @ v).transpose(1, 2).flatten(2))

    def hidden_states(self, latent: Tensor, sigma: Tensor, area: int) -> dict[Any, Tensor]:
        kept: dict[Any, Tensor] = {}

        def keep(attention: Any, x: Tensor) -> Tensor:
            kept[attention] = x
            return self.attend(attention, x, [], [])

        clean = shrink_latent(latent * LATENT_SCALE["SDXL" if self.is_sdxl else "SD15"], area)
        alpha = 1 / (sigma**2 + 1)
        noise = reference_noise(clean, SEED)
        noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with self.self_attention(keep):
            self.predict(noised[None] / alpha.sqrt(), sigma, EMPTY)
        return kept

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        level: Tensor,
        prompt: Tensor,
        references: Sequence[Tensor],
        weights: Sequence[float],
    ) -> Tensor:
        hidden = [self.hidden_states(latent, level, math.prod(x.shape[2:])) for latent in references]

        def attend(attention: Any, x: Tensor) -> Tensor:
            return self.attend(
                attention, x, [states[attention] for states in hidden], [self.depths[attention] * w for w in weights]
            )

        with self.self_attention(attend):
            return x - sigma * self.predict(x, sigma, prompt)

    @torch.no_grad()
    def euler(
        self,
        noise: Tensor,
        sigmas: Tensor,
        liked: Sequence[Tensor],
        disliked: Sequence[Tensor],
        weight: float,
        weights: tuple[Sequence[float], Sequence[float]] | None = None,
        renew_every: int = 1,
    ) -> Tensor:
        likes, dislikes = weights or ([1.0] * len(liked), [1.0] * len(disliked))
        likes, dislikes = [weight * own for own in likes], [weight * 0.5 * own for own in dislikes]
        x = noise * (1 + sigmas[0] ** 2) ** 0.5
        for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            level = sigmas[i - i % renew_every]
            positive = self.denoise(x, sigma, level, POSITIVE, liked, likes)
            negative = self.denoise(x, sigma, level, NEGATIVE, disliked, dislikes)
            denoised = negative + CFG * (positive - negative)
            x = x + (x - denoised) / sigma * (after - sigma)
        return x


def naive_run(
    model: Patcher,
    noise: Tensor,
    liked: Sequence[Tensor],
    disliked: Sequence[Tensor],
    weight: float,
    scheduler: str = "normal",
    weights: tuple[Sequence[float], Sequence[float]] | None = None,
    depths: Sequence[float] | None = None,
    renew_every: int = 1,
) -> Tensor:
    sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, scheduler, STEPS)
    return NaiveFabric(model, depths).euler(noise, sigmas, liked, disliked, weight, weights, renew_every)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
