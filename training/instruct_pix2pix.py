"""InstructPix2Pix fine-tuning: a text-to-image UNet learns to edit by instruction (arXiv 2211.09800, section 3.2).

The first convolution gets four more input channels with zero weights, which take the VAE latent of the picture to edit,
so training starts at the model as it was. One picture and instruction in twenty loses its instruction, one its picture
and one both; guidance with two scales needs all of these (equation 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

DROPOUT = 0.05
"""How many samples lose only their instruction, how many only their picture, and how many both."""

LOW_NOISE_CAP = 5.0
"""The loss at low noise is weighed down as in min-SNR (arXiv 2303.09556), which has this number."""

FIRST = "input_blocks.0.0.weight"
"""The host's name of a UNet's first convolution."""

Encode = Callable[[Sequence[str]], Mapping[str, Any]]
"""What a UNet takes beside the latent and the step for these instructions, such as `context` [N, tokens, width]."""


class Sampling(Protocol):
    """The part of the host's `model_sampling` that training needs. Sigmas [N] are of its own noise scale."""

    sigmas: Tensor

    def sigma(self, timestep: Tensor) -> Tensor: ...
    def timestep(self, sigma: Tensor) -> Tensor: ...
    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor: ...
    def calculate_input(self, sigma: Tensor, noisy: Tensor) -> Tensor: ...
    def calculate_denoised(self, sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor: ...


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

    The host's `calculate_denoised` is affine in the output, denoised = a - b · output, so the output that would be
    right is (a - latent) / b. `precision` is that of autocast, None for none.
    """
    picks = rng.integers(0, len(data.before), batch)
    no_text, no_image = dropped(rng, batch)
    device = next(unet.parameters()).device
    latent, image = (part[torch.from_numpy(picks)].to(device, torch.float32) for part in (data.after, data.before))
    image = image * torch.from_numpy(~no_image).to(device, torch.float32).view(-1, 1, 1, 1)
    texts = ["" if lost else data.instructions[pick] for pick, lost in zip(picks, no_text, strict=True)]
    sigma = sampling.sigma(torch.from_numpy(rng.integers(0, len(sampling.sigmas), batch)).to(device))
    noisy = sampling.noise_scaling(sigma, torch.randn_like(latent), latent)
    start = sampling.calculate_denoised(sigma, torch.zeros_like(noisy), noisy)
    slope = start - sampling.calculate_denoised(sigma, torch.ones_like(noisy), noisy)
    cast = contextlib.nullcontext() if precision is None else torch.autocast(device.type, precision)
    with cast:
        shown = torch.cat([sampling.calculate_input(sigma, noisy), image], 1)
        output = unet(shown, sampling.timestep(sigma).float(), **encode(texts)).float()
    error = ((output - (start - latent) / slope) ** 2).mean((1, 2, 3))
    weight = ((LOW_NOISE_CAP + 1) * slope.square().mean((1, 2, 3))).clamp(max=1)
    seen = torch.from_numpy(~(no_text | no_image)).to(device)
    return {"loss": (error * weight).mean(), "told_and_shown": error[seen].mean().nan_to_num()}
