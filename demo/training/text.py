"""The small CLIP text encoder and its tokens: only the words of ShapeWorld are learnt, all others share one row."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from shapeworld.caption import STYLE_PREFIX, STYLE_SUFFIX
from shapeworld.edit import REDRAW
from shapeworld.scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES

from .host import use_host

LENGTH = 77
START, END = 49406, 49407
STRANGE_SHARE = 0.15
"""How many training captions get words that the world does not know, so that free text does no harm."""


def world_words() -> list[str]:
    """Every word that a caption or an edit instruction can hold, sorted."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS, *PLACES, *RELATIONS, *STYLE_PREFIX.values()]
    phrases += [
        *STYLE_SUFFIX.values(),
        *REDRAW.values(),
        "a an the shape background on and turn make into it add remove",
    ]
    return sorted({word for phrase in phrases for word in phrase.split()})


class Tokens:
    """Captions to rows of the small table. Row 0 stands for every token outside of `ids`."""

    def __init__(self) -> None:
        use_host()
        import comfy.sd1_clip
        from transformers import CLIPTokenizer

        self._tokenizer = CLIPTokenizer.from_pretrained(str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"))
        tokens = {token for word in [*world_words(), ","] for token in self._encode(word)}
        self.ids = [START, END, *sorted(tokens)]
        self._row = {token: row + 1 for row, token in enumerate(self.ids)}
        self.encode_word = cache(self._rows)

    def _encode(self, word: str) -> list[int]:
        return self._tokenizer(word, add_special_tokens=False)["input_ids"]

    def _rows(self, word: str) -> list[int]:
        return [self._row.get(token, 0) for token in self._encode(word)]

    def __len__(self) -> int:
        return len(self.ids) + 1

    def batch(self, captions: list[str], rng: np.random.Generator | None = None) -> torch.Tensor:
        """Rows [B, 77], padded with END as SD1.5 does; with `rng`, some captions get strange words."""
        out = torch.full((len(captions), LENGTH), self._row[END])
        for i, caption in enumerate(captions):
            rows = [row for word in re.findall(r"\w+|,", caption) for row in self.encode_word(word)]
            if rng is not None and rng.random() < STRANGE_SHARE:
                for _ in range(int(rng.integers(1, 4))):
                    rows.insert(int(rng.integers(0, len(rows) + 1)), 0)
            rows = [self._row[START], *rows[: LENGTH - 2]]
            out[i, : len(rows)] = torch.tensor(rows)
        return out


def new_text_encoder(rows: int) -> torch.nn.Module:
    """A transformers CLIP text model with the demo's configuration and a table of `rows` rows."""
    from extension.tiny_sd import TEXT_CONFIG
    from transformers import CLIPTextConfig, CLIPTextModel

    config = {k: v for k, v in TEXT_CONFIG.items() if k != "architectures"}
    config |= {"vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return CLIPTextModel(CLIPTextConfig(**config, attn_implementation="eager"))
