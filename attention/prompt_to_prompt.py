"""Prompt-to-Prompt: a picture drawn again under another prompt, with the attention maps of the first.

Source: Hertz, Mokady, Tenenbaum, Aberman, Pritch, Cohen-Or, "Prompt-to-Prompt Image Editing with Cross Attention
Control", arXiv 2208.01626, section 3.2, and Brooks, Holynski, Efros, "InstructPix2Pix", arXiv 2211.09800, section
3.1.2, whose data come from it. Source and target start from the same noise and are drawn in one batch. In the first
steps the target takes maps of the source and keeps its own values:

- Self-attention: the whole map. This is what the data generator of InstructPix2Pix does, in positive and negative rows.
- Cross-attention: the maps of the words that both prompts have, and of a word that another one takes the place of.

Design:
- A self-attention map is softmax(q k^T), so the source's queries and keys are put in the target's place, and any
  attention backend can compute it.
- A cross-attention with some maps of the source is linear in its values: the target's attention to the values of its
  own words, plus the source's attention to the values of the shared words, each at the place of the source's word.
  As in the paper, the maps are not normalised again.
- Rows of one conditioning are [sources..., targets...]: with n pairs, row i and row i + n belong together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import torch
from torch import Tensor

from .reference import Attention


@dataclass(frozen=True, eq=False)
class WordMaps:
    """The pairs that share maps of words: the rows of their `sources` and `targets` [pairs], and how much of the map
    of a word before goes to a word after, `moved` [pairs, words before, words after], from `align_tokens`."""

    sources: Tensor
    targets: Tensor
    moved: Tensor


@dataclass
class SharedMaps:
    """What the rows of one model call share. `running` is the attention that the model computes now.

    `source_rows` [rows] is for each row the row whose self-attention map it takes, itself for most.
    """

    source_rows: Tensor | None
    words: WordMaps | None
    running: Literal["self", "cross"] | None = None

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of [rows, tokens, channels], with the maps that are shared in it."""
        if self.running == "self" and self.source_rows is not None:
            return attention(with_rows(q, self.source_rows), with_rows(k, self.source_rows), v, None)
        if self.running == "cross" and self.words is not None:
            return with_word_maps(attention, q, k, v, self.words)
        return attention(q, k, v, None)


def step_of(sigma: float, sigmas: Sequence[float]) -> int:
    """The step that a call at `sigma` belongs to; `sigmas` are the run's falling noise levels, one more than steps.

    A level between two of them belongs to the step that begins above it.
    """
    return max(0, sum(level >= sigma * (1 - 1e-4) for level in sigmas[:-1]) - 1)


def is_shared(share: float, step: int, steps: int) -> bool:
    """Whether `step` is in the first `share` of the steps, to the nearest whole number of them."""
    return (step + 0.5) / steps < share


def rows_of_sources(sharing: Sequence[bool], chunks: int) -> Tensor:
    """For the rows of `chunks` equal chunks of pairs, the row whose map each takes: [chunks * 2 * pairs].

    `sharing` says which pairs share.
    """
    pairs = len(sharing)
    rows = torch.arange(2 * pairs)
    rows[pairs:] -= pairs * torch.tensor(sharing).long()
    return (2 * pairs * torch.arange(chunks)[:, None] + rows).flatten()


def with_rows(x: Tensor, rows: Tensor) -> Tensor:
    """`x` [rows * tiles, tokens, channels] with other rows in their places; a row may be cut into tiles.

    Raises:
        ValueError: `x` does not have these rows.
    """
    if len(x) % len(rows):
        raise ValueError(
            f"Prompt-to-Prompt pairs {len(rows)} rows, and a self-attention came with {len(x)}. Another patch of the "
            "model splits the batch: apply Prompt-to-Prompt after it."
        )
    return x.unflatten(0, (len(rows), -1))[rows].flatten(0, 1)


def with_word_maps(attention: Attention, q: Tensor, k: Tensor, v: Tensor, words: WordMaps) -> Tensor:
    """Cross-attention where the targets have some words' maps from their sources.

    The text's tokens may be there several times in a row, as where prompts of unequal length share a call.

    Raises:
        ValueError: The text has another number of tokens than the alignment.
    """
    before, after = words.moved.shape[1:]
    if before != after or k.shape[1] % before:
        raise ValueError(
            f"The alignment of words is from {before} to {after} tokens, and the prompts have {k.shape[1]}. Make it "
            "from the prompts that are drawn, both with the same number of tokens."
        )
    moved = words.moved.to(v).unsqueeze(1)
    values = v[words.targets].unflatten(1, (-1, before))
    own = v.clone()
    own[words.targets] = (values * (1 - moved.sum(2)).unsqueeze(-1)).flatten(1, 2)
    out = attention(q, k, own, None)
    out[words.targets] += attention(q[words.sources], k[words.sources], (moved @ values).flatten(1, 2), None)
    return out


def align_tokens(before: Sequence[Hashable], after: Sequence[Hashable]) -> Tensor:
    """How much of each token's map goes to each token of the other prompt: [tokens before, tokens after], 0..1.

    Tokens that both have in the same order go together. Tokens in the place of others get their maps one by one, or
    the mean of them where there are more or fewer. A token that is new gets none and keeps its own map.
    """
    moved = torch.zeros(len(before), len(after))
    for _, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if i_end - i == j_end - j:
            moved[range(i, i_end), range(j, j_end)] = 1.0
        elif i < i_end:
            moved[i:i_end, j:j_end] = 1.0 / (i_end - i)
    return moved
