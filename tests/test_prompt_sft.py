"""Supervised fine-tuning of a prompt policy on pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from atelier.llm.backend import Hooks
from atelier.llm.promptist import Policy, open_policy
from atelier.training.loop import Plan
from atelier.training.policy_files import copy_model, save_policy, weights_of
from atelier.training.prompt_pairs import Pair, Pairs
from atelier.training.prompt_sft import SupervisedRun, fine_tune, kept_pairs
from small_policies import PROMPT, STYLED, small_model
from small_policies import save_policy as save_released

PAIRS = [Pair(PROMPT, STYLED[1], "trim"), Pair("two gulls", "two gulls, oil painting", "trim")]


def opened(folder: Path) -> Policy:
    return open_policy(folder, lambda model: lambda: model, Hooks())


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = small_model(initializer_range=0.02, n_embd=64)
    return opened(save_released(tmp_path_factory.mktemp("policy") / "blank", model))


def run(folder: Path, steps: int = 6, pairs: Any = PAIRS, **changes: Any) -> SupervisedRun:
    given = {"learning_rate": 3e-3, "average": 0.5, "warmup": 5, "save_every": 4}
    return SupervisedRun(pairs, Plan(steps, **{**given, **changes}), 4, folder)


def tune(policy: Policy, of: SupervisedRun, **more: Any) -> dict[str, torch.Tensor]:
    return dict(fine_tune(policy, of, torch.device("cpu"), **more))


def test_a_policy_learns_its_pairs_and_its_folder_opens(policy: Policy, tmp_path: Path) -> None:
    before = weights_of(policy.ready())
    weights = tune(policy, run(tmp_path / "state", 80))
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(policy.ready()).items())
    save_policy(tmp_path / "learnt", policy.ready(), policy.tokenizer, weights)
    learnt = opened(tmp_path / "learnt")
    assert learnt.rephrase(PROMPT)[0].text == STYLED[1]
    assert learnt.rephrase("two gulls")[0].text == "two gulls, oil painting"
    assert learnt.end == policy.end and learnt.positions == policy.positions


def test_only_the_target_and_the_end_are_learnt(policy: Policy, tmp_path: Path) -> None:
    """The first loss is the mean over the tokens behind " Rephrase:", as the model itself counts it."""
    losses: list[float] = []
    pair = [PAIRS[0]]
    changed = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    plain = small_model(initializer_range=0.02, n_embd=64, **changed)
    still = replace(policy, ready=lambda: plain)
    tune(still, run(tmp_path, 1, pair), each_step=lambda step, loss: losses.append(loss))
    source = policy.tokenizer.encode(PROMPT + " Rephrase:").ids
    target = [*policy.tokenizer.encode(" " + STYLED[1]).ids, policy.end]
    labels = torch.tensor([[-100] * len(source) + target])
    wanted = copy_model(plain)(torch.tensor([source + target]), labels=labels).loss.detach()
    assert losses[0] == pytest.approx(float(wanted), abs=1e-5)


class Stopped(BaseException):
    pass


def test_interrupted_and_resumed_is_uninterrupted(policy: Policy, tmp_path: Path) -> None:
    whole = tune(policy, run(tmp_path / "whole"))

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        tune(policy, run(tmp_path / "cut"), each_step=stop)
    found = tune(policy, run(tmp_path / "cut"))
    assert all(torch.equal(weight, whole[name]) for name, weight in found.items())


def test_bad_input_is_told(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A batch needs 1 pair or more"):
        replace(run(tmp_path), batch=0)
    for pairs in ([], [Pair("long " * 300, "long " * 300 + ", oil painting", "trim")]):
        with pytest.raises(ValueError, match="There is no pair to learn from"):
            tune(policy, run(tmp_path, pairs=pairs))
    tune(policy, run(tmp_path, 1))
    for other, about in ((run(tmp_path, 2, PAIRS[:1]), ""), (run(tmp_path, 2), "another start")):
        with pytest.raises(ValueError, match="holds a training with other settings"):
            tune(policy, other, about=about)


def test_pairs_are_made_once(tmp_path: Path) -> None:
    file, made = tmp_path / "new" / "pairs.json", []

    def make() -> Pairs:
        made.append(1)
        return Pairs(tuple(PAIRS))

    assert [list(kept_pairs(file, "these", make)) for _ in range(2)] == [PAIRS, PAIRS]
    assert len(made) == 1
    kept_pairs(file, "others", make)
    assert len(made) == 2
