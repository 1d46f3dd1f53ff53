"""One edit by a UNet in training, to look at: equation 3 of InstructPix2Pix (arXiv 2211.09800) and Euler's method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention.guidance import FULL, NEITHER, PICTURE, combine
from .denoising import Sampling, euler
from .instruct_pix2pix import Encode

STEPS, TEXT_SCALE, IMAGE_SCALE, SEED = 12, 7.5, 1.5, 0
"""The scales are the paper's defaults."""


def sample_edit(unet: nn.Module, sampling: Sampling, before: Tensor, instruction: str, encode: Encode) -> Tensor:
    """What the UNet makes of `before` [1, channels, H, W], told the instruction: a latent in the model's own scale."""
    device = next(unet.parameters()).device
    before = before.to(device, torch.float32)
    image = torch.cat([before, before, torch.zeros_like(before)])
    told = encode([instruction, "", ""])

    def denoised(sigma: Tensor, x: Tensor) -> Tensor:
        level, rows = sigma.expand(3), x.expand(3, -1, -1, -1)
        shown = torch.cat([sampling.calculate_input(level, rows), image], 1)
        output = unet(shown, sampling.timestep(level).float(), **told).float()
        answers = sampling.calculate_denoised(level, output, rows).chunk(3)
        return combine(dict(zip((FULL, PICTURE, NEITHER), answers, strict=True)), TEXT_SCALE, IMAGE_SCALE)

    return euler(sampling, before.shape, STEPS, SEED, device, denoised)
