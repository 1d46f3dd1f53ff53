"""A GPT-2 that reads on, token by token, for many beams, without what a general cache and mask cost at each step.

transformers' own forward spends more time around a small model than in it. Here the model's modules are called one
after the other, as in the paper of GPT-2 and in transformers' GPT2Model; the keys and values of what was read are
kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class Reading:
    """What a GPT-2 has read so far; a row for each text, all of the same length."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.model = model
        self.length = 0
        self._kept: list[Tensor] = []  # for each layer: keys and values [2, rows, heads, length, width of a head]
        config = model.config
        usual = (config.hidden_size // config.num_attention_heads) ** -0.5 if config.scale_attn_weights else 1.0
        by_layer = config.scale_attn_by_inverse_layer_idx
        self._scales = [usual / (layer + 1 if by_layer else 1) for layer in range(config.num_hidden_layers)]

    @torch.inference_mode()
    def first(self, tokens: list[int]) -> Tensor:
        """Log-probabilities [vocabulary] of what comes after the tokens of a text."""
        return self._read(torch.tensor([tokens], device=self.model.device))[0]

    @torch.inference_mode()
    def step(self, rows: Tensor, words: Tensor) -> Tensor:
        """The rows [n] that go on, each with its next token [n]; log-probabilities [n, vocabulary] of what follows."""
        self._kept = [kept.index_select(1, rows) for kept in self._kept]
        return self._read(words[:, None])

    def _read(self, words: Tensor) -> Tensor:
        body, count = self.model.transformer, words.shape[1]
        hidden = body.wte(words) + body.wpe.weight[self.length : self.length + count]
        self.length += count
        for layer, block in enumerate(body.h):
            hidden = hidden + block.attn.c_proj(self._attention(layer, block.attn.c_attn(block.ln_1(hidden))))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        return self.model.lm_head(body.ln_f(hidden[:, -1])).float().log_softmax(dim=-1)

    def _attention(self, layer: int, projected: Tensor) -> Tensor:
        """Causal attention [rows, new, width] over all that was read, from the new tokens' [rows, new, 3 · width]."""
        rows, count, width = projected.shape
        heads = self.model.config.num_attention_heads
        new = projected.view(rows, count, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        first = layer == len(self._kept)
        if first:
            self._kept.append(new[1:])
        else:
            self._kept[layer] = torch.cat([self._kept[layer], new[1:]], dim=3)
        key, value = self._kept[layer]
        found = scaled_dot_product_attention(new[0], key, value, is_causal=first, scale=self._scales[layer])
        return found.transpose(1, 2).reshape(rows, count, width // 3)
