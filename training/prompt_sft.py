"""Supervised fine-tuning of a prompt policy on pairs (Promptist, arXiv 2212.09611, section 2.1).

A policy learns to go on with a good prompt behind what a user might type and " Rephrase:". Only the tokens of the
good prompt and the end count in the loss.

It uses the loop that all trainings here share, whose state is replaced at once and which can be stopped at any step
and goes on exactly. TRL's SFTTrainer is not used: it saves into folders that a kill can leave half written, sets the
seed of the whole process, gives its model and tokenizer a padding token, and takes nothing but data sets of the
package datasets, with pyarrow and pandas behind it, where a list of token numbers is enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..llm.promptist import Policy
from .loop import EachStep, Plan, Progress, replace_file, train
from .policy_files import Weights, copy_model
from .prompt_pairs import Pair, Pairs
from .prompt_rollout import read_rows, rows_of

LONGEST = 512
"""Tokens of a pair; longer ones are left out."""


@dataclass(frozen=True)
class SupervisedRun:
    """Pairs and how to learn from them, `batch` at once. The paper takes 15,000 steps of 256 and a rate of 5e-5."""

    pairs: Sequence[Pair]
    plan: Plan
    batch: int
    folder: Path

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError("A batch needs 1 pair or more.")


def fine_tune(
    policy: Policy,
    run: SupervisedRun,
    device: torch.device,
    about: str = "",
    progress: Progress | None = None,
    each_step: EachStep | None = None,
) -> Weights:
    """The averaged weights, on the CPU, of a copy of the policy after training; the policy itself stays as it is.

    A training of this folder that was cut off goes on. Call outside inference mode.

    Args:
        about: names the policy that the training starts from.

    Raises:
        ValueError: no pair fits the policy, the folder holds another training, or it came to nothing.
        OSError: there is no room for the state. That of the last save stays.
    """
    texts = [text for pair in run.pairs if (text := _tokens(policy, pair))]
    if not texts:
        raise ValueError(
            f"There is no pair to learn from that fits into the {policy.positions} tokens of {policy.name}. Good "
            "prompts say what to show and, behind a comma, how: a red fox, oil painting, highly detailed."
        )
    model = copy_model(policy.ready()).to(device).train()

    def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
        rows = rows_of([texts[i] for i in rng.integers(0, len(texts), run.batch)], device)
        said, _ = read_rows(model, rows)
        return {"loss": -said.gather(1, rows.words[:, None]).mean()}

    data = hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()
    known = json.dumps({"policy": about, "pairs": data, "batch": run.batch})
    with torch.enable_grad():
        trained = train(model, loss_at, run.plan, run.folder, known, progress, each_step)
    return {name: weight.cpu() for name, weight in trained.items()}


def kept_pairs(file: Path, of: str, make: Callable[[], Pairs]) -> Sequence[Pair]:
    """The pairs of a training, made once: a language model need not answer a second time as it did the first.

    Args:
        of: what they are made of. Pairs of something else are made anew.
    """
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["of"] == of:
            return [Pair(*pair) for pair in known["pairs"]]
    pairs = make().pairs
    text = json.dumps({"of": of, "pairs": [astuple(pair) for pair in pairs]}, ensure_ascii=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda part: part.write_text(text, encoding="utf-8"))
    return pairs


def _tokens(policy: Policy, pair: Pair) -> tuple[list[int], list[int]] | None:
    """What is read and what is to be written, as tokens; None if both together are too long."""
    source, target = policy.asked(pair.source), [*policy.tokens(" " + pair.target.strip()), policy.end]
    return (source, target) if len(source) + len(target) <= min(LONGEST, policy.positions) else None
