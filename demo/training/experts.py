"""The experts: low-rank fine-tunes (LoRA, arXiv 2106.09685) of the base UNet, one for each style it is weak at."""

from __future__ import annotations

from pathlib import Path

import torch
from assemble import EXPERTS
from torch.nn.utils import parametrize

from .host import device
from .loop import train
from .text import Tokens
from .unet import TinySD, alphas, make_pictures, velocity_loss

RANK, STEPS, BATCH, PEAK, PICTURES = 12, 600, 16, 1e-3, 2000
SEED = 31
"""Of the first expert; each next one has the next number."""


class LowRank(torch.nn.Module):
    """A weight plus `up @ down`, shaped like the weight; `up` starts at zero, so training starts at the base."""

    def __init__(self, weight: torch.Tensor, rank: int = RANK) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = torch.nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = torch.nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def load_base(work: Path, rows: int) -> TinySD:
    model = TinySD(rows)
    model.load_state_dict(torch.load(work / "unet.pt", weights_only=True)["mean"])
    return model.to(device())


def add_low_rank(unet: torch.nn.Module) -> None:
    """Puts a trainable LowRank on each linear and convolution weight."""
    for layer in list(unet.modules()):
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def train_expert(style: str, work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains the low-rank weights on pictures of one style alone; all else is frozen.

    Returns `{layer}.up` [out, rank] and `{layer}.down` [rank, in * kernel] for each layer of the UNet.
    """
    seed = SEED + EXPERTS.index(style)
    tokens = Tokens()
    torch.manual_seed(seed)
    model = load_base(work, len(tokens)).requires_grad_(False)
    add_low_rank(model.unet)
    data = make_pictures(work, style, PICTURES, {style: 1.0}, seed)
    schedule = alphas().to(device())
    weights = train(
        style,
        model,
        lambda step, rng: velocity_loss(model, tokens, data, schedule, rng, BATCH),
        steps=steps,
        peak=PEAK,
        work=work,
        seed=seed,
        weight_decay=0.0,
        average=0.99,
    )
    mark = ".parametrizations.weight.0."
    return {k.removeprefix("unet.").replace(mark, "."): v for k, v in weights.items() if mark in k}
