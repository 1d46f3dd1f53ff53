"""What a policy maximises: PPO (arXiv 1707.06347) and the group-relative variant GRPO (arXiv 2402.03300), as tensors.

The KL term of Promptist's reward (arXiv 2212.09611, equation 4) is taken off word by word: kl_weight times how much
likelier a written token has become than it was at the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CLIP = 0.2
"""How far the probability of a token may move in one update and still be rewarded, as a share of what it was."""
LAMBDA = 0.95
"""Of generalised advantage estimation (arXiv 1506.02438); what comes later is not discounted, gamma is 1."""


def token_advantages(rewards: Tensor, values: Tensor) -> Tensor:
    """How much better each token [t] of a text was than expected, from rewards [t] and values [t] before each token."""
    following = torch.cat([values[1:], values.new_zeros(1)])
    surprises = rewards + following - values
    advantages, later = torch.empty_like(surprises), surprises.new_zeros(())
    for place in range(len(surprises) - 1, -1, -1):
        later = surprises[place] + LAMBDA * later
        advantages[place] = later
    return advantages


def ppo_targets(
    rewards: Sequence[float], gaps: Sequence[Tensor], values: Sequence[Tensor], kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Advantages [w], standardised over all tokens of the batch, and returns [w] that the values are to predict.

    Args:
        rewards: of each text.
        gaps: log-probability of each token [t] less that at the start.
        values: what was expected before each token [t].
    """
    advantages, returns = [], []
    for reward, gap, value in zip(rewards, gaps, values, strict=True):
        each = -kl_weight * gap
        each[-1] += reward
        advantage = token_advantages(each, value)
        advantages.append(advantage)
        returns.append(advantage + value)
    return standardised(torch.cat(advantages)), torch.cat(returns)


def group_targets(rewards: Sequence[float], gaps: Sequence[Tensor], groups: Sequence[int], kl_weight: float) -> Tensor:
    """Advantages [w]: each token has that of its text, which is its reward standardised within its group.

    A group whose texts are rewarded alike teaches nothing.
    """
    totals = torch.tensor([reward - kl_weight * float(gap.sum()) for reward, gap in zip(rewards, gaps, strict=True)])
    of, advantages = torch.tensor(groups), torch.zeros(len(totals))
    for group in of.unique():
        advantages[of == group] = standardised(totals[of == group])
    return torch.cat([advantages[row].expand(len(gap)) for row, gap in enumerate(gaps)])


def standardised(numbers: Tensor) -> Tensor:
    """Numbers [n] with the mean 0 and the variance 1; all 0 if they are (almost) alike."""
    centred = numbers - numbers.mean()
    spread = centred.square().mean().sqrt()
    return centred / spread if spread > 1e-6 else torch.zeros_like(numbers)


def clipped_loss(new: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """PPO's clipped objective (equation 7), to be minimised, for each token [w], from its log-probabilities [w] now
    and when it was written."""
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
