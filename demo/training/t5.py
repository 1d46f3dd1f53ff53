"""A small language model of T5's layout that reads ShapeWorld captions (T5: arXiv 1910.10683).

It is trained on text alone: at each word it has to say what the caption tells of the thing that the word is about, such
as its colour, which may stand sentences away. So what belongs together is in its features. Questions to a decoder were
tried first: with two or more things, looking up was not learnt in 3,000 steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from shapeworld.caption import STYLE_PREFIX, STYLE_SUFFIX, describe, write, write_thing
from shapeworld.dense import dense_words, tell
from shapeworld.scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES, random_scene

from .host import autocast, device, use_host
from .loop import train

SEED, STEPS, BATCH, PEAK = 71, 1_600, 32, 1e-3
DENSE_SHARE = 0.75
KINDS = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "place": PLACES}
"""What is to be said of a thing. What a short caption leaves out is not asked."""
NOTHING = -100
CONFIG = {
    "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 3, "dense_act_fn": "relu",
    "is_gated_act": False, "model_type": "t5", "vocab_size": 32128,
}  # fmt: skip
"""The encoder's configuration, in the words of the host's T5 class."""
PAD, END = 0, 1
PAD_ROW = 1
"""The row of the padding in the small table."""
VOCABULARY = CONFIG["vocab_size"]


def spoken_words() -> list[str]:
    """Every word that a caption can hold, with upper and lower first letters."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS, *PLACES, *RELATIONS]
    phrases += [*STYLE_PREFIX.values(), *STYLE_SUFFIX.values(), *dense_words()]
    phrases += ["a an the shape background on and pre"]
    words = {word for phrase in phrases for word in phrase.split()}
    return sorted(words | {word.capitalize() for word in words})


class T5Rows:
    """Texts to rows of the small table. Row 0 stands for every token outside of `ids`; rows 1 and 2 are pad and end."""

    def __init__(self) -> None:
        use_host()
        import comfy.text_encoders.t5
        from transformers import T5TokenizerFast

        folder = Path(comfy.text_encoders.t5.__file__).parent / "t5_tokenizer"
        self._tokenizer = T5TokenizerFast.from_pretrained(str(folder))
        texts = [f"{word}{mark}" for word in spoken_words() for mark in ("", ".", ",")]
        tokens = {token for text in texts for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]}
        self.ids = [PAD, END, *sorted(tokens - {PAD, END})]
        self._row = {token: row + 1 for row, token in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def rows(self, text: str) -> tuple[list[int], list[int]]:
        """The rows of a text, with the end at its end, and the character with which each token begins.

        The end has no character, which is said by -1.
        """
        read = self._tokenizer(text, return_offsets_mapping=True)
        starts = [start if end > start else -1 for start, end in read["offset_mapping"]]
        return [self._row.get(token, 0) for token in read["input_ids"]], starts

    def batch(self, texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [B, N], padded, and the mask [B, N] of those that are not padding."""
        longest = max(len(text) for text in texts)
        rows = torch.full((len(texts), longest), PAD_ROW)
        for at, text in enumerate(texts):
            rows[at, : len(text)] = torch.tensor(text)
        return rows, rows != PAD_ROW


def sample(rng: np.random.Generator) -> tuple[str, list[tuple[int, int, list[int]]]]:
    """A caption, and for its parts from and to a character: which value of each of KINDS is told of their thing."""
    if rng.random() < DENSE_SHARE:
        scene = random_scene(rng, int(rng.integers(2, 6)), {"flat": 1.0})
        text, parts = "", []
        for sentence, index in tell(scene, rng):
            if index is not None:
                parts.append((len(text), len(text) + len(sentence), _values(scene.things[index])))
            text += f"{sentence} "
        return text.rstrip(), parts
    description = describe(random_scene(rng), rng)
    text, parts, end = write(description, rng), [], 0
    for words in description.things:
        start = text.index(write_thing(words), end)
        end = start + len(write_thing(words))
        parts.append((start, end, _values(words)))
    return text, parts


def _values(told: object) -> list[int]:
    """The number of each value among its kind."""
    return [
        NOTHING if (value := getattr(told, kind)) is None else list(values).index(value)
        for kind, values in KINDS.items()
    ]


class Reader(torch.nn.Module):
    """A T5 encoder with a linear layer that says, at each token, what is told of its thing."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        from transformers import T5Config, T5EncoderModel

        known = {name: CONFIG[name] for name in ("d_model", "d_kv", "num_heads", "d_ff", "num_layers")}
        self.t5 = T5EncoderModel(
            T5Config(**known, vocab_size=rows, feed_forward_proj="relu", dropout_rate=0.0, pad_token_id=PAD_ROW)
        )
        self.say = torch.nn.Linear(CONFIG["d_model"], sum(len(values) for values in KINDS.values()))

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores [B, N, values] of all values of all kinds."""
        return self.say(self.t5(rows, attention_mask=mask).last_hidden_state)


def reading_loss(model: Reader, table: T5Rows, rng: np.random.Generator, batch: int) -> dict[str, torch.Tensor]:
    """Cross-entropy of what is told, and the share of tokens at which all of it is right."""
    samples = [sample(rng) for _ in range(batch)]
    read = [table.rows(text) for text, _ in samples]
    rows, mask = table.batch([found for found, _ in read])
    told = torch.full((*rows.shape, len(KINDS)), NOTHING)
    for at, ((_, parts), (_, starts)) in enumerate(zip(samples, read, strict=True)):
        for start, end, values in parts:
            inside = [token for token, place in enumerate(starts) if start <= place < end]
            told[at, inside] = torch.tensor(values)
    to = device()
    with autocast():
        scores = model(rows.to(to), mask.to(to)).float()
    loss, right, start = scores.new_zeros(()), torch.ones(rows.shape, dtype=torch.bool), 0
    for number, values in enumerate(KINDS.values()):
        part, wanted = scores[..., start : start + len(values)], told[..., number]
        loss = loss + torch.nn.functional.cross_entropy(part.flatten(0, 1), wanted.flatten().to(to))
        right &= (part.argmax(-1).cpu() == wanted) | (wanted == NOTHING)
        start += len(values)
    return {"loss": loss, "all_right": right[(told != NOTHING).any(-1)].float().mean()}


def train_t5(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains from nothing on text alone; returns the averaged weights of table and encoder by the host's names."""
    table = T5Rows()
    torch.manual_seed(SEED)
    model = Reader(len(table)).to(device())
    weights = train(
        "t5",
        model,
        lambda step, rng: reading_loss(model, table, rng, BATCH),
        steps=steps,
        peak=PEAK,
        work=work,
        seed=SEED,
    )
    own = {name.removeprefix("t5."): value for name, value in weights.items() if name.startswith("t5.")}
    own.pop("encoder.embed_tokens.weight", None)
    return own
