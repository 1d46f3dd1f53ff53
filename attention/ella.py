"""ELLA's timestep-aware semantic connector (arXiv 2403.05135, section 3.2) as a pure tensor module.

A resampler draws a fixed number of tokens for the UNet's cross-attention out of the features of a language model.
Its layer norms are scaled and shifted by the timestep, so that early steps can take other features than late ones.
Module names are those of the released weights: `connector.*` and `time_embedding.*`, 93 tensors for SD1.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import check_layout

MAX_PERIOD = 10000.0
LATENTS = "connector.latents"
PROJECTION = "connector.proj_in.weight"
TIME = "time_embedding.linear_1.weight"
BLOCKS = "connector.perceiver_blocks."


def sinusoids(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding of timesteps [B]: float32 [B, channels], cosines in the first half, then sines."""
    half = channels // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep through two layers: [B] to [B, width]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        position = sinusoids(timesteps, self.linear_1.in_features).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(position)))


class AdaLayerNorm(nn.Module):
    """Layer norm of x [B, N, width] without weights of its own; the timestep gives shift and scale."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_width, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.linear(F.silu(time))[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class FeedForward(nn.Module):
    """Two layers with squared ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class PerceiverBlock(nn.Module):
    """The latents look at themselves and at the text together, then go through a feed-forward layer."""

    def __init__(self, width: int, time_width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = FeedForward(width)
        self.ln_1 = AdaLayerNorm(width, time_width)
        self.ln_2 = AdaLayerNorm(width, time_width)
        self.ln_ff = AdaLayerNorm(width, time_width)

    def forward(self, latents: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """latents [B, L, width], text [B, M, width] and time [B, time_width] give latents [B, L, width]."""
        queries = self.ln_1(latents, time)
        keys = torch.cat([queries, self.ln_2(text, time)], dim=1)
        latents = latents + self.attn(queries, keys, keys, need_weights=False)[0]
        return latents + self.mlp(self.ln_ff(latents, time))


class Connector(nn.Module):
    """Learned latents, moved by the timestep, that go through the blocks with the projected text."""

    def __init__(self, llm_width: int, width: int, time_width: int, latents: int, layers: int, heads: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.time_aware_linear = nn.Linear(time_width, width)
        self.proj_in = nn.Linear(llm_width, width)
        self.perceiver_blocks = nn.ModuleList(PerceiverBlock(width, time_width, heads) for _ in range(layers))

    def forward(self, llm: Tensor, time: Tensor) -> Tensor:
        text = self.proj_in(llm)
        latents = self.latents + self.time_aware_linear(F.silu(time))[:, None]
        for block in self.perceiver_blocks:
            latents = block(latents, text, time)
        return latents


class TimeResampler(nn.Module):
    """The whole of ELLA besides its language model. `read_ella` makes one from weights."""

    def __init__(
        self,
        llm_width: int,
        text_width: int,
        latents: int,
        layers: int,
        time_width: int,
        time_channels: int,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.llm_width = llm_width
        self.text_width = text_width
        self.connector = Connector(llm_width, text_width, time_width, latents, layers, heads)
        self.time_embedding = TimeEmbedding(time_channels, time_width)

    def forward(self, llm: Tensor, timesteps: Tensor) -> Tensor:
        """Tokens for cross-attention at the given timesteps.

        Args:
            llm: Features of the language model [B, M, llm_width].
            timesteps: [B], in the units of the training schedule, 0 to 999; may be fractional.

        Returns:
            [B, latents, text_width] in the dtype of the weights.
        """
        return self.connector(llm.to(self.connector.latents.dtype), self.time_embedding(timesteps))


def is_ella(state: Mapping[str, Tensor]) -> bool:
    """Whether a file's tensors look like those of ELLA, complete or not."""
    return LATENTS in state or any(name.startswith(BLOCKS) for name in state)


def read_ella(state: Mapping[str, Tensor], heads: int = 8) -> TimeResampler:
    """The resampler of a file with ELLA's layout, whatever its widths, blocks and number of latents.

    The tensors are taken as they are, not copied: `state_dict()` of the result equals `state`.

    Args:
        state: Name to tensor.
        heads: Attention heads. They leave no trace in the tensors; the released weights have 8.

    Raises:
        ValueError: A tensor is missing, unknown or of the wrong shape, or the width does not divide by the heads.
    """
    for name in (LATENTS, PROJECTION, TIME):
        if name not in state:
            raise ValueError(f"{name} is missing: this is no complete file of ELLA weights.")
        if state[name].ndim != 2:
            raise ValueError(f"{name} has the shape {list(state[name].shape)}, wanted two dimensions.")
    latents, width = state[LATENTS].shape
    if width % heads:
        raise ValueError(f"{LATENTS} has the width {width}, which does not divide by {heads} heads.")
    time_width, time_channels = state[TIME].shape
    layers = len({name.removeprefix(BLOCKS).partition(".")[0] for name in state if name.startswith(BLOCKS)})
    with torch.device("meta"):
        module = TimeResampler(state[PROJECTION].shape[1], width, latents, layers, time_width, time_channels, heads)
    check_layout(state, {name: tensor.shape for name, tensor in module.state_dict().items()}, "ELLA")
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()
