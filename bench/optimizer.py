"""Promptist on ShapeWorld: does an optimized prompt give better pictures of the same things, and what does it cost?

Four parts, each with figures of its own:

- rewards: the paper's table. Held-out user inputs, what a person with practice would have written for them, and what
  the policies write, and the best of the supervised policy's candidates by small pictures of other noise, drawn by
  the base with the same noise, in domain (one thing) and out of domain (two things). The reward is the pack's;
  content is the oracle's share of the things that are there with colour and shape; marks are the ground truth of
  `demo/shapeworld/taste.py`, which the aesthetic head was fitted to.
- guard: prompts with syntax through the whole optimizer: how many lose a word or a byte of syntax.
- costs: a cached call of the small policy, 8 beams by 75 tokens; calls at GPT-2 small's size that load the model each
  time, over calls that keep it; scorers over the bare encoder.
- taste: two persons whose hidden rules contradict each other. A taste is fitted on 60 thumbs of the first; the policy
  learns by reinforcement what that taste likes; then both rules judge pictures of what it writes before and after.

The figures of a policy that is not in models/prompt_optimizers are left out.
With --part, the figures of the other parts stay in the result file as they are.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from _figures import Figure, Note, difference, mean, run_parts, single
from _world import HOME, load_checkpoint, pack, start_host

start_host()
pack()

from _prompt_rewards import Judge, learn_taste, personal, rate  # noqa: E402
from atelier.llm.hosting import load_policy  # noqa: E402
from atelier.llm.optimize import best_of, optimize  # noqa: E402
from atelier.llm.promptist import Policy  # noqa: E402
from atelier.llm.syntax import protect  # noqa: E402
from atelier.llm.words import missing_words  # noqa: E402
from atelier.training.policy_files import save_policy, weights_of  # noqa: E402
from scorer import overhead  # noqa: E402
from shapeworld.taste import PEOPLE, engineered_inputs, training_inputs, user_inputs  # noqa: E402

POLICIES = {"sft": "shapeworld", "rl": "shapeworld-rl"}
PROMPTS, PICTURES, TRIED = 60, 3, 2
"""Prompts; pictures of each that are judged; pictures of each candidate by which the best of n is chosen."""
RATED, TASTE_STEPS = 60, 50
SYNTAX = ("(glowing:1.2)", "[soft]", "<lora:ink:0.8>", "embedding:fine_1", "{big|tall}", r"\(old\)", "BREAK")


def policies() -> dict[str, Policy]:
    folders = {name: HOME / "base" / "models" / "prompt_optimizers" / folder for name, folder in POLICIES.items()}
    return {name: load_policy(folder) for name, folder in folders.items() if folder.is_dir()}


def written(policy: Policy, texts: list[str]) -> list[str]:
    return [optimize(text, policy, None, 1).prompt for text in texts]


def best_written(judge: Judge, policy: Policy, texts: list[str]) -> list[str]:
    """Of each text's four candidates and the text itself the one whose small pictures are worth most."""
    reward = judge.reward(judge.aesthetic, TRIED)
    return [best_of(text, optimize(text, policy, None, 4), reward, 0).prompt for text in texts]


def rewards_part(quick: bool, note: Note) -> None:
    judge, count = Judge(load_checkpoint("base"), 1 if quick else PICTURES), 3 if quick else PROMPTS
    content: dict[str, list[float]] = {}
    scores: list[float] = []
    marks: list[float] = []
    writers = policies()
    for domain in ("in", "out"):
        inputs = user_inputs(count, out_of_domain=domain == "out")
        texts = [text for text, _ in inputs]
        arms = {"input": texts, "human": engineered_inputs(inputs)}
        arms |= {name: written(policy, texts) for name, policy in writers.items()}
        arms["best"] = best_written(judge, writers["sft"], texts)
        rewards: dict[str, list[float]] = {}
        for name, prompts in arms.items():
            found = judge.judge(prompts, inputs)
            note({
                f"reward_{name}_{domain}": mean([one.reward for one in found], "points"),
                f"mark_{name}_{domain}": mean([float(np.mean(one.marks)) for one in found], "points"),
                f"content_{name}_{domain}": mean([one.content for one in found], "%"),
            })  # fmt: skip
            rewards[name] = [one.reward for one in found]
            content.setdefault(name, []).extend(one.content for one in found)
            scores += [score for one in found for score in one.scores]
            marks += [mark for one in found for mark in one.marks]
        if {"sft", "rl"} <= rewards.keys():
            note({f"rl_gain_{domain}": difference(rewards["rl"], rewards["sft"], "points")})
    for name in (*writers, "best"):
        key = "relevance_change" if name == "rl" else f"relevance_change_{name}"
        note({key: difference(content[name], content["input"], "points")})
    note({"head_correlation": single(float(np.corrcoef(scores, marks)[0, 1]), "", len(marks))})


def guard_part(quick: bool, note: Note) -> None:
    policy, lost, count = list(policies().values())[-1], 0, 20 if quick else 500
    inputs = [text for out in (False, True) for text, _ in user_inputs(60, out)]
    rng = np.random.default_rng(0)
    for _ in range(count):
        words = str(rng.choice(inputs)).split()
        for piece in rng.choice(SYNTAX, int(rng.integers(1, 4))):
            words.insert(int(rng.integers(len(words) + 1)), str(piece))
        prompt = " ".join(words)
        found = [candidate.text for candidate in optimize(prompt, policy, None, 8).candidates]
        lost += any(missing_words(prompt, text) or protect(text)[1] != protect(prompt)[1] for text in found)
    note({"guard_lost": single(lost, "prompts", count)})


def costs_part(quick: bool, note: Note) -> None:
    policy = replace(next(iter(policies().values())), end=-1)  # so all tokens are written
    note({"call_ms": mean(calls(policy, 5 if quick else 50), "ms")})
    note({"scorer_overhead": mean(overhead(10 if quick else 100), "times")})
    if not quick:
        note({"reload_ratio": reload_ratio(policy, 5)})


def calls(policy: Policy, times: int) -> list[float]:
    """Milliseconds of each call, after two that warm up."""
    taken = []
    for text, _ in user_inputs(times + 2):
        began = time.perf_counter()
        policy.rephrase(text)
        taken.append(1000 * (time.perf_counter() - began))
    return taken[2:]


def reload_ratio(policy: Policy, times: int) -> Figure:
    """Calls that load a GPT-2 of the small size first, as multiples of calls that keep it, in turn; random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_policy(folder, model, policy.tokenizer, weights_of(model))
        kept, ratios = load_policy(folder), []
        calls(kept, 1)
        for _ in range(times):
            began = time.perf_counter()
            load_policy(folder).rephrase("a red star")
            between = time.perf_counter()
            kept.rephrase("a red star")
            ratios.append((between - began) / (time.perf_counter() - between))
    return mean(ratios, "times")


def taste_part(quick: bool, note: Note) -> None:
    """Own and other: the mean mark of the pictures after the training less that before, by each person's rule."""
    judge, policy = Judge(load_checkpoint("base"), 1), policies()["sft"]
    texts = [text for text, _ in user_inputs(3 if quick else PROMPTS)]
    taste = rate(judge, PEOPLE[0], 12 if quick else RATED)
    with tempfile.TemporaryDirectory() as place:
        learnt = learn_taste(judge, policy, taste, training_inputs(200), 2 if quick else TASTE_STEPS, Path(place))
    before, after = (personal(judge, written(one, texts)) for one in (policy, learnt))
    for name, new, old in zip(("own", "other"), after, before, strict=True):
        note({f"taste_gain_{name}": difference(new, old, "points")})


PARTS = {"rewards": rewards_part, "guard": guard_part, "costs": costs_part, "taste": taste_part}


def main() -> None:
    run_parts("optimizer", __doc__, PARTS)


if __name__ == "__main__":
    main()
