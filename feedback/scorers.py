"""What gives pictures a number: how well they fit the prompt, or how near they are to a target.

A scorer stands on an image encoder, and scorers on the same encoder can share its embeddings. Both cosines here are
raw: they compare pictures of one prompt, and say nothing between prompts or between encoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

SCORER_TYPE = "ATELIER_SCORER"
"""Name of the socket that carries a `Scorer`."""


class Scorer(Protocol):
    """Gives each picture of a batch a number; more is better."""

    @property
    def name(self) -> str:
        """What it measures and with which model. Ratings that it gives have it as their source."""

    @property
    def version(self) -> str:
        """Changes when the same picture could get another number."""

    @property
    def needs_prompt(self) -> bool:
        """Whether the prompt counts."""

    def score(self, images: Tensor, prompt: str) -> list[float]:
        """One number for each picture [n, height, width, 3] in 0..1. A number that is not finite says nothing."""


class ImageEncoder(Protocol):
    """Turns pictures into vectors that are near each other when the pictures are alike."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes with the weights."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Unit vectors [n, d], float32 on the CPU, of pictures [n, height, width, 3] in 0..1."""


class TextImageEncoder(ImageEncoder, Protocol):
    """An encoder whose vectors of texts and of pictures can be compared: CLIP (arXiv 2103.00020)."""

    def encode_text(self, text: str) -> Tensor:
        """Unit vector [d], float32 on the CPU."""


@dataclass(frozen=True)
class ClipRelevance:
    """Cosine of picture and prompt."""

    encoder: TextImageEncoder
    needs_prompt = True

    @property
    def name(self) -> str:
        return f"clip_relevance/{self.encoder.name}"

    @property
    def version(self) -> str:
        return self.encoder.version

    def score(self, images: Tensor, prompt: str) -> list[float]:
        return (self.encoder.encode_images(images) @ self.encoder.encode_text(prompt)).tolist()


@dataclass(frozen=True, eq=False)
class TargetSimilarity:
    """Mean cosine of picture and targets; `targets` are unit vectors [m, d] of the same encoder."""

    encoder: ImageEncoder
    targets: Tensor
    needs_prompt = False

    @property
    def name(self) -> str:
        return f"target_similarity/{self.encoder.name}"

    @property
    def version(self) -> str:
        return f"{self.encoder.version}-{_digest(self.targets)}"

    def score(self, images: Tensor, prompt: str) -> list[float]:
        return (self.encoder.encode_images(images) @ self.targets.T).mean(1).tolist()


def label(scorer: Scorer) -> str:
    """The scorer as the store keeps it beside a score."""
    return f"{scorer.name} {scorer.version}"


def weights_version(weights: Mapping[str, Tensor]) -> str:
    """Eight hex digits that change with the weights: their names, shapes and first 64 numbers each."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name]
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def _digest(vectors: Tensor) -> str:
    # Rounded, for the last digits of an embedding differ from run to run.
    return hashlib.sha256((vectors * 1000).round().int().numpy().tobytes()).hexdigest()[:8]
