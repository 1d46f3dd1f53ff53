"""tiny-ip2p: the base, taught by the pack's own trainer to edit ShapeWorld pictures by instruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from shapeworld.edit import apply_edit, random_edit, read_edit, write_edit
from shapeworld.scene import Scene, random_scene

from .experts import load_base
from .host import device, use_pack
from .text import Tokens
from .unet import encode_scenes, new_unet
from .vae import LATENT_SCALE

SEED, STEPS, BATCH, PEAK, PAIRS = 51, 22_000, 16, 5e-4, 8000
MOST_THINGS = 3
HARD, TIMES = "reshape", 3
"""The kind of edit that is learnt last, and how many times as often as the others it is shown."""
STYLES = {"flat": 0.85, "chalk": 0.05, "neon": 0.05, "sticker": 0.05}


Pair = tuple[Scene, Scene, str]


def random_pair(rng: np.random.Generator) -> Pair:
    """A scene, the scene after a random edit that there is room for, and the instruction."""
    while True:
        scene = random_scene(rng, int(rng.integers(1, MOST_THINGS + 1)), STYLES)
        edit = random_edit(scene, rng)
        try:
            return scene, apply_edit(scene, edit, rng), write_edit(edit)
        except ValueError:
            continue


def make_latents(work: Path, pairs: list[Pair]) -> torch.Tensor:
    """Latents [N, 2, 4, 16, 16] as the VAE gives them, before and after; kept in `work/edit.latents.pt`."""
    file = work / "edit.latents.pt"
    if file.exists():
        return torch.load(file, weights_only=True)
    scenes = [scene for before, after, _ in pairs for scene in (before, after)]
    latents = encode_scenes(work, "edit", scenes).unflatten(0, (-1, 2))
    torch.save(latents, file)
    return latents


def train_edit(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains the widened base UNet, and returns its averaged weights; the text encoder stays as it is."""
    use_pack()
    import comfy.model_sampling
    from atelier.training.instruct_pix2pix import FIRST, EditLatents, edit_loss, widen
    from atelier.training.loop import Plan, train

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    tokens = Tokens()
    base = load_base(work, len(tokens))
    weights = base.unet.state_dict()
    weights[FIRST] = widen(weights[FIRST])
    unet = new_unet(in_channels=8)
    unet.load_state_dict(weights)
    unet.to(device(), memory_format=torch.channels_last)
    text = base.text.eval().requires_grad_(False)
    pairs = [random_pair(np.random.default_rng([SEED, at])) for at in range(PAIRS)]
    latents = make_latents(work, pairs)
    said = [instruction for _, _, instruction in pairs]
    shown = [at for at, told in enumerate(said) for _ in range(TIMES if read_edit(told).kind == HARD else 1)]
    data = EditLatents(latents[shown, 0], latents[shown, 1] * LATENT_SCALE, [said[at] for at in shown])
    sampling = Sampling().to(device())

    def encode(instructions: list[str]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"context": text(tokens.batch(instructions).to(device())).last_hidden_state}

    plan = Plan(steps, PEAK, SEED)
    return train(
        unet,
        lambda rng: edit_loss(unet, sampling, data, encode, rng, BATCH),
        plan,
        work / "edit",
        progress=lambda step, row: print(f"edit: {step}/{steps}", row, flush=True),
    )
