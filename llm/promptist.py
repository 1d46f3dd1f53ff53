"""Promptist: a GPT-2 that has learnt to write a user's prompt as an image model likes it (arXiv 2212.09611).

Inference is that of section 2.2 and of the authors' demo: the prompt with " Rephrase:" behind it is continued by
beam search with 8 beams, up to 75 new tokens and a length penalty of −1. What comes out is cut by tokens, never by
text, so a prompt that holds the words " Rephrase:" itself does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backend import Hooks
from .beam_search import Step, beam_search
from .gpt2_files import PolicySetupError, read_config, read_model, read_tokenizer
from .gpt2_reading import Reading

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

POLICY_TYPE = "ATELIER_PROMPT_POLICY"
"""Name of the socket that carries a `Policy`."""

SUFFIX = " Rephrase:"
BEAMS = 8
NEW_TOKENS = 75
READ_TOKENS = 60
"""Tokens of a prompt that the policy is shown. It has to repeat them within its new tokens and add some; a longer
prompt would lose words whatever the policy does."""


@dataclass(frozen=True)
class Rephrased:
    """One text of the policy, its log-probability (natural logarithm, summed over its tokens), and its beam score."""

    text: str
    log_probability: float
    score: float


@dataclass(frozen=True, eq=False)
class Policy:
    """A loaded policy.

    `positions` are the tokens that it takes in all, `end` is the token that ends a text. `ready` puts the model on its
    device and returns it.
    """

    name: str
    tokenizer: Tokenizer = field(repr=False)
    positions: int
    end: int
    ready: Callable[[], GPT2LMHeadModel] = field(repr=False)
    hooks: Hooks = field(default=Hooks(), repr=False)

    @property
    def new_tokens(self) -> int:
        """Most tokens that it writes: 75, or half of its positions if they are few."""
        return min(NEW_TOKENS, self.positions // 2)

    @property
    def read_tokens(self) -> int:
        """Most tokens of a prompt that it is shown."""
        return min(READ_TOKENS, self.positions - self.new_tokens - self.count(SUFFIX))

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, and none of the policy's own."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokens(text))

    def asked(self, prompt: str) -> list[int]:
        """The tokens that the policy continues."""
        return self.tokens(prompt.strip() + SUFFIX)

    def text_of(self, tokens: Sequence[int]) -> str:
        """What was written. The last letter may be cut in two when the tokens are spent."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False).rstrip("\ufffd").strip()

    def rephrase(self, prompt: str, beams: int = BEAMS) -> list[Rephrased]:
        """The policy's texts for a prompt, the best score first; as many as there are beams, if there are.

        The same prompt gives the same texts.

        Raises:
            ValueError: the prompt is longer than `read_tokens`.
            PolicySetupError: the model gives no numbers.
        """
        tokens = self.asked(prompt)
        if len(tokens) + self.new_tokens > self.positions:
            raise ValueError(f"The prompt has {len(tokens)} tokens, and {self.name} reads {self.read_tokens}.")
        first, step = self._steps(tokens)
        if not torch.isfinite(first).any():
            raise PolicySetupError(f"The policy {self.name} gives no numbers. Its weights may be damaged.")
        found = beam_search(first, step, len(tokens), beams, self.new_tokens, self.end)
        return [Rephrased(self.text_of(beam.tokens), beam.log_probability, beam.score) for beam in found]

    def _steps(self, tokens: list[int]) -> tuple[Tensor, Step]:
        """Log-probabilities [vocabulary] after the prompt, and what gives those of each next token."""
        reading = Reading(self.ready())
        show, written = self.hooks.progress(self.new_tokens), 0

        def step(rows: Tensor, words: Tensor) -> Tensor:
            nonlocal written
            self.hooks.check()
            written += 1
            show(written)
            return reading.step(rows, words)

        return reading.first(tokens), step


def open_policy(folder: Path, hold: Callable[[GPT2LMHeadModel], Callable[[], GPT2LMHeadModel]], hooks: Hooks) -> Policy:
    """Load a policy's folder to the CPU; the folder's name becomes the policy's.

    Args:
        folder: holds `config.json`, the weights as safetensors or `pytorch_model.bin`, and a tokenizer.
        hold: takes the loaded model and returns what puts it on its device.
        hooks: cancel and progress.

    Raises:
        PolicySetupError: the folder holds no policy that can be used.
    """
    config = read_config(folder)
    model = read_model(folder, config)
    end = model.config.eos_token_id
    if not isinstance(end, int) or not 0 <= end < model.config.vocab_size:
        raise PolicySetupError(f"{folder / 'config.json'} names no eos_token_id, the token that ends a text.")
    tokenizer = read_tokenizer(folder, end)
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise PolicySetupError(
            f"The tokenizer in {folder} has {tokenizer.get_vocab_size()} tokens, and the model knows "
            f"{model.config.vocab_size}. They belong to different models: copy the whole folder again."
        )
    return Policy(folder.name, tokenizer, model.config.n_positions, end, hold(model), hooks)
