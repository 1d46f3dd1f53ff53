"""The autoencoder: TAESD's layout, 128 px to 4 x 16 x 16, trained from nothing on ShapeWorld pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from shapeworld.render import render
from shapeworld.scene import random_scene

from .host import device, initialise, use_host
from .loop import train

LATENT_SCALE = 0.18215
"""The host multiplies SD1.5 latents by this; `vae_scale` undoes it, so the UNet sees latents of unit variance."""
STEPS, BATCH, CROP, PICTURES, SEED = 2000, 16, 64, 6000, 11
LATENT_NOISE = 0.05


def pictures(count: int, seed: int) -> torch.Tensor:
    """Random ShapeWorld pictures, uint8 [count, 3, 128, 128]."""
    out = torch.empty(count, 3, 128, 128, dtype=torch.uint8)
    for i in range(count):
        picture = np.asarray(render(random_scene(np.random.default_rng([seed, i]))))
        out[i] = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    return out


def new_autoencoder() -> torch.nn.Module:
    use_host()
    from comfy.taesd.taesd import TAESD

    model = TAESD()
    model.vae_scale.data.fill_(LATENT_SCALE)
    model.vae_scale.requires_grad_(False)
    model.vae_shift.requires_grad_(False)
    return model


def train_vae(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains on random 64 px crops. Loss: L1 + 4 L2 in pixels, plus a pull of each latent channel to N(0, 1)."""
    torch.manual_seed(SEED)
    model = new_autoencoder()
    initialise(model)
    model = model.to(device(), memory_format=torch.channels_last)
    data = pictures(PICTURES, SEED)

    def loss_at(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        picks = rng.integers(0, len(data), BATCH)
        corners = rng.integers(0, (128 - CROP) // 8 + 1, (BATCH, 2)) * 8
        crops = [data[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)]
        x = (torch.stack(crops).to(device()).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device().type, torch.bfloat16):
            latent = model.taesd_encoder(x).float()
            seen = latent + LATENT_NOISE * torch.randn_like(latent)
            y = model.taesd_decoder(seen).float()
        centre, spread = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
        pull = (centre**2 + (spread - 1) ** 2).mean()
        error = (y - x) ** 2
        loss = (y - x).abs().mean() + 4 * error.mean() + 0.01 * pull
        psnr = -10 * torch.log10(error.detach().clamp(0, 1).mean((1, 2, 3)) + 1e-8).mean()
        return {"loss": loss, "psnr": psnr, "latent_std": spread.detach().mean()}

    return train("vae", model, loss_at, steps=steps, peak=1.5e-3, work=work, seed=SEED)
