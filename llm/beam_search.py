"""Beam search whose ranking does not change with a library's version.

The rules are those of transformers up to 4.35, with which Promptist (arXiv 2212.09611, section 2.2) was published:

- of all continuations of the running beams the 2·beams likeliest are looked at; those of them that do not end run on,
  as many as there are beams;
- one that ends counts as finished only if it is among the first `beams`; the best `beams` finished ones are kept;
- when the last token is spent, what still runs counts as finished too;
- the score of a finished one is the sum of its log-probabilities divided by length ** length_penalty, where the
  length is that of the prompt and of the new tokens, without the token that ends it.

Later versions divide by the number of new tokens alone (their pull requests 27351 and 27808), so with Promptist's
length penalty of −1 they often put another text first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
"""Takes the rows [n] of the last call that run on and the token [n] that each goes on with; gives log-probabilities
[n, vocabulary] of what comes next. The prompt is row 0 of the call before the first."""


@dataclass(frozen=True)
class Beam:
    """New tokens without the one that ends them, the natural logarithm of their probability, and their score."""

    tokens: tuple[int, ...]
    log_probability: float
    score: float


@torch.inference_mode()
def beam_search(
    first: Tensor, step: Step, prompt_length: int, beams: int, longest: int, end: int, length_penalty: float = -1.0
) -> list[Beam]:
    """The likeliest continuations of a prompt, the best score first; as many as there are beams, if there are.

    Args:
        first: log-probabilities [vocabulary] of the first new token.
        step: gives those of the next ones.
        prompt_length: tokens of the prompt.
        beams: how many run side by side.
        longest: most new tokens, the one that ends a text counted.
        end: the token that ends a text.
        length_penalty: not above 0. Then a longer text can only score lower, so the search may stop as soon as no
            running beam can reach the worst that is kept, and loses nothing.
    """
    finished: list[Beam] = []
    sums, tokens, following = first.new_zeros(1), first.new_zeros((1, 0), dtype=torch.long), first[None]
    for length in range(prompt_length, prompt_length + longest):
        best, rows, words = _likeliest(sums, following, 2 * beams)
        ends = words == end
        for i in ends[:beams].nonzero().flatten().tolist():
            finished.append(_beam(tokens[rows[i]], best[i], length, length_penalty))
        finished = sorted(finished, key=lambda beam: -beam.score)[:beams]
        going = (~ends).nonzero().flatten()[:beams]
        sums, rows, words = best[going], rows[going], words[going]
        tokens = torch.cat([tokens[rows], words[:, None]], dim=1)
        if not len(going):
            return finished
        if len(finished) == beams and finished[-1].score >= sums[0].item() / (length + 1) ** length_penalty:
            return finished
        if length + 1 < prompt_length + longest:
            following = step(rows, words)
    last = [_beam(row, total, prompt_length + longest, length_penalty) for row, total in zip(tokens, sums, strict=True)]
    return sorted(finished + last, key=lambda beam: -beam.score)[:beams]


def _likeliest(sums: Tensor, following: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, rows and tokens [most] of the likeliest continuations of the running beams, the likeliest first."""
    total = (sums[:, None] + following).flatten()
    best, at = total.topk(min(most, len(total)))
    possible = best > float("-inf")  # a small vocabulary has fewer
    best, at = best[possible], at[possible]
    return best, at // following.shape[1], at % following.shape[1]


def _beam(tokens: Tensor, total: Tensor, length: int, length_penalty: float) -> Beam:
    return Beam(tuple(tokens.tolist()), total.item(), total.item() / length**length_penalty)
