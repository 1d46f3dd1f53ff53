"""The autoencoder: TAESD's layout, 128 px to 4 x 16 x 16, trained from nothing on ShapeWorld pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from shapeworld.render import render
from shapeworld.scene import random_scene
from torch.nn.functional import avg_pool2d

from .host import autocast, device, initialise, use_host
from .loop import train

LATENT_SCALE = 0.18215
"""The host multiplies SD1.5 latents by this; `vae_scale` undoes it, so the UNet sees latents of unit variance."""
STEPS, DECODER_STEPS, BATCH, CROP, PICTURES, SEED = 2000, 2000, 16, 64, 6000, 11
LATENT_NOISE, DECODER_NOISE = 0.05, 0.08
"""Standard deviation of the noise on latents while both parts are trained, and while the decoder is alone."""
BALANCE = 0.4
ALIGN, QUIET = 1.0, 0.01
"""Weights of the two terms that keep latents simple, beside the pixel loss."""


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


def load_autoencoder(work: Path) -> torch.nn.Module:
    """The autoencoder of a working folder, with the polished decoder if there is one."""
    file = work / "decoder.pt"
    vae = new_autoencoder()
    vae.load_state_dict(torch.load(file if file.exists() else work / "vae.pt", weights_only=True)["mean"])
    return vae.to(device(), memory_format=torch.channels_last).eval()


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean PSNR in dB of pictures [B, 3, H, W] in 0..1."""
    return -10 * torch.log10(((y - x) ** 2).clamp(0, 1).mean((1, 2, 3)) + 1e-8).mean().detach()


def random_crops(data: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Crops [16, 3, 64, 64] in 0..1, cut where the latent grid allows."""
    picks = rng.integers(0, len(data), BATCH)
    corners = rng.integers(0, (128 - CROP) // 8 + 1, (BATCH, 2)) * 8
    crops = [data[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(picks, corners, strict=True)]
    return (torch.stack(crops).to(device()).float() / 255).contiguous(memory_format=torch.channels_last)


def balancing(colours: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre [3] and matrix [3, 3] that turn colours [N, 3, H, W] to their principal axes and even out the spreads.

    Brightness has many times the variance of hue, so under isotropic noise a UNet would hardly see colours. Each axis
    is divided by its variance to the power 0.4; 0.5 would make all spreads 1 but drive rare colours far out.
    """
    rows = colours.permute(0, 2, 3, 1).reshape(-1, colours.shape[1]).double()
    centre = rows.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov((rows - centre).T))
    return centre.float(), (torch.diag(variances**-BALANCE) @ axes.T).float()


def train_vae(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains on random 64 px crops.

    Loss: L1 + 4 L2 in pixels. Left alone, an autoencoder fills flat ground with patterns of its own, and a small UNet
    spends itself on them. So three channels are drawn to the balanced mean colour of their 8 x 8 pixels, and the
    fourth one to zero where it is not needed; the detail lies in what they deviate.
    """
    torch.manual_seed(SEED)
    model = new_autoencoder()
    initialise(model)
    model = model.to(device(), memory_format=torch.channels_last)
    data = pictures(PICTURES, SEED)
    centre, matrix = balancing(avg_pool2d(data[:1000].float() / 255, 8))
    centre, matrix = centre.to(device()), matrix.to(device())

    def loss_at(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = random_crops(data, rng)
        colour = torch.einsum("ab,bnhw->nahw", matrix, avg_pool2d(x, 8).transpose(0, 1) - centre[:, None, None, None])
        with autocast():
            latent = model.taesd_encoder(x).float()
            y = model.taesd_decoder(latent + LATENT_NOISE * torch.randn_like(latent)).float()
        align = ((latent[:, :3] - colour) ** 2).mean()
        quiet = (latent[:, 3] ** 2).mean()
        loss = (y - x).abs().mean() + 4 * ((y - x) ** 2).mean() + ALIGN * align + QUIET * quiet
        return {"loss": loss, "psnr": psnr(x, y), "align": align.detach(), "quiet": quiet.detach()}

    return train("vae", model, loss_at, steps=steps, peak=1.5e-3, work=work, seed=SEED)


def train_decoder(work: Path, steps: int = DECODER_STEPS) -> dict[str, torch.Tensor]:
    """Trains the decoder of `work/vae.pt` further, with the encoder as it is, so that latents keep their meaning.

    More noise on the latents than before: what a UNet draws is never exact, and outlines must be sharp all the same.
    Returns the weights of both parts.
    """
    model = load_autoencoder(work)
    model.taesd_encoder.requires_grad_(False)
    data = pictures(PICTURES, SEED + 1)

    def loss_at(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = random_crops(data, rng)
        with autocast():
            with torch.no_grad():
                latent = model.taesd_encoder(x).float()
            y = model.taesd_decoder(latent + DECODER_NOISE * torch.randn_like(latent)).float()
        return {"loss": (y - x).abs().mean() + 4 * ((y - x) ** 2).mean(), "psnr": psnr(x, y)}

    return train("decoder", model, loss_at, steps=steps, peak=1e-3, work=work, seed=SEED + 1)
