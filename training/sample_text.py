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
    options = {"optimized_attention_override": lambda _, *args, **kwargs: plain(*args, **kwargs)}
    asked = []
    for length, places in data.by_length(picks):
        rows = [*(picks[place] for place in places), *([len(data.latents)] * len(places))]
        text, llm = (part[rows].to(device, torch.float32) for part in (data.text[:, :length], data.llm))
        more = {} if data.vectors is None else {"y": data.vectors[rows].to(device, torch.float32)}
        more["context"] = text if adapter is None else adapter(text, llm)
        asked.append((places.to(device), more))

    def denoised(sigma: Tensor, x: Tensor) -> Tensor:
        found = torch.empty_like(x)
        for places, more in asked:
            both = x[places].repeat(2, 1, 1, 1)
            level = sigma.expand(len(both))
            shown = sampling.calculate_input(level, both)
            output = unet(shown, sampling.timestep(level).float(), transformer_options=options, **more)
            told, untold = sampling.calculate_denoised(level, output.float(), both).chunk(2)
            found[places] = untold + SCALE * (told - untold)
        return found

    return euler(sampling, (len(picks), *data.latents.shape[1:]), STEPS, SEED, device, denoised)
