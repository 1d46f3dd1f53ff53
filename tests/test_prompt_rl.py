"""Reinforcement learning of a prompt policy: the objectives by hand, exploration, a toy reward, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from atelier.llm.backend import Hooks
from atelier.llm.promptist import Policy, open_policy
from atelier.training.policy_files import copy_model, save_policy, weights_of
from atelier.training.policy_objective import clipped_loss, group_targets, ppo_targets, token_advantages
from atelier.training.prompt_rl import Reinforced, ReinforcePlan, reinforce
from atelier.training.prompt_rollout import diverse_beams, read_rows, rows_of
from small_policies import END, PROMPT, pairs, small_model, taught_model, tokenizer
from small_policies import save_policy as save_released
from transformers import GPT2LMHeadModel

CPU = torch.device("cpu")
Pairs = Sequence[tuple[str, str]]

# --- objectives ------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    """Surprises are 0 + 2 - 1, 0 + 3 - 2 and 5 + 0 - 3; each later one counts 0.95 less."""
    found = token_advantages(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([1 + 0.95 * (1 + 0.95 * 2), 1 + 0.95 * 2, 2.0]))


def test_ppo_targets_by_hand() -> None:
    """Two texts of two tokens and one: the reward comes last, the KL term at each token; 1, 0.5, 0.25 are expected."""
    gaps = [torch.tensor([1.0, -1.0]), torch.tensor([0.5])]
    advantages, returns = ppo_targets([2.0, 1.0], gaps, [torch.tensor([1.0, 0.5]), torch.tensor([0.25])], 0.2)
    wanted = torch.tensor([-0.2 + 0.5 - 1 + 0.95 * (2.2 - 0.5), 2.2 - 0.5, 0.9 - 0.25])
    torch.testing.assert_close(returns, wanted + torch.tensor([1.0, 0.5, 0.25]))
    torch.testing.assert_close(advantages, (wanted - wanted.mean()) / wanted.std(correction=0))


def test_group_targets_by_hand() -> None:
    """Rewards 1 and 3 less 0.2 for each of 15 nats are 1 and 0; the groups know nothing of each other."""
    gaps = [torch.zeros(2), torch.tensor([15.0]), torch.zeros(1), torch.zeros(1)]
    found = group_targets([1.0, 3.0, 7.0, 7.0], gaps, [0, 0, 1, 1], 0.2)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, -1.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.5, 2.0, -2.4), (1.5, -2.0, 3.0), (0.5, 2.0, -1.0), (0.5, -2.0, 1.6)]
)
def test_clipped_objective_by_hand(ratio: float, advantage: float, loss: float) -> None:
    found = clipped_loss(torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]))
    torch.testing.assert_close(found, torch.tensor([loss]))


# --- exploration -----------------------------------------------------------------------------------------------


def naive_diverse(model: GPT2LMHeadModel, prompt: list[int], groups: int, longest: int, end: int) -> list[list[int]]:
    """Equation 3 of arXiv 1610.02424 with groups of one beam, read anew at each token."""
    texts: list[list[int]] = [[] for _ in range(groups)]
    for _ in range(longest):
        chosen = torch.zeros(model.config.vocab_size)
        for text in texts:
            if end in text:
                continue
            with torch.no_grad():
                following = model(torch.tensor([[*prompt, *text]])).logits[0, -1].log_softmax(-1)
            text.append(int((following - chosen).argmax()))
            chosen[text[-1]] += 1
    return texts


def test_diverse_beams_of_prompts_side_by_side_are_those_of_each_alone() -> None:
    model, end = small_model(initializer_range=0.1), pairs()[0][END]
    prompts = [tokenizer().encode(text).ids for text in (PROMPT, "a star")]
    found = diverse_beams(model, prompts, 4, 6, end)
    assert found == [naive_diverse(model, prompt, 4, 6, end) for prompt in prompts]
    assert len(set(map(tuple, found[0]))) > 1


def test_rows_are_read_as_the_texts_alone() -> None:
    model = small_model()
    texts = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14])]
    found, _ = read_rows(model, rows_of(texts, CPU))
    alone = [model(torch.tensor([[*p, *w]])).logits[0, len(p) - 1 : -1].log_softmax(-1) for p, w in texts]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert rows_of(texts, CPU).words.tolist() == [8, 9, 11, 12, 13, 14]


# --- the loop --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return opened(save_released(tmp_path_factory.mktemp("policy") / "taught", taught_model()))


def opened(folder: Path) -> Policy:
    return open_policy(folder, lambda model: lambda: model, Hooks())


def likes_oil(pairs: Pairs, seed: int) -> list[float]:
    return [float("oil" in text) for _, text in pairs]


def plan(steps: int = 6, **changes: Any) -> ReinforcePlan:
    given = {"learning_rate": 1e-3, "kl_weight": 0.01, "kl_limit": 50.0, "prompts": 1, "candidates": 4, "save_every": 2}
    return ReinforcePlan(steps, **{**given, **changes})


def slow(steps: int, **changes: Any) -> ReinforcePlan:
    """A plan that stays far from its KL limit."""
    return plan(steps, learning_rate=1e-4, **changes)


def run(policy: Policy, folder: Path, of: ReinforcePlan, reward: Any = likes_oil, **more: Any) -> Reinforced:
    return reinforce(policy, [PROMPT], reward, of, folder, CPU, **more)


@pytest.mark.parametrize("method", ["ppo", "group"])
def test_the_policy_learns_what_is_rewarded(taught: Policy, tmp_path: Path, method: str) -> None:
    before = weights_of(taught.ready())
    assert "oil" not in taught.rephrase(PROMPT)[0].text
    rewards: list[float] = []
    of = plan(6, method=method, candidates=8, kl_weight=0.05, save_every=3)
    found = run(taught, tmp_path, of, progress=lambda step, row, _: rewards.append(row["reward"]))
    assert rewards[-1] > rewards[0] + 0.5
    folder = tmp_path / "learnt"
    save_policy(folder, taught.ready(), taught.tokenizer, found.weights)
    assert "oil" in opened(folder).rephrase(PROMPT)[0].text
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(taught.ready()).items())


def test_the_kl_limit_stops_and_what_lies_beyond_is_not_kept(taught: Policy, tmp_path: Path) -> None:
    limited = plan(50, learning_rate=3e-3, kl_limit=0.5, kl_weight=0.0)
    kls: list[float] = []
    found = run(taught, tmp_path, limited, progress=lambda n, row, _: kls.append(row["kl"]))
    assert found.steps < 50 and "KL limit" in found.why
    assert max(kls) <= 0.5
    again = run(taught, tmp_path, limited)
    assert again.steps == found.steps and again.why == found.why
    start, kept = copy_model(taught.ready()), copy_model(taught.ready(), found.weights)
    prompt = taught.tokenizer.encode(PROMPT + " Rephrase:").ids
    rows = rows_of([(prompt, taught.tokenizer.encode(" a red fox in the snow, oil painting").ids)], CPU)
    with torch.no_grad():
        new, old = read_rows(kept, rows)[0], read_rows(start, rows)[0]
    assert float((new.exp() * (new - old)).sum()) < 1.5


def test_candidates_without_a_reward_teach_nothing(taught: Policy, tmp_path: Path) -> None:
    """A NaN leaves a candidate out: whatever stands in its place changes nothing."""

    def but_first(other: float) -> Callable[[Pairs, int], list[float]]:
        return lambda pairs, seed: [other, *likes_oil(pairs, seed)[1:]]

    nan, infinite, counted = (
        run(taught, tmp_path / str(i), plan(2), but_first(other)) for i, other in enumerate((math.nan, math.inf, 9.0))
    )
    assert same(nan, infinite) and not same(nan, counted)
    with pytest.raises(ValueError, match=r"None of the \d candidates of step 1 got a reward"):
        run(taught, tmp_path / "none", plan(2), lambda pairs, seed: [math.nan] * len(pairs))
    assert not (tmp_path / "none" / "state.pt").exists()


def same(one: Reinforced, other: Reinforced) -> bool:
    return all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("where", ["reward", "progress"])
def test_interrupted_and_resumed_is_uninterrupted(taught: Policy, tmp_path: Path, where: str) -> None:
    """Cut in the middle of the last two steps, which are the best."""
    whole = run(taught, tmp_path / "whole", slow(4), Rising())
    kept, reward = [], Rising()

    def cut(pairs: Pairs, seed: int) -> list[float]:
        if where == "reward" and reward.calls == 3:
            raise Stopped
        return reward(pairs, seed)

    def progress(step: int, *_: Any) -> None:
        if where == "progress" and step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run(taught, tmp_path / "cut", slow(4), cut, progress=progress, keep=kept.append)
    assert len(kept) == 1
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 3
    found = run(taught, tmp_path / "cut", slow(4), reward, keep=kept.append)
    assert same(found, whole) and found.score == whole.score and len(kept) == 2
    assert (tmp_path / "cut" / "log.json").read_text() == (tmp_path / "whole" / "log.json").read_text()


class Rising:
    """A reward that depends on the seed too, and is higher at each step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pairs: Pairs, seed: int) -> list[float]:
        self.calls += 1
        return [10 * self.calls + len(text) / 50 + seed % 7 for _, text in pairs]


def test_a_step_that_fails_half_way_is_not_saved(taught: Policy, tmp_path: Path) -> None:
    """The reward of the fourth step is a number, and too large to learn from."""
    rising = Rising()

    def huge(pairs: Pairs, seed: int) -> list[float]:
        given = rising(pairs, seed)
        return [1e300, *given[1:]] if rising.calls == 4 else given

    with pytest.raises(ValueError, match="gradient of step 4 is not a finite number"):
        run(taught, tmp_path, slow(6), huge)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_the_length_limit_is_drawn_anew_for_each_step(
    taught: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def watched(model: Any, prompts: Any, groups: int, longest: int, *rest: Any) -> list[list[list[int]]]:
        limits.append(longest)
        return diverse_beams(model, prompts, groups, longest, *rest)

    monkeypatch.setattr("atelier.training.prompt_rl.diverse_beams", watched)
    run(taught, tmp_path, slow(4))
    assert len(limits) == 4 and len(set(limits)) > 1 and min(limits) >= 15 and max(limits) <= 75


def test_only_a_better_policy_is_kept(taught: Policy, tmp_path: Path) -> None:
    """Rewards fall after the second step: what was kept then stays. A score is the reward less the KL term."""
    kept, calls = [], 0

    def falling(pairs: Pairs, seed: int) -> list[float]:
        nonlocal calls
        calls += 1
        return [float(-calls - len(text) / 100) for _, text in pairs]

    rows: list[dict[str, float]] = []
    of = slow(6, kl_weight=0.5)
    found = run(taught, tmp_path, of, falling, keep=kept.append, progress=lambda n, row, _: rows.append(row))
    assert len(rows) == 6 and len(kept) == 1 and found.weights is kept[0]
    assert rows[1]["kl"] > 0.01
    assert found.score == pytest.approx(sum(row["reward"] - 0.5 * row["kl"] for row in rows[:2]) / 2)


@pytest.mark.parametrize(("steps", "times"), [(5, 1), (6, 2)])
def test_few_steps_at_the_end_say_too_little(taught: Policy, tmp_path: Path, steps: int, times: int) -> None:
    """Saved every four steps, and worth more and more: one step more is not enough for a new policy, two are."""
    kept: list[Any] = []
    found = run(taught, tmp_path, slow(steps, save_every=4), Rising(), keep=kept.append)
    assert found.steps == steps and len(kept) == times


def test_bad_input_is_told(taught: Policy, tmp_path: Path) -> None:
    run(taught, tmp_path, plan(1))
    with pytest.raises(ValueError, match="holds a training with other settings"):
        run(taught, tmp_path, plan(2, learning_rate=1e-4))
    with pytest.raises(ValueError, match="holds a training with other settings"):
        run(taught, tmp_path, plan(2), about="another start")
    with pytest.raises(ValueError, match="There is no prompt of"):
        reinforce(taught, ["", "long " * 300], likes_oil, plan(), tmp_path / "x", CPU)
    for changes, says in (
        ({"candidates": 9}, "1 to 8 candidates"),
        ({"method": "group", "candidates": 1}, "2 candidates or more"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"kl_limit": 0.0}, "KL limit must be above 0"),
    ):
        with pytest.raises(ValueError, match=says):
            plan(**changes)


def test_a_full_disk_leaves_the_policy_that_was_there(taught: Policy, tmp_path: Path, monkeypatch: Any) -> None:
    save_policy(tmp_path, taught.ready(), taught.tokenizer, weights_of(taught.ready()))
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(weights: Any, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("atelier.training.policy_files.save_file", full)
    with pytest.raises(OSError, match="What was there before is kept"):
        save_policy(tmp_path, taught.ready(), taught.tokenizer, weights_of(taught.ready()))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert opened(tmp_path).rephrase(PROMPT)[0].text == taught.rephrase(PROMPT)[0].text
