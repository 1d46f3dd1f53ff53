"""Aesthetic score: a linear head on CLIP's picture embedding (arXiv 2212.09611, section 2.2).

The public heads are chains of linear layers with dropout and no activation between them, Linear
768 -> 1024 -> 128 -> 64 -> 16 -> 1, so the whole chain is one affine map. It takes unit vectors, in float32.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .scorers import EncoderScorer, ImageEncoder, ScorerSetupError, weights_version

SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """The affine map of unit vectors [n, d] to scores [n]: `weight` [d], `bias` []; 1 to 10 for the public one."""

    name: str
    version: str
    weight: Tensor
    bias: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        return vectors @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class Aesthetic(EncoderScorer):
    """How much people would like a picture, whatever was asked for."""

    encoder: ImageEncoder
    head: AestheticHead
    needs_prompt = False

    @property
    def name(self) -> str:
        return f"aesthetic/{self.head.name}/{self.encoder.name}"

    @property
    def version(self) -> str:
        return f"{self.encoder.version}-{self.head.version}"

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        wanted, width = len(self.head.weight), vectors.shape[1]
        if wanted != width:
            raise ScorerSetupError(
                f"The aesthetic head {self.head.name} takes embeddings of {wanted} numbers, and {self.encoder.name} "
                f"gives {width}. Choose the CLIP model that the head was trained on; 768 is CLIP ViT-L/14."
            )
        return self.head(vectors)


def load_head(file: Path) -> AestheticHead:
    """A head from a file with `layers.N.weight` and `layers.N.bias`; a pickle that holds code is refused.

    Raises:
        ScorerSetupError: the file cannot be read or holds no such head.
    """
    try:
        weights = _read(file)
    except Exception as error:  # safetensors, pickle and zip each raise their own
        why = " ".join(str(error).split())[:300]
        raise ScorerSetupError(f"The aesthetic head {file} cannot be loaded: {why}. Download it again.") from error
    try:
        weight, bias = fold(weights)
    except ValueError as error:
        raise ScorerSetupError(f"{file.name} is no aesthetic head: {error}.") from None
    return AestheticHead(file.stem, weights_version(weights), weight, bias)


def fold(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The chain of linear layers as one affine map, float32 `weight` [d] and `bias` [].

    Args:
        weights: `layers.N.weight` [out, in] and `layers.N.bias` [out], in the order of N; the last has one output.

    Raises:
        ValueError: the layers are no such chain, or hold what is no number; the message has no full stop.
    """
    layers = sorted({int(found[1]) for name in weights if (found := re.fullmatch(r"layers\.(\d+)\.weight", name))})
    names = {f"layers.{number}.{part}" for number in layers for part in ("weight", "bias")}
    if not layers or names != set(weights):
        raise ValueError("it must hold layers.N.weight and layers.N.bias, and nothing else")
    matrix: Tensor | None = None
    for number in reversed(layers):
        weight, bias = (weights[f"layers.{number}.{part}"].double() for part in ("weight", "bias"))
        outputs = 1 if matrix is None else matrix.shape[1]
        if weight.ndim != 2 or weight.shape[0] != outputs or bias.shape != (outputs,):
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ValueError(f"layer {number} has the shapes {shapes}, and what follows takes {outputs}")
        if matrix is None:
            matrix, total = weight, bias
        else:
            matrix, total = matrix @ weight, matrix @ bias + total
    if not (matrix.isfinite().all() and total.isfinite().all()):
        raise ValueError("it holds values that are not numbers (NaN or infinity)")
    return matrix[0].float(), total[0].float()


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    found = torch.load(file, map_location="cpu", weights_only=True)
    if not (isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())):
        raise ValueError("it holds no table of weights")
    return dict(found)
