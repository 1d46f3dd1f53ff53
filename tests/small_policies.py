"""Tiny GPT-2 policies for tests, in the layout in which Promptist is released."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

END = "<|endoftext|>"
PROMPT = "a red fox in the snow"
STYLED = (
    "a red fox in the snow, digital painting, sharp focus",
    "a red fox in the snow, oil painting, highly detailed",
    "a fox in the snow, trending on artstation",
)
"""What a taught policy makes of the prompt, the likeliest first; the last one loses a word."""
CORPUS = (
    *STYLED,
    "a big blue star above a lighthouse on a rock, two gulls Rephrase:",
    "카툰 별 🎨",
    "1girl (masterpiece:1.2)",
)


@functools.cache
def pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte pair encoding of 400 tokens; as in GPT-2 the end of a text is the last."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=399, initial_alphabet=alphabet))
    model = json.loads(trained.to_str())["model"]
    return {**model["vocab"], END: len(model["vocab"])}, [tuple(pair) for pair in model["merges"]]


def tokenizer() -> Tokenizer:
    vocabulary, merges = pairs()
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(END, special=True)])
    return made


def small_model(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    """A GPT-2 of random weights, drawn so wide that its next tokens are far from equally likely."""
    size = len(pairs()[0])
    config = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 256, "initializer_range": 0.3, "vocab_size": size}
    config = GPT2Config(**{**config, "bos_token_id": size - 1, "eos_token_id": size - 1, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def save_policy(folder: Path, model: GPT2LMHeadModel | None = None, masks: bool = True) -> Path:
    """The folder as it is released: config, pytorch_model.bin with the masks of older versions, two tokenizer files."""
    model = model or small_model()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "model_type": "gpt2"}))
    state = dict(model.state_dict())
    if masks:
        for layer in range(model.config.n_layer):
            state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin")
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(pairs()[0]), encoding="utf-8")
    return folder


def taught_model() -> GPT2LMHeadModel:
    """A policy that has learnt to make STYLED of PROMPT, with the shares 3, 2 and 1."""
    encode, end = tokenizer().encode, pairs()[0][END]
    model = small_model(initializer_range=0.02, n_embd=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    texts = [STYLED[0]] * 3 + [STYLED[1]] * 2 + [STYLED[2]]
    rows = [[*encode(f"{PROMPT} Rephrase: {text}").ids, end] for text in texts]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    labels[:, : len(encode(f"{PROMPT} Rephrase:").ids)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for _ in range(60):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=labels).loss.backward()
            optimizer.step()
    return model.eval()
