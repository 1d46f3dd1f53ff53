"""LLM4GEN's Cross-Adapter Module: features of a language model beside the text encoder's (arXiv 2407.00737).

The features of the language model ask (queries), those of the text encoder answer (keys and values). What comes out is
appended to the text encoder's tokens, which stay as they are. Parameters have the names and shapes of the released
SD1.5 file, in which `q_norm` belongs to the text encoder and `kv_norm` to the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .layout import check_layout

HEADS = 8
"""Heads of the released file, which does not say them."""

PREFIX = "CrossFusionModule."


@dataclass(frozen=True)
class AdapterShape:
    """The widths of a Cross-Adapter: `llm_width` in, `text_width` out."""

    llm_width: int
    text_width: int
    heads: int = HEADS
    layers: int = 1

    def __post_init__(self) -> None:
        if min(self.llm_width, self.text_width, self.heads, self.layers) < 1 or self.text_width % self.heads:
            raise ValueError(f"A width of {self.text_width} cannot be shared by {self.heads} heads.")


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossFusion(nn.Module):
    """One layer of the adapter (equations 3 to 5 of the paper, as in the released code)."""

    def __init__(self, shape: AdapterShape) -> None:
        super().__init__()
        width = shape.text_width
        self.heads = shape.heads
        self.llm_proj = nn.Linear(shape.llm_width, width)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.kv_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.FFN = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))

    def forward(self, text: Tensor, llm: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fused tokens [B, M, width] from text [B, N, width] and language model features [B, M, llm_width].

        `mask` [B, N] is False where a text token is not to be looked at.
        """
        llm, text = self.llm_proj(llm), self.q_norm(text)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(self.kv_norm(llm)), self.k_proj(text), self.v_proj(text))
        )
        seen = None if mask is None else mask[:, None, None, :]
        found = scaled_dot_product_attention(query, key, value, attn_mask=seen)
        llm = llm + self.out_proj(found.transpose(1, 2).flatten(2))
        return llm + self.FFN(self.norm(llm))


class CrossAdapter(nn.Module):
    """The adapter: text [B, N, text_width] and features [B, M, llm_width] to [B, N + layers * M, text_width]."""

    def __init__(self, shape: AdapterShape) -> None:
        super().__init__()
        self.shape = shape
        self.llm_width, self.text_width = shape.llm_width, shape.text_width
        self.CrossFusionModule = nn.ModuleList(CrossFusion(shape) for _ in range(shape.layers))

    def forward(self, text: Tensor, llm: Tensor, strength: float = 1.0, mask: Tensor | None = None) -> Tensor:
        """The text's tokens, and behind them those of the language model times `strength`.

        `strength` is λ of the paper's figure 3, which the released code does not have: 1 is the released behaviour.
        Each layer looks at the tokens of the layers before it. At 0 the tokens of the language model are zero; use
        the text alone where it is to be as if there were no adapter. `mask` [B, N] is as in `CrossFusion`.

        Raises:
            ValueError: A width is not the adapter's.
        """
        for what, given, wanted in (
            ("text encoder", text.shape[-1], self.shape.text_width),
            ("language model", llm.shape[-1], self.shape.llm_width),
        ):
            if given != wanted:
                raise ValueError(f"The adapter is made for a {what} of width {wanted}, and this one's is {given}.")
        for layer in self.CrossFusionModule:
            fused = layer(text, llm, mask) * strength
            text = torch.cat([text, fused], 1)
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(fused.shape[:2])], 1)
        return text


def is_cross_adapter(state: Mapping[str, Tensor]) -> bool:
    """Whether the weights have the names of a Cross-Adapter."""
    return any(name.startswith(PREFIX) for name in state)


def read_adapter(state: Mapping[str, Tensor], heads: int = HEADS) -> CrossAdapter:
    """The adapter of these weights, float32.

    Raises:
        ValueError: Tensors are missing, unknown or of another shape. The text names them.
    """
    first = state.get(f"{PREFIX}0.llm_proj.weight")
    if first is None or first.ndim != 2:
        raise ValueError(f"This is no Cross-Adapter: it has no {PREFIX}0.llm_proj.weight.")
    numbers = {name.removeprefix(PREFIX).partition(".")[0] for name in state if name.startswith(PREFIX)}
    shape = AdapterShape(first.shape[1], first.shape[0], heads, len(numbers))
    adapter = CrossAdapter(shape)
    check_layout(state, {name: weight.shape for name, weight in adapter.state_dict().items()}, "a Cross-Adapter")
    adapter.load_state_dict({name: value.float() for name, value in state.items()})
    return adapter.eval().requires_grad_(False)
