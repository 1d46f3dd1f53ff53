"""A small GPT-2 that writes a user's prompt as ShapeWorld's people would: Promptist's start (arXiv 2212.09611, 2.1).

It is trained from nothing on the pack's own pairs, so the loop is the pack's for that and not TRL's for fine-tuning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from shapeworld.taste import MODIFIERS, training_prompts
from torch.nn.functional import cross_entropy

from .host import use_pack

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

SEED, STEPS, BATCH, PEAK, PROMPTS = 91, 12_000, 16, 4e-3, 24_000
VOCABULARY, POSITIONS = 640, 160
END = "<|endoftext|>"
SIZE = {"n_layer": 2, "n_head": 4, "n_embd": 96}
NOTHING = -100

Row = tuple[list[int], int]
"""The tokens of a pair, and how many of them the policy is given and has not to write."""


def pairs() -> list[tuple[str, str]]:
    """What a user might type, and the good prompt for it."""
    from atelier.llm.words import content_words
    from atelier.training.prompt_pairs import make_pairs

    words = frozenset(content_words(" ".join(MODIFIERS)))
    return [(pair.source, pair.target) for pair in make_pairs(training_prompts(PROMPTS), SEED, None, words).pairs]


def new_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte pair encoding of GPT-2's kind, learnt from texts; the last token ends a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Token to number, in the order of the numbers. The merges follow from it."""
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def configuration(tokens: int) -> dict[str, object]:
    """`config.json` of a policy with so many tokens."""
    end = {"bos_token_id": tokens - 1, "eos_token_id": tokens - 1}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return {"model_type": "gpt2", "vocab_size": tokens, "n_positions": POSITIONS, **SIZE, **end, **no_dropout}


def new_model(tokens: int) -> GPT2LMHeadModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(SEED)
    return GPT2LMHeadModel(GPT2Config.from_dict(configuration(tokens)))


def as_rows(tokenizer: Tokenizer, found: list[tuple[str, str]]) -> list[Row]:
    """The pairs that fit into the policy, the shortest first."""
    end, rows = tokenizer.token_to_id(END), []
    for source, target in found:
        given = tokenizer.encode(f"{source} Rephrase:").ids
        row = [*given, *tokenizer.encode(f" {target}").ids, end]
        if len(row) <= POSITIONS:
            rows.append((row, len(given)))
    return sorted(rows, key=lambda row: len(row[0]))


def batch(rows: list[Row], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, N] of rows of about the same length, so that little is filled up, and what is to be written [B, N]."""
    start = int(rng.integers(len(rows) - BATCH + 1))
    picked = rows[start : start + BATCH]
    tokens = torch.zeros(BATCH, len(picked[-1][0]), dtype=torch.long)
    wanted = torch.full_like(tokens, NOTHING)
    for at, (row, given) in enumerate(picked):
        tokens[at, : len(row)] = torch.tensor(row)
        wanted[at, given : len(row)] = tokens[at, given : len(row)]
    return tokens, wanted


def train_policy(work: Path, steps: int = STEPS) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Trains from nothing; the averaged weights of the model's body, and its config and vocabulary as JSON."""
    use_pack()
    from atelier.training.loop import Plan, train

    found = pairs()
    tokenizer = new_tokenizer([f"{source} Rephrase: {target}" for source, target in found])
    rows, model = as_rows(tokenizer, found), new_model(tokenizer.get_vocab_size())

    def loss_at(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        tokens, wanted = batch(rows, rng)
        scores = model(input_ids=tokens).logits[:, :-1]
        return {"loss": cross_entropy(scores.flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=NOTHING)}

    weights = train(
        model,
        loss_at,
        Plan(steps, PEAK, SEED, average=0.98, warmup=40, save_every=50),
        work / "policy",
        progress=lambda step, row: print(f"policy: {step}/{steps}", row, flush=True),
    )
    about = {"config": configuration(tokenizer.get_vocab_size()), "vocabulary": vocabulary(tokenizer)}
    body = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    return body, {name: json.dumps(value) for name, value in about.items()}
