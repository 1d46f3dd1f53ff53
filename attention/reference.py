"""FABRIC: liked and disliked pictures as extra keys and values of self-attention.

Source: von Rütte, Fedele, Thomm, Wolf, "FABRIC: Personalizing Diffusion Models with Iterative
Feedback", arXiv 2307.10159, section 3. Each reference picture is noised to the current sigma and
passed through the same model; what enters each self-attention is kept. The liked pictures' keys and
values join those of the conditional rows, the disliked pictures' those of the unconditional rows.

Design:
- Keys and values are kept after projection. The projection is the model's own, so this equals keeping
  the hidden states and projecting them with the rows they join.
- Equation 2 scales the attention probabilities of reference tokens by a weight and renormalises.
  That is the same as adding log(weight) to their logits, so any attention backend can compute it.
  A picture's own weight multiplies that of its side.
- The logits' term goes in as a mask. As one more number of each key, with a 1 in each query, no mask would be
  needed and kernels without masks could serve. But these scale by the head's size, so all queries would have to be
  rescaled, which half precision rounds, and heads would have sizes that the kernels pad by 8 or by half.
- Rows with references and rows without, or with another number of them, attend in separate calls.
  No key is padding, and at weight 1 no mask is needed.
- Merged references: `merge_tokens` averages 2 x 2 tokens where there are many, a cheaper approximation that is off
  unless it is asked for.
- A reference with more latent pixels than the new picture is made smaller first, aspect kept: its tokens
  cost the square of its size and say no more than the new picture can show.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LIKED, DISLIKED = 0, 1
"""The two sides, numbered as the conditionings they join: 0 is positive, 1 is negative."""

BlockKey = tuple[str, int, int]
"""A self-attention's name: UNet stage, block in the stage, layer in the block's transformer."""


class KeysValues(NamedTuple):
    """Projected keys and values, each [rows, tokens, channels]; a token stands for `each` tokens of its picture."""

    keys: Tensor
    values: Tensor
    each: float = 1.0


Bank = Mapping[BlockKey, Mapping[int, "Joined"]]
"""All references of a side, by block and side."""


class Attention(Protocol):
    """softmax(q k^T + mask) v over [rows, tokens, channels]; `mask` broadcasts over [rows, queries, keys]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Reference:
    """One picture: its latent [channels, (frames,) height, width] in the model's scale, the side that it is on, and
    how much it counts there: above 0, 1 in full."""

    latent: Tensor
    side: int
    weight: float = 1.0

    def shrunk(self, max_area: int) -> Reference:
        """The picture with at most `max_area` latent pixels."""
        return Reference(shrink_latent(self.latent, max_area), self.side, self.weight)


@dataclass(frozen=True, eq=False)
class Joined:
    """All references of a side in one row: projected keys and values [1, tokens, channels], and the tokens and the
    weight of each."""

    keys: Tensor
    values: Tensor
    pictures: tuple[tuple[int, float], ...]


def shrink_latent(latent: Tensor, max_area: int) -> Tensor:
    """A latent [channels, (frames,) height, width] of at most `max_area` pixels, its aspect kept to the pixel.

    Smaller ones come back as they are: a latent that is made larger holds nothing new.
    """
    height, width = latent.shape[-2:]
    if height * width <= max_area:
        return latent
    scale = math.sqrt(max_area / (height * width))
    # The epsilon keeps 8.0 from becoming 7 where the square root rounds down.
    size = tuple(min(side, max(1, math.floor(side * scale + 1e-6))) for side in (height, width))
    planes = latent.reshape(1, -1, height, width)
    return F.interpolate(planes, size=size, mode="bilinear", antialias=True).reshape(*latent.shape[:-2], *size)


def batches(references: Iterable[Reference]) -> tuple[tuple[Reference, ...], ...]:
    """References of one size together, so that they go through the model in one batch, in their order."""
    sizes: dict[torch.Size, list[Reference]] = {}
    for reference in references:
        sizes.setdefault(reference.latent.shape, []).append(reference)
    return tuple(map(tuple, sizes.values()))


def reference_noise(latent: Tensor, seed: int) -> Tensor:
    """Unit normal noise like `latent` on the CPU, the same for the same latent and seed.

    It depends on the latent's values and not on its place in the feedback, so a run is repeatable and
    the order of pictures does not matter. It stays the same for all steps of a run.
    """
    digest = hashlib.blake2b(latent_bytes(latent), digest_size=8, salt=(seed % 2**64).to_bytes(8, "little")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.randn(latent.shape, generator=generator)


def fixed_noise_seed(sigma: float) -> int:
    """A seed that depends on the noise level alone: each level has noise of its own, and all runs have the same."""
    return int.from_bytes(struct.pack("<d", sigma), "little")


def latent_bytes(latent: Tensor) -> bytes:
    """The values of a latent, in float32."""
    return latent.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()


class AllKept(Exception):
    """Ends a reference pass: it has reached the last self-attention that listens, and what comes after is not used."""


@dataclass
class Capture:
    """Self-attention of a reference pass: attends as usual and keeps keys and values.

    `blocks` are those that are wanted, in the order in which the model runs them. `picture` says which of a number
    of tokens are the picture's; the others are not kept.
    """

    blocks: Sequence[BlockKey]
    picture: Callable[[int], slice] = slice
    block: BlockKey | None = None
    kept: dict[BlockKey, KeysValues] = field(default_factory=dict)

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Raises AllKept at the last of the blocks."""
        assert self.block is not None
        if self.block in self.blocks:
            tokens = self.picture(k.shape[1])
            self.kept[self.block] = KeysValues(k[:, tokens], v[:, tokens])
        if self.block == self.blocks[-1]:
            raise AllKept
        return attention(q, k, v, mask)


@dataclass
class Append:
    """Self-attention of a run: each row also attends to the references of its side.

    The rows are equal chunks, one for each entry of `sides`, which says which side's references a chunk
    listens to, if any. `weights` holds the weight of equation 2 for each side that takes part; each of the
    `blocks` multiplies it by its own, and others do not listen. Of each chunk the last `exploring`, a share of its
    rows, do not listen either; what they get is the plain model's bit for bit if the attention's result for a row
    does not depend on how many rows there are.
    """

    bank: Bank
    weights: Mapping[int, float]
    sides: Sequence[int | None]
    blocks: Mapping[BlockKey, float]
    exploring: Fraction = Fraction(0)
    block: BlockKey | None = None

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is the call's own; the references' tokens are added behind it."""
        assert self.block is not None
        depth = self.blocks.get(self.block, 0.0)
        references = {side: joined for side, joined in self.bank.get(self.block, {}).items() if side in self.weights}
        chunk = q.shape[0] // len(self.sides)
        plain = int(chunk * self.exploring)
        listeners = (((side if side in references else None, chunk - plain), (None, plain)) for side in self.sides)
        outputs, start = [], 0
        for side, parts in itertools.groupby(itertools.chain.from_iterable(listeners), key=lambda part: part[0]):
            rows = slice(start, start := start + sum(count for _, count in parts))
            if rows.start == rows.stop:
                continue
            weight = depth * self.weights.get(side, 0.0)
            own = mask[rows] if mask is not None and mask.ndim > 2 and len(mask) == len(q) else mask
            joined = references.get(side)
            outputs.append(attend_to_references(attention, q[rows], k[rows], v[rows], joined, weight, own))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_to_references(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    joined: Joined | None,
    weight: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of [rows, tokens, channels] to its own tokens and, by equation 2, to the references'.

    `mask` is for its own tokens: a term of the logits, or false where they do not count.
    """
    if joined is None:
        return attention(q, k, v, mask)
    keys = torch.cat((k, joined.keys.expand(k.shape[0], -1, -1)), dim=1)
    values = torch.cat((v, joined.values.expand(v.shape[0], -1, -1)), dim=1)
    weights = [(tokens, weight * own) for tokens, own in joined.pictures]
    logits = log_weight_mask(k.shape[1], weights, q)
    return attention(q, keys, values, logits if mask is None else lengthen_mask(mask, keys.shape[1], logits))


def lengthen_mask(mask: Tensor, keys: int, logits: Tensor | None) -> Tensor:
    """A mask [..., queries, own keys] for all `keys`, of which those behind its own all count; plus `logits`."""
    if mask.dtype == torch.bool:
        if logits is None:
            return F.pad(mask, (0, keys - mask.shape[-1]), value=True)
        mask = torch.zeros_like(mask, dtype=logits.dtype).masked_fill(~mask, -math.inf)
    mask = F.pad(mask, (0, keys - mask.shape[-1]))
    return mask if logits is None else mask + logits


def log_weight_mask(own: int, weights: Sequence[tuple[int, float]], like: Tensor) -> Tensor | None:
    """Equation 2 as a term of the logits: [1, 1, keys], 0 for the `own` first keys, then the log of each weight for
    its number of keys.

    None where all weights are 1, where it would be zero everywhere. Dtype and device are those of `like`.
    """
    if all(weight == 1.0 for _, weight in weights):
        return None
    mask = torch.zeros(1, 1, own + sum(tokens for tokens, _ in weights), dtype=like.dtype, device=like.device)
    start = own
    for tokens, weight in weights:
        mask[..., start : start + tokens] = math.log(weight)
        start += tokens
    return mask


def merge_tokens(
    kept: Mapping[BlockKey, KeysValues], count: int, size: tuple[int, int], above: int
) -> dict[BlockKey, KeysValues]:
    """What a pass of `count` references of `size`, latent height and width, kept, with fewer tokens.

    Where a self-attention has more than `above` tokens for a picture, each square of 2 x 2 becomes one: the mean of its
    keys and of its values, whose logit gets the log of how many it stands for, as in token merging (arXiv 2210.09461,
    section 3). So attention over them costs a quarter, and is exact where the four agree. Attentions whose tokens are
    no plain grid of the picture, such as those of a patch that tiles it, stay as they are.
    """
    return {block: _merged(parts, count, size, above) for block, parts in kept.items()}


def _merged(parts: KeysValues, count: int, size: tuple[int, int], above: int) -> KeysValues:
    rows, tokens, _ = parts.keys.shape
    grids = ([math.ceil(side / step) for side in size] for step in (1, 2, 4, 8, 16))
    grid = next((grid for grid in grids if math.prod(grid) == tokens), None)
    if rows != count or tokens <= above or grid is None:
        return parts
    keys, values = (
        F.avg_pool2d(part.mT.unflatten(-1, grid), 2, ceil_mode=True, count_include_pad=False).flatten(2).mT
        for part in (parts.keys, parts.values)
    )
    return KeysValues(keys, values, tokens / keys.shape[1])


def split_capture(kept: Mapping[BlockKey, KeysValues], count: int) -> list[dict[BlockKey, KeysValues]]:
    """What a pass of `count` references kept, by reference, each as one row of tokens.

    A patch that tiles the picture has several rows for each reference, side by side.
    """
    items = kept.items()
    return [
        {block: KeysValues(_one_row(k.chunk(count)[i]), _one_row(v.chunk(count)[i]), n) for block, (k, v, n) in items}
        for i in range(count)
    ]


def join_references(kept: Iterable[tuple[Reference, Mapping[BlockKey, KeysValues]]]) -> Bank:
    """Put the keys and values of a side's references into one row of tokens, for each block."""
    bank: dict[BlockKey, dict[int, list[tuple[Tensor, Tensor, float]]]] = {}
    for reference, blocks in kept:
        for block, (k, v, each) in blocks.items():
            bank.setdefault(block, {}).setdefault(reference.side, []).append((k, v, reference.weight * each))
    return {block: {side: _join(parts) for side, parts in sides.items()} for block, sides in bank.items()}


def _join(parts: Sequence[tuple[Tensor, Tensor, float]]) -> Joined:
    keys, values, weights = zip(*parts, strict=True)
    return Joined(_chain(keys), _chain(values), tuple((k.shape[1], w) for k, w in zip(keys, weights, strict=True)))


def _one_row(tokens: Tensor) -> Tensor:
    return tokens.reshape(1, -1, tokens.shape[-1])


def _chain(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)
