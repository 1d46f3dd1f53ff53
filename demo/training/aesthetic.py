"""The aesthetic head on the demo's CLIP: `shapeworld.taste.WORLD`, read from the embedding of a picture.

Like the public heads (arXiv 2212.09611, section 2.2) it is a chain of linear layers with no activation between them.
The map of the whole chain comes first, by ridge regression on rendered pictures; then it is taken apart into layers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from assemble import assemble_scorer
from PIL import ImageFilter
from shapeworld.render import render
from shapeworld.scene import random_scene
from shapeworld.taste import WORLD
from shapeworld.trial import BLUR, NOISE

from .host import use_pack
from .scorer import CONFIG

SEED, PICTURES, CHECKED = 95, 1_000, 200
"""Seed of the pictures, how many there are, and how many of them decide the penalty."""
AT_ONCE = 40
"""Pictures whose embeddings are kept together, so that a stage that was cut off goes on from there."""
STYLES = {"flat": 0.85, "chalk": 0.05, "neon": 0.05, "sticker": 0.05}
PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4)
"""On the squared weights, for each picture; the vectors have the length 1."""
WIDTHS = (32, 16)
"""Outputs of the layers before the last."""


def picture_of(number: int) -> tuple[np.ndarray, float]:
    """A random scene as a picture [128, 128, 3] in 0..1, and its mark.

    Every third has two things, the others one; every other one is mildly noisy.
    """
    rng = np.random.default_rng([SEED, number])
    scene = random_scene(rng, 1 + number % 3 // 2, STYLES)
    picture = render(scene)
    if number % 2:
        blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(BLUR)), np.float32)
        picture = (blurred + rng.normal(0, NOISE, blurred.shape)).clip(0, 255)
    return np.asarray(picture, np.float32) / 255, WORLD(scene)


def make_data(work: Path, parts: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [n, 128] of the pictures by the scorer in `parts`, kept in `work/aesthetic.pt`, and marks [n]."""
    use_pack()
    from atelier.feedback.open_clip_model import open_model

    clip = open_model(assemble_scorer(work / "models", parts), lambda model: lambda: model)
    file, judged_by = work / "aesthetic.pt", f"{clip.version} {WORLD}"
    kept = torch.load(file, weights_only=True) if file.exists() else {}
    if kept.get("judged_by") != judged_by:
        kept = {"judged_by": judged_by, "vectors": torch.empty(0, CONFIG["embed_dim"]), "marks": torch.empty(0)}
    for start in range(len(kept["marks"]), count, AT_ONCE):
        images, marks = zip(*(picture_of(start + number) for number in range(AT_ONCE)), strict=True)
        vectors = clip.encode_images(torch.from_numpy(np.stack(images)))
        kept["vectors"] = torch.cat([kept["vectors"], vectors])
        kept["marks"] = torch.cat([kept["marks"], torch.tensor(marks)])
        torch.save(kept, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
        print(f"aesthetic: {start + AT_ONCE}/{count} pictures", flush=True)
    return kept["vectors"][:count], kept["marks"][:count]


def fit(vectors: torch.Tensor, marks: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge regression in float64: the weight [d] and the bias [] that give marks [n] of vectors [n, d]."""
    vectors, marks = vectors.double(), marks.double()
    centred, mean = vectors - vectors.mean(0), marks.mean()
    curve = centred.T @ centred / len(vectors) + penalty * torch.eye(vectors.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(curve, centred.T @ (marks - mean) / len(vectors))
    return weight, mean - vectors.mean(0) @ weight


def as_layers(weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
    """A chain of linear layers, `layers.N.weight` and `layers.N.bias`, that is the affine map of `weight` and `bias`.

    Each layer but the last is a turn of a space that holds the weight, so it loses nothing of it.
    """
    generator, layers = torch.Generator().manual_seed(SEED), {}
    for number, width in enumerate(WIDTHS):
        others = torch.randn(len(weight), width - 1, generator=generator, dtype=torch.float64)
        space = torch.linalg.qr(torch.cat([weight[:, None], others], 1)).Q
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
        layer = turn @ space.T
        layers |= {f"layers.{number}.weight": layer, f"layers.{number}.bias": torch.zeros(width)}
        weight = layer @ weight
    last = len(WIDTHS)
    layers |= {f"layers.{last}.weight": weight[None], f"layers.{last}.bias": bias[None]}
    return {name: value.float().contiguous() for name, value in layers.items()}


def train_aesthetic(work: Path, parts: Path, pictures: int = PICTURES) -> tuple[dict[str, torch.Tensor], float]:
    """The head's layers, and its correlation with the taste on pictures that it was not fitted on."""
    vectors, marks = make_data(work, parts, pictures)
    kept, checked = slice(CHECKED, None), slice(CHECKED)

    def correlation(penalty: float) -> float:
        weight, bias = fit(vectors[kept], marks[kept], penalty)
        return float(
            torch.corrcoef(torch.stack([vectors[checked].double() @ weight + bias, marks[checked].double()]))[0, 1]
        )

    found = {penalty: correlation(penalty) for penalty in PENALTIES}
    print(f"aesthetic: correlation with the taste, by penalty: {found}", flush=True)
    best = max(found, key=found.get)
    return as_layers(*fit(vectors[kept], marks[kept], best)), found[best]
