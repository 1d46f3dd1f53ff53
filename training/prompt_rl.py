"""Reinforcement learning of a prompt policy, as Promptist does it (arXiv 2212.09611, section 2.3).

One step: the policy writes candidates for some prompts, `reward` says what each is worth, and the policy learns from
them in four passes. PPO has a value head on the policy's own hidden states; the group-relative method has none: it
compares the candidates of one prompt with each other.

This is a loop of its own because TRL's trainers sample their candidates: none explores by diverse beam search with a
length limit that changes from step to step, as the paper does. Candidates of a beam search are no fair sample of the
policy; the clipped objective is used on them all the same, as in the paper.

Nothing here needs a node or the host.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..llm.optimize import RewardOf
from ..llm.promptist import BEAMS, NEW_TOKENS, Policy
from .loop import read_state, write_state
from .policy_files import Weights, copy_model, load_weights, weights_of
from .policy_objective import clipped_loss, group_targets, ppo_targets
from .prompt_rollout import diverse_beams, read_rows, rows_of

Method = Literal["ppo", "group"]
EPOCHS = 4
VALUE_WEIGHT = 2.3
SHORTEST = 15
"""The length limit of a step is drawn between this and 75 tokens."""
ROWS_AT_ONCE = 8
"""Candidates that go through the policy together when it learns. Their probabilities of all tokens need memory."""
MAX_NORM = 1.0
"""Longest gradient."""


@dataclass(frozen=True)
class ReinforcePlan:
    """How long and how to learn. A step tries `candidates` for each of `prompts` prompts.

    kl_weight: of the KL term in the reward, per nat.
    kl_limit: nats by which the candidates' distribution may differ from the start's, mean over the candidates.
    save_every: steps after which the state is saved, and the policy is kept if it is the best so far.
    """

    steps: int
    method: Method = "ppo"
    prompts: int = 8
    candidates: int = 4
    learning_rate: float = 5e-5
    kl_weight: float = 0.2
    kl_limit: float = 10.0
    seed: int = 0
    save_every: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or self.prompts < 1 or not 1 <= self.candidates <= BEAMS:
            raise ValueError(f"A training needs 1 step and 1 prompt or more, and 1 to {BEAMS} candidates.")
        if self.method == "group" and self.candidates < 2:
            raise ValueError("The group method compares candidates of a prompt: set 2 candidates or more.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"The learning rate must be above 0, not {self.learning_rate}.")
        if not self.kl_limit > 0:
            raise ValueError(f"The KL limit must be above 0, not {self.kl_limit}: no policy that learns stays at 0.")


@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate: what was written, as text and as `tokens` behind those of the `prompt` with the number `group`."""

    source: str
    text: str
    group: int
    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True, eq=False)
class Measured:
    """Of each token [t] of a candidate: its log-probability, what it gained since the start, and the value before it;
    and the KL divergence from the start, in nats, summed over the tokens."""

    old: Tensor
    gap: Tensor
    value: Tensor
    kl: float


@dataclass(frozen=True)
class Example:
    """A prompt, a candidate for it, and what it was worth."""

    prompt: str
    text: str
    reward: float


@dataclass(frozen=True)
class Reinforced:
    """The best policy that was kept, its reward less the KL term, the steps that were done, and why it ended."""

    weights: Weights
    score: float
    steps: int
    why: str


Progress = Callable[[int, dict[str, float], Sequence[Example]], None]
"""Takes the number of steps done, the row of the log, and candidates. What it raises stops without loss."""


def reinforce(
    policy: Policy,
    prompts: Sequence[str],
    reward: RewardOf,
    plan: ReinforcePlan,
    folder: Path,
    device: torch.device,
    keep: Callable[[Weights], None] = lambda weights: None,
    progress: Progress = lambda step, row, examples: None,
    about: str = "",
) -> Reinforced:
    """Train a copy of a policy. The policy itself stays as it is, and so does what `keep` got until something better.

    What a step draws depends on the seed and its number alone, so a training that was cut off goes on as if it had not
    been. `folder/state.pt` and `folder/log.json` are replaced at once, never half: every `save_every` steps, at the
    end, and when anything stops the training between steps. A policy is kept if the mean score of the steps since the
    last save is the best so far; no policy is kept that was measured beyond the KL limit. Call outside inference mode.

    Args:
        prompts: what users type, in plain words. Those that the policy cannot read are left out.
        about: what else the training depends on. A state of other prompts, another start or another plan but for
            steps, saving and the limit is refused.

    Raises:
        ValueError: no prompt can be read, no candidate of a step got a reward, the folder holds another training, or
            a loss is not a finite number.
        OSError: The state cannot be written. The one that was there stays.
    """
    known = {
        prompt: policy.asked(prompt)
        for prompt in dict.fromkeys(prompts)
        if prompt.strip() and policy.count(prompt.strip()) <= policy.read_tokens
    }
    if not known:
        raise ValueError(f"There is no prompt of {policy.read_tokens} tokens or less to train {policy.name} on.")
    folder.mkdir(parents=True, exist_ok=True)
    identity = json.dumps([_fixed(plan), about, list(known)])
    run = _Run(policy, known, plan, folder, identity, device)
    run.resume()
    saved, why = run.step, "all steps are done"
    try:
        with torch.enable_grad():
            while run.step < plan.steps:
                found = run.advance(reward)
                if found is None:
                    why = f"the KL limit of {plan.kl_limit:g} nats was reached"
                    break
                progress(run.step, run.log[-1], found)
                if run.step % plan.save_every == 0:
                    run.close_window(keep)
                    run.save()
                    saved = run.step
        run.close_window(keep)
        saved = -1  # the kept policy may be a new one
    finally:
        if run.step != saved and run.whole:
            run.save()
    assert run.kept is not None  # the first step is at the start, where the divergence is 0
    return Reinforced(run.kept, run.best, run.step, why)


class _Run:
    """A training in progress. `good` are the last weights that were measured within the KL limit; `window` are the
    scores of the steps since the last save; `whole` is False while an update is half done."""

    def __init__(
        self,
        policy: Policy,
        prompts: dict[str, list[int]],
        plan: ReinforcePlan,
        folder: Path,
        identity: str,
        device: torch.device,
    ) -> None:
        self.policy, self.prompts, self.plan, self.identity = policy, prompts, plan, identity
        start = copy_model(policy.ready())
        self.reference = copy_model(start).to(device).requires_grad_(False)
        self.model = start.to(device).requires_grad_(True)
        self.head = nn.Linear(start.config.n_embd, 1).to(device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.parameters = [*self.model.parameters(), *(self.head.parameters() if plan.method == "ppo" else ())]
        self.optimizer = torch.optim.AdamW(self.parameters, plan.learning_rate, weight_decay=0.0)
        self.step, self.whole = 0, True
        self.good: Weights | None = None
        self.kept: Weights | None = None
        self.best = -math.inf
        self.window: list[float] = []
        self.log: list[dict[str, float]] = []
        self._folder = folder

    def advance(self, reward: RewardOf) -> list[Example] | None:
        """One step; its candidates with their rewards, the best first. None if the policy is beyond the KL limit."""
        rng = np.random.default_rng([self.plan.seed, self.step])
        tried = self._try(rng)
        measured = self._measure(tried)
        kl = float(np.mean([one.kl for one in measured]))
        if math.isnan(kl):
            raise ValueError(f"The policy {self.policy.name} gives no numbers. Its weights may be damaged.")
        if kl > self.plan.kl_limit:
            return None
        given = reward([(one.source, one.text) for one in tried], int(rng.integers(2**31)))
        usable = [row for row, worth in enumerate(given) if math.isfinite(worth)]
        if not usable:
            raise ValueError(
                f"None of the {len(tried)} candidates of step {self.step + 1} got a reward that is a number. Check "
                "the scorer and the pictures. The state before this step is kept."
            )
        rewards = [float(given[row]) for row in usable]
        tried, measured = [tried[row] for row in usable], [measured[row] for row in usable]
        self.good = weights_of(self.model)
        self.window.append(float(np.mean(rewards)) - self.plan.kl_weight * kl)
        self.whole = False
        self._learn(tried, measured, rewards)
        self.whole = True
        self.step += 1
        length = float(np.mean([len(one.tokens) for one in tried]))
        self.log.append({"step": self.step, "reward": float(np.mean(rewards)), "kl": kl, "length": length})
        examples = [Example(one.source, one.text, worth) for one, worth in zip(tried, rewards, strict=True)]
        return sorted(examples, key=lambda example: -example.reward)

    def _try(self, rng: np.random.Generator) -> list[Tried]:
        """Candidates for some prompts: of the beams that differ, as many as are wanted, at random."""
        names = list(self.prompts)
        picked = [names[i] for i in rng.choice(len(names), min(self.plan.prompts, len(names)), replace=False)]
        most = min(NEW_TOKENS, self.policy.new_tokens)
        limit = int(rng.integers(min(SHORTEST, most), most + 1))
        shown = [self.prompts[name] for name in picked]
        found = diverse_beams(self.model, shown, BEAMS, limit, self.policy.end, self.policy.hooks.check)
        tried = []
        for group, (name, prompt, beams) in enumerate(zip(picked, shown, found, strict=True)):
            unlike = list(dict.fromkeys(map(tuple, beams)))
            for i in rng.permutation(len(unlike))[: self.plan.candidates]:
                said = [token for token in unlike[i] if token != self.policy.end]
                tried.append(Tried(name, self.policy.text_of(said), group, prompt, list(unlike[i])))
        return tried

    @torch.no_grad()
    def _measure(self, tried: Sequence[Tried]) -> list[Measured]:
        measured = []
        for start in range(0, len(tried), ROWS_AT_ONCE):
            part = tried[start : start + ROWS_AT_ONCE]
            rows = rows_of([(one.prompt, one.tokens) for one in part], self.model.device)
            new, hidden = read_rows(self.model, rows)
            before, _ = read_rows(self.reference, rows)
            words = rows.words[:, None]
            old = new.gather(1, words)[:, 0]
            numbers = (old, old - before.gather(1, words)[:, 0], self.head(hidden)[:, 0], _divergence(new, before))
            sizes = [len(one.tokens) for one in part]
            for at, gap, value, kl in zip(*(number.cpu().split(sizes) for number in numbers), strict=True):
                measured.append(Measured(at, gap, value, float(kl.sum())))
        return measured

    def _learn(self, tried: Sequence[Tried], measured: Sequence[Measured], rewards: Sequence[float]) -> None:
        gaps, sizes = [one.gap for one in measured], [len(one.tokens) for one in tried]
        if self.plan.method == "ppo":
            advantages, returns = ppo_targets(rewards, gaps, [one.value for one in measured], self.plan.kl_weight)
        else:
            advantages = group_targets(rewards, gaps, [one.group for one in tried], self.plan.kl_weight)
            returns = torch.zeros_like(advantages)
        old = torch.cat([one.old for one in measured])
        targets = list(zip(tried, *(each.split(sizes) for each in (old, advantages, returns)), strict=True))
        for _ in range(EPOCHS):
            self.optimizer.zero_grad(set_to_none=True)
            for start in range(0, len(targets), ROWS_AT_ONCE):
                self._backward(targets[start : start + ROWS_AT_ONCE], sum(sizes))
            norm = float(nn.utils.clip_grad_norm_(self.parameters, MAX_NORM))
            if not math.isfinite(norm):
                raise ValueError(
                    f"The gradient of step {self.step + 1} is not a finite number. Use a lower learning rate. The "
                    "state that was saved last is kept."
                )
            self.optimizer.step()

    def _backward(self, part: Sequence[tuple[Tried, Tensor, Tensor, Tensor]], tokens: int) -> None:
        """Add the gradient of some candidates to that of the batch, whose loss is the mean over its `tokens`."""
        tried, *targets = zip(*part, strict=True)
        rows = rows_of([(one.prompt, one.tokens) for one in tried], self.model.device)
        old, advantages, returns = (torch.cat(target).to(self.model.device) for target in targets)
        new, hidden = read_rows(self.model, rows)
        loss = clipped_loss(new.gather(1, rows.words[:, None])[:, 0], old, advantages)
        if self.plan.method == "ppo":
            loss = loss + VALUE_WEIGHT * (self.head(hidden)[:, 0] - returns).square() / 2
        (loss.sum() / tokens).backward()

    def close_window(self, keep: Callable[[Weights], None]) -> None:
        """Keep the last good policy if the steps since the last save were the best so far.

        Fewer than half as many steps as lie between two saves say too little, unless nothing is kept yet.
        """
        if self.good is not None and self.window and (2 * len(self.window) >= self.plan.save_every or not self.kept):
            score = float(np.mean(self.window))
            if score > self.best or not self.kept:
                keep(self.good)
                self.best, self.kept = score, self.good
        self.window = []

    def save(self) -> None:
        state: dict[str, Any] = {
            "identity": self.identity,
            "step": self.step,
            "model": weights_of(self.model),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "good": self.good,
            "kept": self.kept,
            "best": self.best,
            "window": self.window,
            "log": self.log,
        }
        write_state(self._folder, state, self.log)

    def resume(self) -> None:
        state = read_state(self._folder, self.identity, "other prompts or another policy")
        if state is None:
            return
        load_weights(self.model, state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.good, self.kept, self.best = state["step"], state["good"], state["kept"], state["best"]
        self.window, self.log = state["window"], state["log"]


def _divergence(new: Tensor, before: Tensor) -> Tensor:
    """The KL divergence [w] of distributions from those of the start, both log-probabilities [w, vocabulary]."""
    return (new.exp() * (new - before)).sum(-1)


def _fixed(plan: ReinforcePlan) -> dict[str, Any]:
    """What a training cannot change when it goes on."""
    return {name: value for name, value in asdict(plan).items() if name not in ("steps", "save_every", "kl_limit")}
