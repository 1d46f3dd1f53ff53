"""What gives pictures a number: how well they fit the prompt, how near they are to a target or to each other.

A scorer stands on an image encoder, and scorers on the same encoder share its embeddings (`score_each`). Cosines are
raw: they compare pictures of one prompt, and say nothing between prompts or between encoders.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

SCORER_TYPE = "ATELIER_SCORER"
"""Name of the socket that carries a `Scorer`."""


class ScorerSetupError(ValueError):
    """A scorer cannot be made; the message says what to do."""


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

    @property
    def scale(self) -> float:
        """The factor that the model learned to put before its cosines, `logit_scale.exp()`."""

    def encode_text(self, text: str) -> Tensor:
        """Unit vector [d], float32 on the CPU."""


class EncoderScorer(ABC):
    """A scorer that sees of a picture nothing but its vector."""

    encoder: ImageEncoder

    @abstractmethod
    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        """The numbers [n] of pictures, from the unit vectors [n, d] that `encoder` gives them."""

    def score(self, images: Tensor, prompt: str) -> list[float]:
        return self.score_vectors(self.encoder.encode_images(images), prompt).tolist()


@dataclass(frozen=True)
class ClipRelevance(EncoderScorer):
    """Cosine of picture and prompt."""

    encoder: TextImageEncoder
    needs_prompt = True

    @property
    def name(self) -> str:
        return f"clip_relevance/{self.encoder.name}"

    @property
    def version(self) -> str:
        return self.encoder.version

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        return vectors @ self.encoder.encode_text(prompt)


class HpsV2(ClipRelevance):
    """HPS v2 (arXiv 2306.09341, section 4): the cosine of a CLIP ViT-H that was trained on people's choices."""

    @property
    def name(self) -> str:
        return f"hps_v2/{self.encoder.name}"


class PickScore(ClipRelevance):
    """PickScore (arXiv 2305.01569, section 3): such a CLIP's cosine times the scale that it learned, about 100."""

    @property
    def name(self) -> str:
        return f"pickscore/{self.encoder.name}"

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        return self.encoder.scale * super().score_vectors(vectors, prompt)


@dataclass(frozen=True, eq=False)
class TargetSimilarity(EncoderScorer):
    """Mean cosine of picture and targets; `targets` are unit vectors [m, d] of the same encoder."""

    encoder: ImageEncoder
    targets: Tensor
    needs_prompt = False

    @property
    def name(self) -> str:
        return f"target_similarity/{self.encoder.name}"

    @property
    def version(self) -> str:
        return f"{self.encoder.version}-{vectors_version(self.targets)}"

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        return (vectors @ self.targets.T).mean(1)


@dataclass(frozen=True)
class Diversity(EncoderScorer):
    """How unlike the others of its batch each picture is. Of a single picture it says nothing."""

    encoder: ImageEncoder
    needs_prompt = False

    @property
    def name(self) -> str:
        return f"diversity/{self.encoder.name}"

    @property
    def version(self) -> str:
        return self.encoder.version

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        return diversity(vectors)


def diversity(vectors: Tensor) -> Tensor:
    """1 minus the mean cosine to the other pictures, for each of the unit vectors [n, d]; NaN when there is one.

    The mean over the pictures is the diversity of the batch: 1 minus the mean cosine of its pairs. From 0, all the
    same, to 2 at the most.
    """
    cosines = vectors @ vectors.T
    return 1 - (cosines.sum(1) - cosines.diagonal()) / (len(vectors) - 1)


def score_each(scorers: Sequence[Scorer], images: Tensor, prompt: str) -> list[list[float]]:
    """The scores of each scorer. Those on the same encoder, by name and version, share one pass over the pictures."""
    vectors: dict[tuple[str, str], Tensor] = {}
    scores = []
    for scorer in scorers:
        if not isinstance(scorer, EncoderScorer):
            scores.append(scorer.score(images, prompt))
            continue
        key = (scorer.encoder.name, scorer.encoder.version)
        if key not in vectors:
            vectors[key] = scorer.encoder.encode_images(images)
        scores.append(scorer.score_vectors(vectors[key], prompt).tolist())
    return scores


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


def vectors_version(vectors: Tensor) -> str:
    """Eight hex digits that change with the vectors, not with the last digits, which differ from run to run."""
    return hashlib.sha256((vectors * 1000).round().int().numpy().tobytes()).hexdigest()[:8]
