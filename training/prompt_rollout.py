"""What a policy tries while it learns: candidates by diverse beam search (arXiv 1610.02424), and how likely they are.

Promptist explores by diverse beam search with 8 beams and a diversity penalty of 1 (arXiv 2212.09611, section 2.3).
Here each beam is a group of its own: the groups choose their next token one after the other, and a token that g
groups before have chosen at this place counts g times the penalty less. Recent versions of transformers have this
search only as code that is fetched when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

DIVERSITY = 1.0
"""In nats."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts side by side.

    `tokens` [n, length] are those of prompts with what follows, filled up behind. `written` [n, length - 1] marks the
    places whose next token was written by the policy.
    """

    tokens: Tensor
    written: Tensor

    @property
    def words(self) -> Tensor:
        """The written tokens [w], row by row."""
        return self.tokens[:, 1:][self.written]


def rows_of(texts: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> Rows:
    """Rows of prompts and of what was written behind each, as tokens."""
    longest = max(len(prompt) + len(written) for prompt, written in texts)
    tokens = torch.zeros(len(texts), longest, dtype=torch.long)
    marks = torch.zeros(len(texts), longest - 1, dtype=torch.bool)
    for row, (prompt, written) in enumerate(texts):
        tokens[row, : len(prompt) + len(written)] = torch.tensor([*prompt, *written])
        marks[row, len(prompt) - 1 : len(prompt) + len(written) - 1] = True
    return Rows(tokens.to(device), marks.to(device))


def read_rows(model: GPT2LMHeadModel, rows: Rows) -> tuple[Tensor, Tensor]:
    """Log-probabilities [w, vocabulary] of all tokens at the written places, and the hidden states [w, d] there."""
    hidden = model.transformer(input_ids=rows.tokens, use_cache=False).last_hidden_state[:, :-1][rows.written]
    return model.lm_head(hidden).float().log_softmax(-1), hidden


@torch.no_grad()
def diverse_beams(
    model: GPT2LMHeadModel,
    prompts: Sequence[Sequence[int]],
    groups: int,
    longest: int,
    end: int,
    check: Callable[[], None] = lambda: None,
) -> list[list[list[int]]]:
    """The tokens of `groups` continuations of each prompt, at most `longest` each, with `end` where it was written.

    `check` is called before each token and may raise.
    """
    from transformers import DynamicCache

    device, cache, count = model.device, DynamicCache(), len(prompts)
    width = max(map(len, prompts))
    shown = torch.tensor([[end] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    seen = (torch.arange(width, device=device) >= width - lengths[:, None]).long()

    def read(words: Tensor, places: Tensor) -> Tensor:
        hidden = model.transformer(
            input_ids=words, attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return model.lm_head(hidden[:, -1]).float().log_softmax(-1)

    following = read(shown, (seen.cumsum(1) - 1).clamp(min=0)).repeat_interleave(groups, 0)
    cache.batch_repeat_interleave(groups)
    seen, places = seen.repeat_interleave(groups, 0), lengths.repeat_interleave(groups)[:, None]
    running = torch.ones(count, groups, dtype=torch.bool, device=device)
    written: list[Tensor] = []
    for number in range(longest):
        check()
        words = _diverse_words(following.view(count, groups, -1), running)
        written.append(words)
        running = running & (words != end)
        if number + 1 == longest or not running.any():
            break
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)
        following = read(words.view(-1, 1), places + number)
    return [[_until(row, end) for row in group] for group in torch.stack(written, -1).tolist()]


def _diverse_words(following: Tensor, running: Tensor) -> Tensor:
    """The next token [p, g] of each group, from log-probabilities [p, g, vocabulary]; `running` [p, g] groups count."""
    chosen = torch.zeros_like(following[:, 0])
    words = []
    for group in range(following.shape[1]):
        word = (following[:, group] - DIVERSITY * chosen).argmax(-1, keepdim=True)
        chosen.scatter_add_(1, word, running[:, group, None].to(chosen.dtype))
        words.append(word)
    return torch.cat(words, 1)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
