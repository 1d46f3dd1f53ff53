"""Pictures by a UNet and an adapter in training, to look at: classifier-free guidance and Euler's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .cross_adapter import CaptionedLatents
from .denoising import Sampling, euler

STEPS, SCALE, SEED = 12, 5.0, 0


def sample_text(
    parts: nn.ModuleDict,
    sampling: Sampling,
    data: CaptionedLatents,
    picks: Sequence[int],
    plain: Callable[..., Tensor],
) -> Tensor:
    """Latents [N, C, H, W] in the model's own scale, for the captions `picks`.

    `parts` are `unet` and, where there is one, `adapter`.
    """
    unet, adapter = parts["unet"], dict(parts.items()).get("adapter")
    device = next(unet.parameters()).device
    rows = [*picks, *([len(data.latents)] * len(picks))]
    text, llm = (part[rows].to(device, torch.float32) for part in (data.text, data.llm))
    more = {} if data.vectors is None else {"y": data.vectors[rows].to(device, torch.float32)}
    context = text if adapter is None else adapter(text, llm)
    options = {"optimized_attention_override": lambda _, *args, **kwargs: plain(*args, **kwargs)}

    def denoised(sigma: Tensor, x: Tensor) -> Tensor:
        level, both = sigma.expand(len(rows)), torch.cat([x, x])
        shown = sampling.calculate_input(level, both)
        output = unet(shown, sampling.timestep(level).float(), context=context, transformer_options=options, **more)
        told, untold = sampling.calculate_denoised(level, output.float(), both).chunk(2)
        return untold + SCALE * (told - untold)

    return euler(sampling, (len(picks), *data.latents.shape[1:]), STEPS, SEED, device, denoised)
