"""One edit by a UNet in training, to look at: equation 3 of InstructPix2Pix (arXiv 2211.09800) and Euler's method."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ..attention.guidance import FULL, NEITHER, PICTURE, combine
from .denoising import Sampling
from .instruct_pix2pix import Encode

STEPS, TEXT_SCALE, IMAGE_SCALE, SEED = 12, 7.5, 1.5, 0
"""The scales are the paper's defaults."""


def sample_edit(unet: nn.Module, sampling: Sampling, before: Tensor, instruction: str, encode: Encode) -> Tensor:
    """What the UNet makes of `before` [1, channels, H, W], told the instruction: a latent in the model's own scale.

    The same noise each time, so that two answers differ by the weights alone.
    """
    device = next(unet.parameters()).device
    before = before.to(device, torch.float32)
    image = torch.cat([before, before, torch.zeros_like(before)])
    told = encode([instruction, "", ""])
    picks = torch.linspace(len(sampling.sigmas) - 1, 0, STEPS).round().long()
    sigmas = [*sampling.sigmas[picks.to(sampling.sigmas.device)], sampling.sigmas.new_zeros(())]
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(SEED)).to(device)
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(before))
    for sigma, following in itertools.pairwise(sigmas):
        level, rows = sigma.expand(3), x.expand(3, -1, -1, -1)
        shown = torch.cat([sampling.calculate_input(level, rows), image], 1)
        output = unet(shown, sampling.timestep(level).float(), **told).float()
        answers = sampling.calculate_denoised(level, output, rows).chunk(3)
        denoised = combine(dict(zip((FULL, PICTURE, NEITHER), answers, strict=True)), TEXT_SCALE, IMAGE_SCALE)
        x = x + (x - denoised) / sigma * (following - sigma)
    return x
