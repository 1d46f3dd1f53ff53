"""A small CLIP in open_clip's layout (arXiv 2103.00020): how well a ShapeWorld picture fits a caption."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Resampling
from shapeworld.caption import describe, write
from shapeworld.render import render
from shapeworld.scene import Scene, random_scene
from torch.nn.functional import cross_entropy, interpolate, pad

from .host import autocast, device
from .loop import train
from .text import Tokens

SEED, STEPS, BATCH, PEAK, PICTURES = 41, 1000, 64, 2e-3, 6000
SIZE, SHIFT = 64, 2
"""Side of what the model sees, and how far a training picture is moved, in px."""
LENGTH = 48
"""Tokens of a text that the model reads."""
NOISE = 0.06
"""Largest standard deviation of the noise on a training picture in 0..1. What a model draws is never clean."""
NAMED = {"size": 0.35, "texture": 0.6, "colour": 0.9, "shape": 0.95, "place": 0.4, "background": 0.5, "style": 0.75}
"""How often a training caption names each attribute: more often than in the UNet's, for a caption is judged here."""
CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": SIZE},
    "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
"""`model_cfg` of open_clip: a ResNet of CLIP's kind and a small text tower, 1.5 M parameters in all."""


class Rows:
    """Captions to rows of a small token table in which the end token is the last: CLIP reads the text at the
    position of the largest token."""

    def __init__(self) -> None:
        self._tokens = Tokens()
        start, end, *others = self._tokens.ids
        self.ids = [start, *others, end]
        row = {token: i + 1 for i, token in enumerate(self.ids)}
        self._row = torch.tensor([0, *(row[token] for token in self._tokens.ids)])

    def __len__(self) -> int:
        return len(self.ids) + 1

    def batch(self, captions: list[str], rng: np.random.Generator | None = None) -> torch.Tensor:
        """Rows [B, 48]. A longer caption is cut, and ends with the end token as any other."""
        rows = self._row[self._tokens.batch(captions, rng)][:, :LENGTH]
        rows[:, -1] = len(self.ids)
        return rows


def new_scorer(rows: int) -> torch.nn.Module:
    """An untrained model with a token table of `rows` rows."""
    from open_clip.model import CLIP

    text = CONFIG["text_cfg"] | {"vocab_size": rows}
    return CLIP(CONFIG["embed_dim"], CONFIG["vision_cfg"], text).to(memory_format=torch.channels_last)


def make_data(work: Path) -> tuple[list[Scene], torch.Tensor]:
    """Random scenes of all styles and their pictures, uint8 [N, 3, 64, 64], kept in `work/scorer.pictures.pt`."""
    scenes = [random_scene(np.random.default_rng([SEED, i])) for i in range(PICTURES)]
    file = work / "scorer.pictures.pt"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        # As open_clip makes a picture smaller.
        drawn = [torch.from_numpy(np.array(render(scene).resize((SIZE, SIZE), Resampling.BICUBIC))) for scene in scenes]
        torch.save(torch.stack(drawn).permute(0, 3, 1, 2).contiguous(), file)
    return scenes, torch.load(file, weights_only=True)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1 as CLIP takes them."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = (torch.tensor(v, device=pictures.device) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (pictures - mean[:, None, None]) / std[:, None, None]


def disturb(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1, all moved by the same few pixels; some blurred, some noisy."""
    x, y = rng.integers(0, 2 * SHIFT + 1, 2)
    out = pad(pictures, [SHIFT] * 4, mode="replicate")[:, :, y : y + SIZE, x : x + SIZE]
    soft = torch.from_numpy(rng.random(len(out)) < 0.25)
    out[soft] = interpolate(interpolate(out[soft], scale_factor=0.75, mode="area"), size=SIZE, mode="bilinear")
    noise = torch.from_numpy(rng.uniform(0, NOISE, (len(out), 1, 1, 1)).astype(np.float32))
    return (out + noise.to(out.device) * torch.randn_like(out)).clamp(0, 1)


def train_scorer(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains from nothing; the loss is CLIP's own, over the pictures and the captions of a batch."""
    rows = Rows()
    torch.manual_seed(SEED)
    model = new_scorer(len(rows)).to(device())
    scenes, pictures = make_data(work)
    own = torch.arange(BATCH, device=device())

    def loss_at(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        picks = rng.choice(PICTURES, BATCH, replace=False)
        captions = [write(describe(scenes[i], rng, NAMED), rng) for i in picks]
        x = normalise(disturb(pictures[picks].to(device()).float() / 255, rng)).contiguous(
            memory_format=torch.channels_last
        )
        with autocast():
            seen = model.encode_image(x, normalize=True).float()
        said = model.encode_text(rows.batch(captions, rng).to(device()), normalize=True)
        fit = model.logit_scale.clamp(max=math.log(100)).exp() * seen @ said.T
        loss = (cross_entropy(fit, own) + cross_entropy(fit.T, own)) / 2
        return {"loss": loss, "right": (fit.argmax(1) == own).float().mean()}

    model.train()
    return train("scorer", model, loss_at, steps=steps, peak=PEAK, work=work, seed=SEED, weight_decay=0.05)
