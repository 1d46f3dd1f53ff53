"""A diffusion model in training: its loss on a random batch, and latents that it draws to look at.

Both go by the host's own noise levels, whatever the model predicts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

LOW_NOISE_CAP = 5.0
"""The loss at low noise is weighed down as in min-SNR (arXiv 2303.09556), which has this number."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""What the model says, from the scaled input [N, C, H, W] and the timestep [N]."""

Correct = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What the model is to say, from the scaled input, the timestep, and what the latent itself asks for [N, C, H, W]."""


class Sampling(Protocol):
    """The part of the host's `model_sampling` that training needs. Sigmas [N] are of its own noise scale."""

    sigmas: Tensor

    def sigma(self, timestep: Tensor) -> Tensor: ...
    def timestep(self, sigma: Tensor) -> Tensor: ...
    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor: ...
    def calculate_input(self, sigma: Tensor, noisy: Tensor) -> Tensor: ...
    def calculate_denoised(self, sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor: ...


def denoising_errors(
    sampling: Sampling, latent: Tensor, rng: np.random.Generator, predict: Predict, correct: Correct | None = None
) -> tuple[Tensor, Tensor]:
    """The squared error of each latent [N, C, H, W] at a random noise level, and its weight: [N] each.

    The host's `calculate_denoised` is affine in the output, denoised = a - b · output, so the output that would be
    right is (a - latent) / b, be it noise or velocity. `correct` may put another in its place.
    """
    number = torch.from_numpy(rng.integers(0, len(sampling.sigmas), len(latent))).to(latent.device)
    sigma = sampling.sigma(number)
    noisy = sampling.noise_scaling(sigma, torch.randn_like(latent), latent)
    start = sampling.calculate_denoised(sigma, torch.zeros_like(noisy), noisy)
    slope = start - sampling.calculate_denoised(sigma, torch.ones_like(noisy), noisy)
    shown, timestep = sampling.calculate_input(sigma, noisy), sampling.timestep(sigma).float()
    wanted = (start - latent) / slope
    if correct is not None:
        wanted = correct(shown, timestep, wanted)
    error = ((predict(shown, timestep).float() - wanted) ** 2).mean((1, 2, 3))
    return error, ((LOW_NOISE_CAP + 1) * slope.square().mean((1, 2, 3))).clamp(max=1)


def euler(
    sampling: Sampling,
    shape: Sequence[int],
    steps: int,
    seed: int,
    device: torch.device,
    denoised: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """A latent of this shape, drawn from noise by Euler's method in equal steps of the model's own noise levels.

    The same noise each time, so that two answers differ by the weights alone.

    Args:
        denoised: what is to be left of a noisy latent, the second argument, at a noise level [], the first.
    """
    picks = torch.linspace(len(sampling.sigmas) - 1, 0, steps).round().long()
    sigmas = [*sampling.sigmas[picks.to(sampling.sigmas.device)], sampling.sigmas.new_zeros(())]
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(device)
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise))
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (x - denoised(sigma, x)) / sigma * (following - sigma)
    return x
