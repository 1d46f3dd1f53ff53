"""Copies of a policy's model to train, and the folder that a trained one is saved to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..llm.gpt2_files import new_model
from .loop import replace_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

Weights = Mapping[str, Tensor]
"""A policy's weights by name, as `weights_of` gives them."""


def weights_of(model: GPT2LMHeadModel) -> dict[str, Tensor]:
    """A copy of the weights on the CPU; the output layer only where it has weights of its own."""
    tied = "lm_head.weight" if model.config.tie_word_embeddings else None
    return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items() if name != tied}


def copy_model(model: GPT2LMHeadModel, weights: Weights | None = None) -> GPT2LMHeadModel:
    """A model of its own on the CPU, without dropout, with the same weights or others. Call outside inference mode."""
    made = new_model(model.config.to_dict())
    with torch.no_grad():
        load_weights(made, weights_of(model) if weights is None else weights)
    return made.eval()


def load_weights(model: GPT2LMHeadModel, weights: Weights) -> None:
    """Put weights of `weights_of` into a model."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        raise ValueError("These weights are those of another policy.")
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)


def save_policy(folder: Path, model: GPT2LMHeadModel, tokenizer: Tokenizer, weights: Weights) -> None:
    """Write or replace a policy's folder, as Load Prompt Policy opens it. The weights are replaced at once, never half.

    Raises:
        OSError: it cannot be written. The weights that were there stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps({**model.config.to_dict(), "model_type": "gpt2"}, indent=1)
    replace_file(folder / "config.json", lambda part: part.write_text(config, encoding="utf-8"))
    replace_file(folder / "tokenizer.json", lambda part: tokenizer.save(str(part)))
    replace_file(folder / "model.safetensors", lambda part: save_file(dict(weights), part))
