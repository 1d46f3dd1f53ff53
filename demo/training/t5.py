"""A small language model of T5's layout that reads ShapeWorld captions (T5: arXiv 1910.10683).

It is trained on text alone: the encoder reads a caption, and the decoder answers questions about it, such as which
colour the star has. What belongs together has to be in the encoder's features for that. Only the encoder is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from shapeworld.caption import KEEP, STYLE_PREFIX, STYLE_SUFFIX, describe, write
from shapeworld.dense import dense_scene, dense_words, write_dense
from shapeworld.scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, random_scene

from .host import device, use_host
from .loop import train

SEED, STEPS, BATCH, PEAK = 71, 3_000, 24, 1e-3
QUESTIONS = 6
"""Questions about each caption of a batch."""
DENSE_SHARE, EASY_UNTIL = 0.75, 0.5
"""How many captions are dense, and the part of the training in which they are about two things, then about two or
three, and so on, before all are about three to five. On five things from the start, looking up was not learnt."""
SAID, SAID_SHORTLY = ("shape", "colour", "place", "size", "texture"), ("shape", "colour")
"""What a dense and a short caption say of each thing."""
CONFIG = {
    "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 3, "dense_act_fn": "relu",
    "is_gated_act": False, "model_type": "t5", "vocab_size": 32128,
}  # fmt: skip
"""The encoder's configuration, in the words of the host's T5 class."""
PAD, END = 0, 1
PAD_ROW, END_ROW = 1, 2
"""Their rows in the small table."""
VOCABULARY = CONFIG["vocab_size"]


def spoken_words() -> list[str]:
    """Every word that a caption, a question or an answer can hold, with upper and lower first letters."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS, *PLACES, *RELATIONS]
    phrases += [*STYLE_PREFIX.values(), *STYLE_SUFFIX.values(), *dense_words()]
    phrases += ["a an the shape background on and what colour is which where how many pre"]
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
        texts = [f"{word}{mark}" for word in spoken_words() for mark in ("", ".", ",", "?")]
        tokens = {token for text in texts for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]}
        self.ids = [PAD, END, *sorted(tokens - {PAD, END})]
        self._row = {token: row + 1 for row, token in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def rows(self, text: str) -> list[int]:
        """The rows of a text, with the end at its end."""
        return [self._row.get(token, 0) for token in self._tokenizer(text)["input_ids"]]

    def batch(self, texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [B, N], padded, and the mask [B, N] of those that are not padding."""
        longest = max(len(text) for text in texts)
        rows = torch.full((len(texts), longest), PAD_ROW)
        for at, text in enumerate(texts):
            rows[at, : len(text)] = torch.tensor(text)
        return rows, rows != PAD_ROW


@dataclass(frozen=True)
class Question:
    """A question about a scene, and its answer."""

    asked: str
    answer: str


def ask(scene: Scene, rng: np.random.Generator, told: Sequence[str]) -> Question:
    """A question about one of the attributes `told`, with one answer: the others of them single a thing out."""
    by_which = [name for name in ("colour", "shape", "place") if name in told]
    while True:
        wanted = str(rng.choice([*told, "background"]))
        if wanted == "background":
            return Question("which background is it?", scene.background)
        thing = scene.things[int(rng.integers(len(scene.things)))]
        known = [str(name) for name in rng.permutation([name for name in by_which if name != wanted])]
        by = {name: getattr(thing, name) for name in known[: int(rng.integers(1, len(known) + 1))]}
        if sum(all(getattr(other, name) == value for name, value in by.items()) for other in scene.things) > 1:
            continue
        words = [by.get("colour"), by.get("shape", "shape"), by.get("place")]
        return Question(f"what {wanted} is the {' '.join(word for word in words if word)}?", getattr(thing, wanted))


def new_language_model(rows: int) -> torch.nn.Module:
    """A transformers T5 with the demo's configuration, two decoder layers and a table of `rows` rows."""
    from transformers import T5Config, T5ForConditionalGeneration

    known = {
        name: value for name, value in CONFIG.items() if name not in ("model_type", "dense_act_fn", "is_gated_act")
    }
    config = T5Config(
        **known | {"vocab_size": rows}, num_decoder_layers=2, feed_forward_proj="relu", dropout_rate=0.0,
        pad_token_id=PAD_ROW, eos_token_id=END_ROW, decoder_start_token_id=PAD_ROW,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def sample(rng: np.random.Generator, progress: float = 1.0) -> tuple[str, list[Question]]:
    """A caption that says all that is asked, and questions about it, at a progress of the training in 0..1."""
    if rng.random() < DENSE_SHARE:
        most = 2 + int(4 * progress / EASY_UNTIL)
        scene = dense_scene(rng, (3, 4, 5) if most > 5 else range(2, most + 1))
        return write_dense(scene, rng), [ask(scene, rng, SAID) for _ in range(QUESTIONS)]
    scene = random_scene(rng, style_share={"flat": 1.0})
    said = dict.fromkeys(SAID_SHORTLY, 1.0)
    description = describe(
        scene, rng, {name: said.get(name, share) for name, share in KEEP.items()} | {"background": 1}
    )
    return write(description, rng), [ask(scene, rng, SAID_SHORTLY) for _ in range(QUESTIONS)]


def answer_loss(
    model: torch.nn.Module, table: T5Rows, rng: np.random.Generator, batch: int, progress: float = 1.0
) -> dict[str, torch.Tensor]:
    """Cross-entropy of the answers' tokens, and the share of answers that are right token by token."""
    captions, asked, answers = [], [], []
    for _ in range(batch):
        caption, questions = sample(rng, progress)
        captions.append(table.rows(caption))
        asked += [table.rows(question.asked)[:-1] for question in questions]
        answers += [table.rows(question.answer) for question in questions]
    rows, mask = table.batch(captions)
    spoken, spoken_mask = table.batch([a + b for a, b in zip(asked, answers, strict=True)])
    labels = torch.where(spoken_mask, spoken, -100)
    for at, question in enumerate(asked):
        labels[at, : len(question)] = -100
    to = device()
    with torch.autocast(to.type, torch.bfloat16):
        read = model.encoder(rows.to(to), attention_mask=mask.to(to)).last_hidden_state
        many, many_mask = (part.to(to).repeat_interleave(QUESTIONS, 0) for part in (read, mask))
        # The decoder begins with padding. It reads the question, which has no labels.
        heard = torch.nn.functional.pad(spoken[:, :-1], (1, 0), value=PAD_ROW)
        out = model(
            encoder_outputs=(many,), attention_mask=many_mask, decoder_input_ids=heard.to(to), labels=labels.to(to)
        )
    best = out.logits.detach().argmax(-1).cpu()
    right = ((best == labels) | (labels == -100)).all(1).float().mean()
    return {"loss": out.loss.float(), "answers_right": right}


def train_t5(work: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """Trains from nothing on text alone; returns the averaged weights of table and encoder by the host's names."""
    table = T5Rows()
    torch.manual_seed(SEED)
    model = new_language_model(len(table)).to(device())
    weights = train(
        "t5",
        model,
        lambda step, rng: answer_loss(model, table, rng, BATCH, step / steps),
        steps=steps,
        peak=PEAK,
        work=work,
        seed=SEED,
    )
    return {name: value for name, value in weights.items() if name == "shared.weight" or (name.startswith("encoder.")
            and name != "encoder.embed_tokens.weight")}  # fmt: skip
