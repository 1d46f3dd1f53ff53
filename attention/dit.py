"""FABRIC on transformers that attend to text and picture at once (DiT families), experimental.

Source: the method of arXiv 2307.10159, which is written for UNets. There a self-attention holds the picture's tokens
alone. Here text and picture share one attention, so of a reference's keys and values only those of its picture are
kept; the text, which is the empty prompt, and padding are left out. All of the run's tokens listen, text too. Keys are
kept after norm and rotary position, so a reference lies at the place in the picture at which it was read.

The four families have the text's tokens first, then the picture's, then padding in Lumina's (Z-Image). Pictures that an
editing model reads come behind the new picture, but there are none when a reference is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .reference import BlockKey


@dataclass(frozen=True)
class TokenOrder:
    """Where a picture's tokens are: at the end, in patches of `patch` latent pixels, filled up to a multiple of
    `multiple` tokens."""

    patch: int
    multiple: int = 1

    def picture(self, tokens: int, shape: Sequence[int]) -> slice:
        """The tokens of a picture of latent shape [..., channels, (frames,) height, width] among all `tokens`."""
        frames = shape[-3] if len(shape) == 5 else 1
        count = frames * math.prod(math.ceil(side / self.patch) for side in shape[-2:])
        start = tokens - math.ceil(count / self.multiple) * self.multiple
        return slice(start, start + count)


def block_depths(blocks: Iterable[BlockKey]) -> dict[BlockKey, float]:
    """The depth of each block, in the order in which they run: 0 at both ends of the network, 1 in the middle.

    These models have one resolution, so depth goes by place.
    """
    blocks = list(blocks)
    places = list(dict.fromkeys(block[:2] for block in blocks))
    last = len(places) - 1
    return {block: 1.0 - abs(2.0 * places.index(block[:2]) / last - 1.0) if last else 1.0 for block in blocks}


def next_block(options: Mapping[str, Any], before: BlockKey | None) -> BlockKey | None:
    """The name of an attention by the block that the host says it is in, counted within the block.

    `before` is the attention before it in the same call of the model. None outside of blocks, as in layers that
    refine text and picture apart.
    """
    if "block_index" not in options:
        return None
    place = (options["block_type"], options["block_index"])
    return (*place, before[2] + 1 if before is not None and before[:2] == place else 0)


def merge_heads(tokens: Tensor, heads_first: bool) -> Tensor:
    """[rows, heads, tokens, channels] or [rows, tokens, (heads,) channels] as [rows, tokens, heads * channels]."""
    return (tokens.transpose(1, 2) if heads_first else tokens).flatten(2)
