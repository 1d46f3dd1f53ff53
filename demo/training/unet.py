"""The UNet of SD1.5's architecture and the text encoder, trained together on latents of ShapeWorld."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from shapeworld.caption import describe, write
from shapeworld.render import render
from shapeworld.scene import STYLES, Scene, random_scene

from .host import autocast, device, initialise, use_host
from .loop import train
from .text import Tokens, new_text_encoder
from .vae import LATENT_SCALE, load_autoencoder

SEED, STEPS, BATCH, PEAK = 21, 12_000, 32, 6e-4
SCENES = 12_000
BASE_STYLES = {"flat": 0.88, "chalk": 0.04, "neon": 0.04, "sticker": 0.04}
CAPTION_DROPOUT = 0.1
ONE_THING_SHARE, HIGH_NOISE_SHARE = 0.7, 0.5
"""How many training pictures show one thing, and how many get a step of at least 500: there, words matter most."""
EASY_SHARE = (0.85, 0.25)
"""How many training pictures are easy in the first half of the training, and how many at its end. Beside textures,
several things and other styles, the outline of a thing is a small part of the loss and is learnt last."""
SNR_CAP = 5.0
LEVELS = (1, 2, 2)


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *_, **__) -> torch.Tensor:
    """Softmax attention by two matrix products on [B, N, C]. On a CPU the backward pass of torch's
    fused kernel took 39 % of a training step of 32; with this a step took 0.67 s instead of 0.95 s."""
    b, n, c = q.shape
    q, k, v = (x.view(b, -1, heads, c // heads).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    weights = torch.softmax(torch.bmm(q * (c // heads) ** -0.5, k.transpose(1, 2)), -1)
    return torch.bmm(weights.to(v.dtype), v).view(b, heads, n, -1).transpose(1, 2).reshape(b, n, c)


def new_unet(in_channels: int = 4) -> torch.nn.Module:
    """The host's UNet: 64 channels, three levels with self- and cross-attention on each."""
    use_host()
    import comfy.ldm.modules.attention as attention
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from extension.tiny_sd import HEADS, TEXT_CONFIG

    attention.optimized_attention = attention.optimized_attention_masked = plain_attention
    levels = len(LEVELS)
    unet = UNetModel(
        image_size=32,
        in_channels=in_channels,
        out_channels=4,
        model_channels=64,
        num_res_blocks=[1] * levels,
        channel_mult=LEVELS,
        num_heads=HEADS,
        use_spatial_transformer=True,
        context_dim=TEXT_CONFIG["hidden_size"],
        legacy=False,
        transformer_depth=[1] * levels,
        transformer_depth_output=[1] * 2 * levels,
        transformer_depth_middle=1,
        operations=comfy.ops.disable_weight_init,
    )
    initialise(unet)
    for name, layer in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return unet


class TinySD(torch.nn.Module):
    """UNet and text encoder as one module to train."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text = new_text_encoder(rows)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted velocity [B, 4, H, W] for noisy latents, steps [B] in 0..999 and token rows [B, 77]."""
        return self.unet(x, t, context=self.text(tokens).last_hidden_state)


def alphas() -> torch.Tensor:
    """SD1.5's cumulative alphas [1000] (scaled-linear betas from 0.00085 to 0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@dataclass(frozen=True)
class Pictures:
    """Scenes and their latents [N, 4, 16, 16], of unit variance."""

    scenes: list[Scene]
    latents: torch.Tensor

    @cached_property
    def _kinds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The indices of the scenes with one thing, of those with several, and of the easy ones."""
        single = np.array([len(scene.things) == 1 for scene in self.scenes])
        easy = single & np.array([is_easy(scene) for scene in self.scenes])
        return np.nonzero(single)[0], np.nonzero(~single)[0], np.nonzero(easy)[0]

    def pick(self, rng: np.random.Generator, count: int, easy_share: float = 0.0) -> np.ndarray:
        """Indices of random pictures: `easy_share` of them easy; of the rest, `ONE_THING_SHARE` with one thing."""
        one, several, easy = (rng.choice(indices, count) if len(indices) else None for indices in self._kinds)
        picks = np.where(rng.random(count) < ONE_THING_SHARE, one, several)
        return picks if not easy_share else np.where(rng.random(count) < easy_share, easy, picks)


def is_easy(scene: Scene) -> bool:
    """Whether nothing distracts from the outline of the first thing: it is plain, flat and not small."""
    thing = scene.things[0]
    return scene.style == "flat" and thing.texture == "plain" and thing.size != "small"


def easy_share(progress: float) -> float:
    """`EASY_SHARE` at a progress of the training in 0..1."""
    first, last = EASY_SHARE
    return first + (last - first) * max(0.0, 2 * progress - 1)


def render_array(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene))


def make_pictures(work: Path, name: str, count: int, styles: dict[str, float], seed: int) -> Pictures:
    """Renders and encodes random scenes; the latents are kept in `work/NAME.latents.pt`."""
    scenes = [random_scene(np.random.default_rng([seed, i]), style_share=styles) for i in range(count)]
    file = work / f"{name}.latents.pt"
    if file.exists():
        return Pictures(scenes, torch.load(file, weights_only=True))
    latents = (encode_scenes(work, name, scenes) * LATENT_SCALE).half()
    torch.save(latents, file)
    return Pictures(scenes, latents)


def encode_scenes(work: Path, name: str, scenes: Sequence[Scene]) -> torch.Tensor:
    """Latents [N, 4, 16, 16] of the rendered scenes, as the autoencoder gives them."""
    vae, out = load_autoencoder(work), []
    with ProcessPoolExecutor(max_workers=2) as pool:
        rendered = pool.map(render_array, scenes, chunksize=64)
        while batch := list(itertools.islice(rendered, 64)):
            x = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(device()).float() / 127.5 - 1
            with torch.inference_mode(), autocast():
                out.append(vae.encode(x).float().cpu())
            if len(out) % 50 == 0:
                print(f"{name}: {64 * len(out)}/{len(scenes)} pictures encoded", flush=True)
    return torch.cat(out)


def velocity_loss(
    model: TinySD,
    tokens: Tokens,
    data: Pictures,
    schedule: torch.Tensor,
    rng: np.random.Generator,
    batch: int = BATCH,
    easy: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Velocity prediction (arXiv 2202.00512) on a random batch.

    In a world of flat surfaces everything is decided at high noise, where a loss on the noise says next to nothing
    about the picture; a loss on the velocity does. Its weight is capped at low noise as in min-SNR (arXiv 2303.09556).
    """
    picks = data.pick(rng, batch, easy)
    captions = ["" if rng.random() < CAPTION_DROPOUT else write(describe(data.scenes[i], rng), rng) for i in picks]
    x = data.latents[picks].to(device()).float()
    t = torch.from_numpy(rng.integers(500 * (rng.random(batch) < HIGH_NOISE_SHARE), 1000)).to(device())
    alpha = schedule[t][:, None, None, None]
    noise = torch.randn_like(x)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * x
    rows = tokens.batch(captions, rng).to(device())
    noisy = (alpha.sqrt() * x + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
    with autocast():
        guess = model(noisy, t, rows).float()
    error = ((guess - velocity) ** 2).mean((1, 2, 3))
    snr = (alpha / (1 - alpha)).flatten()
    return {
        "loss": (error * ((SNR_CAP + 1) / (snr + 1)).clamp(max=1)).mean(),
        "high_noise": error[t >= 600].mean().nan_to_num(),
    }


def train_unet(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains UNet and text encoder from nothing; the base sees mostly the flat style."""
    assert set(BASE_STYLES) == set(STYLES)
    tokens = Tokens()
    torch.manual_seed(SEED)
    model = TinySD(len(tokens)).to(device())
    model.unet.to(memory_format=torch.channels_last)
    data = make_pictures(work, "base", SCENES, BASE_STYLES, SEED)
    schedule = alphas().to(device())
    return train(
        "unet",
        model,
        lambda step, rng: velocity_loss(model, tokens, data, schedule, rng, easy=easy_share(step / steps)),
        steps=steps,
        peak=PEAK,
        work=work,
        seed=SEED,
    )
