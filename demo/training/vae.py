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
DECODER_STEPS, BALANCE, BALANCE_PICTURES = 400, 0.4, 1000


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


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean PSNR in dB of pictures [B, 3, H, W] in 0..1."""
    return -10 * torch.log10(((y - x) ** 2).clamp(0, 1).mean((1, 2, 3)) + 1e-8).mean().detach()


def random_crops(data: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Crops [16, 3, 64, 64] in 0..1, cut where the latent grid allows."""
    picks = rng.integers(0, len(data), BATCH)
    corners = rng.integers(0, (128 - CROP) // 8 + 1, (BATCH, 2)) * 8
    crops = [data[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)]
    return (torch.stack(crops).to(device()).float() / 255).contiguous(memory_format=torch.channels_last)


def train_vae(work: Path) -> dict[str, torch.Tensor]:
    """Trains the autoencoder, balances its latents, and lets the decoder get used to that."""
    data = pictures(PICTURES, SEED)
    weights = train_both(work, data)
    return train_decoder(work, data, balance(weights, data[:BALANCE_PICTURES]))


def train_both(work: Path, data: torch.Tensor, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains on random 64 px crops. Loss: L1 + 4 L2 in pixels, plus a pull of each latent channel to N(0, 1)."""
    torch.manual_seed(SEED)
    model = new_autoencoder()
    initialise(model)
    model = model.to(device(), memory_format=torch.channels_last)

    def loss_at(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = random_crops(data, rng)
        with torch.autocast(device().type, torch.bfloat16):
            latent = model.taesd_encoder(x).float()
            seen = latent + LATENT_NOISE * torch.randn_like(latent)
            y = model.taesd_decoder(seen).float()
        centre, spread = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
        pull = (centre**2 + (spread - 1) ** 2).mean()
        loss = (y - x).abs().mean() + 4 * ((y - x) ** 2).mean() + 0.01 * pull
        return {"loss": loss, "psnr": psnr(x, y), "latent_std": spread.detach().mean()}

    return train("vae", model, loss_at, steps=steps, peak=1.5e-3, work=work, seed=SEED)


def train_decoder(
    work: Path, data: torch.Tensor, weights: dict[str, torch.Tensor], steps: int = DECODER_STEPS
) -> dict[str, torch.Tensor]:
    """Trains the decoder alone, on the latents of the frozen encoder."""
    model = new_autoencoder()
    model.load_state_dict(weights)
    model = model.to(device(), memory_format=torch.channels_last)
    model.taesd_encoder.requires_grad_(False)

    def loss_at(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = random_crops(data, rng)
        with torch.autocast(device().type, torch.bfloat16):
            latent = model.taesd_encoder(x).float()
            y = model.taesd_decoder(latent + LATENT_NOISE * torch.randn_like(latent)).float()
        return {"loss": (y - x).abs().mean() + 4 * ((y - x) ** 2).mean(), "psnr": psnr(x, y)}

    return train("vae_decoder", model, loss_at, steps=steps, peak=5e-4, work=work, seed=SEED + 1)


def balancing(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre [4] and matrix [4, 4] that turn latents [N, 4, H, W] to their principal axes and even out the spreads.

    Brightness alone has 60 times the variance of the weakest axis, which carries hue: under isotropic noise a UNet
    would hardly see colours. Each axis is divided by its variance to the power 0.4; 0.5 would make all spreads 1 but
    drive the rare colours of small things far out.
    """
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).double()
    centre = rows.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov((rows - centre).T))
    return centre.float(), (torch.diag(variances**-BALANCE) @ axes.T).float()


def balance(weights: dict[str, torch.Tensor], sample: torch.Tensor) -> dict[str, torch.Tensor]:
    """Builds the balancing of the latents of `sample` into the encoder's last layer and the decoder's first one."""
    model = new_autoencoder()
    model.load_state_dict(weights)
    model = model.to(device(), memory_format=torch.channels_last).eval()
    with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16):
        latents = torch.cat([model.taesd_encoder(x.to(device()).float() / 255).float() for x in sample.split(50)])
    centre, matrix = balancing(latents)
    out = dict(weights)
    last, first = f"taesd_encoder.{len(model.taesd_encoder) - 1}", "taesd_decoder.1"
    out[f"{last}.weight"] = torch.einsum("ab,bchw->achw", matrix, weights[f"{last}.weight"])
    out[f"{last}.bias"] = matrix @ (weights[f"{last}.bias"] - centre)
    out[f"{first}.weight"] = torch.einsum("abhw,bc->achw", weights[f"{first}.weight"], torch.linalg.inv(matrix))
    out[f"{first}.bias"] = weights[f"{first}.bias"] + torch.einsum("abhw,b->a", weights[f"{first}.weight"], centre)
    return out
