"""A language model in a transformers folder as the host's CLIP, so that it can be asked for features like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

NAME = "llm"
MAX_TOKENS = 4096
"""Tokens of a prompt that are read."""


def load_folder(folder: Path, dtype: torch.dtype) -> comfy.sd.CLIP:
    """The model of a transformers folder in this precision, without its head for words. No code of it is run.

    Raises:
        ValueError: The folder holds no model that transformers opens, or no tokenizer.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises what the layers below it raise
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"The model folder {folder} cannot be loaded: {why}. Download it again.") from error
    model = model.eval().requires_grad_(False)
    target = comfy.supported_models_base.ClipTarget(lambda **_: _Words(words), lambda **_: _Reader(model, dtype))
    return comfy.sd.CLIP(target, parameters=model.num_parameters(), model_options={"dtype": dtype})


class _Words:
    """The tokenizer in the host's words: token and weight, one part for each prompt."""

    def __init__(self, words: Any) -> None:
        self.words = words

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, Any]:
        ids = self.words(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        # A tokenizer without a start or an end says nothing for an empty prompt.
        ids = ids or [next(i for i in (self.words.bos_token_id, self.words.eos_token_id, 0) if i is not None)]
        return {NAME: [[(token, 1.0, 0) if return_word_ids else (token, 1.0) for token in ids]]}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class _Reader(nn.Module):
    """A transformers model with the methods that the host's CLIP asks of a text encoder."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtypes = {dtype}
        self.num_layers = model.config.get_text_config().num_hidden_layers
        self.reset_clip_options()

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.layer = options.get("layer", self.layer)
        self.device = options.get("execution_device", self.device)

    def reset_clip_options(self) -> None:
        self.layer: int | None = None
        self.device: torch.device | None = None

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, None]:
        ids = torch.tensor([[token for token, *_ in part] for part in tokens[NAME]], device=self.device)
        with torch.inference_mode():
            found = self.model(ids, output_hidden_states=self.layer is not None)
        states = found.last_hidden_state if self.layer is None else found.hidden_states[self.layer]
        return states.float().to(comfy.model_management.intermediate_device()), None

    def load_sd(self, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        return [], []
