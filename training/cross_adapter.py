"""Training a Cross-Adapter: noise prediction, and attention that entities guide (LLM4GEN, arXiv 2407.00737).

The UNet is frozen, or follows by low-rank weights. A caption in ten is dropped, so that guidance works. Short captions
can be learnt from the UNet as it was instead of from their pictures, so that what it draws well from them stays; that
is prior preservation (DreamBooth, arXiv 2208.12242, section 3.2) by what the model says in the place of what it draws.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attention.cross_adapter import CrossAdapter
from .denoising import Sampling, denoising_errors
from .low_rank import without_low_rank

CAPTION_DROPOUT = 0.1
KEPT_WEIGHT = 15.0
"""How much a kept caption counts. Its loss is far smaller than that of others, which have noise to guess.

Chosen in the demo world: 3 kept short prompts too little, and 20, with more captions kept, cost dense ones a part of
their gain. The adapter's report has the figures.
"""
Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]
"""For each entity of a caption: its tokens and those of an attribute, counted among the language model's."""


@dataclass(frozen=True)
class CaptionedLatents:
    """Pictures as latents, and their captions as features; the last caption is the empty one and has no picture.

    latents: [N, channels, H, W] in the model's own scale.
    text: [N + 1, tokens, text width], what the text encoder makes of the captions.
    llm: [N + 1, tokens, llm width], what the language model makes of them.
    vectors: [N + 1, width], what the model wants beside, as SDXL does, or None.
    pairs: N entries.
    lengths: N entries, how many tokens of `text` a caption has by itself. The UNet sees no more, as when it draws.
    kept: N entries, whether to learn what the model says without adapter and low-rank weights, not the picture.
    """

    latents: Tensor
    text: Tensor
    llm: Tensor
    vectors: Tensor | None = None
    pairs: Sequence[Pairs] = ()
    lengths: Sequence[int] = ()
    kept: Sequence[bool] = ()

    def __post_init__(self) -> None:
        if not len(self.latents):
            raise ValueError("There is no picture to learn from.")
        if not len(self.latents) + 1 == len(self.text) == len(self.llm):
            raise ValueError("Each picture needs a caption, and the empty caption stands behind them.")

    def by_length(self, picks: Sequence[int]) -> list[tuple[int, Tensor]]:
        """Which of the picks have captions of the same length: the length, and their places among the picks [M]."""
        lengths = np.array([self.lengths[pick] if self.lengths else self.text.shape[1] for pick in picks])
        return [(int(length), torch.from_numpy(np.flatnonzero(lengths == length))) for length in np.unique(lengths)]


def attention_weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """How much each query [B, N, C] looks at each key [B, M, C]: [B, heads, N, M]."""
    query, key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k))
    return (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)


def weighted(weights: Tensor, v: Tensor) -> Tensor:
    """What attention takes of the values [B, M, C] by its weights [B, heads, N, M]: [B, N, C]."""
    value = v.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    return (weights.to(v.dtype) @ value).transpose(1, 2).flatten(2)


class EntityMaps:
    """Computes cross-attention by two matrix products, and compares where entities and attributes look.

    It is the override of the host's attention (`optimized_attention_override`). With no pairs, or on self-attention,
    it passes on to `plain`.
    """

    def __init__(
        self, plain: Callable[..., Tensor], rows: Sequence[Pairs], length: int, device: torch.device | None = None
    ) -> None:
        """Takes the pairs of each row of the batch, counted among all `length` tokens of the context.

        The length tells cross-attention from self-attention.
        """
        self.plain, self.length, self.distances = plain, length, list[Tensor]()
        most = max((len(pairs) for pairs in rows), default=0)
        # Where an entity and where an attribute stands, as means over tokens, and which places hold a pair.
        entities, attributes = (torch.zeros(len(rows), most, length) for _ in range(2))
        real = torch.zeros(len(rows), most, dtype=torch.bool)
        for row, pairs in enumerate(rows):
            for number, (entity, attribute) in enumerate(pairs):
                entities[row, number, list(entity)] = 1 / len(entity)
                attributes[row, number, list(attribute)] = 1 / len(attribute)
                real[row, number] = True
        self.any = bool(real.any())
        self.entities, self.attributes, self.real = (part.to(device) for part in (entities, attributes, real))

    def attend(
        self, _: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        if k.shape[1] != self.length or q.shape[1] == self.length or not self.any:
            return self.plain(q, k, v, heads, *args, **kwargs)
        weights = attention_weights(q, k, heads)
        self._compare(weights.mean(1).float())
        return weighted(weights, v)

    def _compare(self, maps: Tensor) -> None:
        """Adds how far the pairs of a layer look apart; `maps` are [B, places, tokens]."""
        places = maps.transpose(1, 2)
        one, other = (told @ places for told in (self.entities, self.attributes))
        self.distances.append((1 - torch.cosine_similarity(one, other, dim=-1))[self.real])


def entity_loss(maps: Sequence[EntityMaps]) -> Tensor:
    """Mean over layers and pairs of one minus the cosine of the two maps: 0 where they look at the same places."""
    distances = [distance for one in maps for distance in one.distances]
    return torch.cat(distances).mean() if distances else torch.zeros(())


class _Batch:
    """A batch of captions, and what the model says of it and is to say. Captions of one length are asked together."""

    def __init__(
        self,
        unet: nn.Module,
        adapter: CrossAdapter | None,
        data: CaptionedLatents,
        picks: np.ndarray,
        dropped: np.ndarray,
        plain: Callable[..., Tensor],
        precision: torch.dtype | None,
        paired: bool,
    ) -> None:
        """Takes the numbers of the captions [N], and which of them are dropped; `paired` asks for maps of the pairs."""
        self.unet, self.adapter, self.plain, self.precision = unet, adapter, plain, precision
        self.device = next(unet.parameters()).device
        rows = torch.from_numpy(np.where(dropped, len(data.latents), picks))
        self.text, self.llm = (part[rows].to(self.device, torch.float32) for part in (data.text, data.llm))
        self.vectors = None if data.vectors is None else data.vectors[rows].to(self.device, torch.float32)
        self.pairs: list[Pairs] = [
            data.pairs[pick] if paired and data.pairs and not lost else ()
            for pick, lost in zip(picks, dropped, strict=True)
        ]
        self.groups = data.by_length(picks)
        self.kept = torch.tensor([bool(data.kept) and data.kept[pick] for pick in picks])
        self.maps = list[EntityMaps]()

    def predict(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """What the model says of the noisy latents [N, C, H, W]."""
        parts = []
        for length, places in self.groups:
            with self._computing():
                context = self.text[places, :length]
                if self.adapter is not None:
                    context = self.adapter(context, self.llm[places])
                pairs = [_shifted(self.pairs[place], length) for place in places]
                self.maps.append(EntityMaps(self.plain, pairs, context.shape[1], self.device))
                parts.append(self._ask(noisy, timestep, places, context, self.maps[-1].attend))
        return torch.cat(parts)[torch.cat([places for _, places in self.groups]).argsort()]

    def correct(self, noisy: Tensor, timestep: Tensor, wanted: Tensor) -> Tensor:
        """What it is to say: `wanted`, and for kept captions what it says without adapter and low-rank weights."""
        wanted = wanted.clone()
        for length, places in self.groups:
            if len(same := places[self.kept[places]]):
                with torch.no_grad(), without_low_rank(self.unet), self._computing():
                    said = self._ask(noisy, timestep, same, self.text[same, :length], self._unsteered)
                wanted[same] = said.float()
        return wanted

    def _ask(
        self, noisy: Tensor, timestep: Tensor, places: Tensor, context: Tensor, attend: Callable[..., Tensor]
    ) -> Tensor:
        more = {} if self.vectors is None else {"y": self.vectors[places]}
        options = {"optimized_attention_override": attend}
        return self.unet(noisy[places], timestep[places], context=context, transformer_options=options, **more)

    def _unsteered(self, _: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return self.plain(*args, **kwargs)

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.precision is None else torch.autocast(self.device.type, self.precision)


def adapter_loss(
    unet: nn.Module,
    adapter: CrossAdapter | None,
    sampling: Sampling,
    data: CaptionedLatents,
    rng: np.random.Generator,
    batch: int,
    plain: Callable[..., Tensor],
    precision: torch.dtype | None = torch.bfloat16,
    entity_weight: float = 0.0,
) -> dict[str, Tensor]:
    """The loss of a random batch; with no adapter, the UNet sees the text encoder's tokens alone.

    Args:
        plain: attention on [B, N, C] that has a gradient, with the host's arguments.
        precision: that of autocast, None for none.
        entity_weight: how much the distance of the maps counts. 0 leaves it out.
    """
    picks = rng.integers(0, len(data.latents), batch)
    dropped = rng.random(batch) < CAPTION_DROPOUT
    paired = adapter is not None and entity_weight > 0
    asked = _Batch(unet, adapter, data, picks, dropped, plain, precision, paired)
    latent = data.latents[torch.from_numpy(picks)].to(asked.device, torch.float32)
    error, weight = denoising_errors(sampling, latent, rng, asked.predict, asked.correct)
    found = {"loss": (error * weight * torch.where(asked.kept, KEPT_WEIGHT, 1.0).to(asked.device)).mean()}
    if entity_weight:
        found["entities"] = entity_loss(asked.maps).to(asked.device)
        found["loss"] = found["loss"] + entity_weight * found["entities"]
    return found


def _shifted(pairs: Pairs, by: int) -> Pairs:
    return [([token + by for token in entity], [token + by for token in attribute]) for entity, attribute in pairs]


def adapter_file(
    adapter: CrossAdapter, weights: Mapping[str, Tensor], tokens: int, prefix: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of an adapter's file, in the released layout, which the released code opens too."""
    about = {
        "atelier.heads": str(adapter.shape.heads),
        "atelier.llm_tokens": str(tokens),
        "atelier.llm_prefix": prefix,
        "modelspec.title": "Cross-Adapter",
    }
    return {name: weights[name].detach().float().cpu().contiguous() for name in adapter.state_dict()}, about
