"""InstructPix2Pix fine-tuning: a text-to-image UNet learns to edit by instruction (arXiv 2211.09800, section 3.2).

The first convolution gets four more input channels with zero weights, which take the VAE latent of the picture to edit,
so training starts at the model as it was. One picture and instruction in twenty loses its instruction, one its picture
and one both; guidance with two scales needs all of these (equation 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .denoising import Sampling, denoising_errors

DROPOUT = 0.05
"""How many samples lose only their instruction, how many only their picture, and how many both."""

FIRST = "input_blocks.0.0.weight"
"""The host's name of a UNet's first convolution."""

Encode = Callable[[Sequence[str]], Mapping[str, Any]]
"""What a UNet takes beside the latent and the step for these instructions, such as `context` [N, tokens, width]."""


@dataclass(frozen=True)
class EditLatents:
    """Pictures before and after an edit, as latents, and what was said.

    before: [N, channels, H, W] as the VAE gives them, which is what the host shows the UNet.
    after: [N, channels, H, W] in the model's own scale.
    """

    before: Tensor
    after: Tensor
    instructions: Sequence[str]

    def __post_init__(self) -> None:
        if self.before.shape != self.after.shape or len(self.before) != len(self.instructions):
            raise ValueError("Each edit needs a picture before, one after of the same size, and an instruction.")
        if not len(self.before):
            raise ValueError("There is no edit to learn from.")


def widen(weight: Tensor, channels: int = 4) -> Tensor:
    """A first convolution's weight [out, in, kh, kw] with `channels` more inputs, whose weights are zero."""
    return torch.cat([weight, weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])], 1)


def dropped(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` samples lose their instruction and which their picture: bools [count] each."""
    roll = rng.random(count)
    text = (roll < DROPOUT) | ((roll >= 2 * DROPOUT) & (roll < 3 * DROPOUT))
    return text, (roll >= DROPOUT) & (roll < 3 * DROPOUT)


def edit_loss(
    unet: nn.Module,
    sampling: Sampling,
    data: EditLatents,
    encode: Encode,
    rng: np.random.Generator,
    batch: int,
    precision: torch.dtype | None = torch.bfloat16,
) -> dict[str, Tensor]:
    """The loss of a random batch, in whatever the UNet predicts, be it noise or velocity.

    `precision` is that of autocast, None for none.
    """
    picks = rng.integers(0, len(data.before), batch)
    no_text, no_image = dropped(rng, batch)
    device = next(unet.parameters()).device
    latent, image = (part[torch.from_numpy(picks)].to(device, torch.float32) for part in (data.after, data.before))
    image = image * torch.from_numpy(~no_image).to(device, torch.float32).view(-1, 1, 1, 1)
    texts = ["" if lost else data.instructions[pick] for pick, lost in zip(picks, no_text, strict=True)]

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        with contextlib.nullcontext() if precision is None else torch.autocast(device.type, precision):
            return unet(torch.cat([noisy, image], 1), timestep, **encode(texts))

    error, weight = denoising_errors(sampling, latent, rng, predict)
    seen = torch.from_numpy(~(no_text | no_image)).to(device)
    return {"loss": (error * weight).mean(), "told_and_shown": error[seen].mean().nan_to_num()}
