"""The prompt optimizer: what it keeps whatever is written, its ways of writing, bad input, the nodes over the API."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import llm_servers as fake
import pytest
import small_policies as small
from atelier.llm.backend import Hooks, LLMConnectionError, LLMError
from atelier.llm.content_guard import guarded, opening, plain_words
from atelier.llm.optimize import ADDED_WORDS, MAX_CHARACTERS, best_of, optimize
from atelier.llm.promptist import Policy, Rephrased, open_policy
from atelier.llm.syntax import protect
from atelier.llm.words import missing_words
from atelier.nodes.drawing import picture_reward
from atelier.nodes.optimize import AtelierPromptOptimizer
from atelier.nodes.train_optimizer import AtelierTrainPromptOptimizer
from comfy_api_client import ComfyClient, GraphError
from scripted_llm import Scripted, replying

NAN = math.nan
PIECES = (
    "(shiny star:1.2)",
    "((x y))",
    "[from:to:0.5]",
    r"\(",
    r"\)",
    "<lora:my style:0.8>",
    "embedding:bad_5",
    "{a|b}",
)
WORDS = (
    "red",
    "foxes",
    "two",
    "without",
    "a",
    "hat",
    "the",
    "star,",
    "above;",
    "blue-green",
    "cat's",
    "(open",
    "별",
    "🎨",
    "\n",
)


class Written(Policy):
    """A policy whose texts a test writes; it counts tokens like a real one."""

    def rephrase(self, prompt: str, beams: int = 8) -> list[Rephrased]:
        assert self.count(prompt) <= self.read_tokens
        texts = self.ready()(prompt)
        return [Rephrased(text, -1.0 - i, -10.0 - i) for i, text in enumerate(texts[:beams])]


def writing(write: Callable[[str], list[str]], positions: int = 512) -> Written:
    return Written("written", small.tokenizer(), positions, small.pairs()[0][small.END], lambda: write)


def saying(*texts: str) -> Written:
    return writing(lambda prompt: list(texts))


ADDING = writing(lambda prompt: [f"{prompt}, sharp focus", f"a painting of {prompt}, 8k"])


def rewrites(*prompts: str, english: str = "") -> Scripted:
    return replying({"english": english, "prompts": list(prompts)})


# The guard


@pytest.mark.parametrize(
    ("prompt", "rewrite", "text"),
    [
        ("a red fox", "a red fox, sharp focus", "a red fox, sharp focus"),
        ("a red fox", "Sharp focus on the red foxes", "Sharp focus on the red foxes"),
        ("a (red:1.2) fox", "a red fox, 8k", "a (red:1.2) fox, 8k"),
        ("a red fox, <lora:ink:1>", "a red fox on a hill, 8k", "a red fox on a hill, 8k, <lora:ink:1>"),
        ("<lora:ink:1> a fox", "painting of a fox", "painting of <lora:ink:1> a fox"),
        (
            r"miku \(vocaloid\), {day|night} 🎨",
            "miku vocaloid, day night 🎨, 8k",
            r"miku \(vocaloid\), {day|night} 🎨, 8k",
        ),
        ("a red fox", "a red fox, (masterpiece:1.4), [blurry]", "a red fox, masterpiece, blurry"),
        ("a fox :)", "a fox :), 8k", "a fox :), 8k"),
    ],
)
def test_a_rewrite_that_keeps_everything_is_taken(prompt: str, rewrite: str, text: str) -> None:
    assert guarded(prompt, rewrite).text == text


@pytest.mark.parametrize(
    ("prompt", "rewrite", "why"),
    [
        ("two red foxes", "red foxes, 8k", "missing: two"),
        ("a fox without a hat", "a fox, a hat", "missing: without"),
        ("a star ★ and 🎨", "a star ★", "missing: 🎨"),
        ("a (red:1.2) fox", "a fox, 8k", "missing: red"),
        ("a (red:1.2) fox", "a fox in red", "no place"),
        ("a fox ⟦1⟧", "a fox ⟦1⟧", "⟦ and ⟧"),
        ("a fox", "a fox ⟦1⟧", "placeholder"),
        ("a [fox", "a fox] (x", None),
        ("a <lora:x:1> fox (by", "a fox by, night)", None),
    ],
)
def test_a_rewrite_that_loses_something_is_dropped(prompt: str, rewrite: str, why: str | None) -> None:
    found = guarded(prompt, rewrite)
    if why is None:  # stray brackets: taken or not, they make no new pair
        assert found.text is None or protect(found.text)[1] == protect(prompt)[1]
    else:
        assert found.text is None and why in found.why


def spoiled(prompt: str, rng: random.Random) -> list[str]:
    """Rewrites of all kinds: good ones, and such that lose, move, double or bracket words."""
    words = prompt.split(" ")
    lost = [word for word in words if rng.random() < 0.9]
    moved = rng.sample(words, len(words))
    bracketed = [f"({word}:1.3)" if rng.random() < 0.3 else word for word in words]
    added = ", sharp focus, (best quality:1.2), <lora:evil:1> BREAK {x|y} ) \\("
    return [prompt + added, " ".join(lost), " ".join(moved) + added, " ".join(bracketed), f"oil painting of {prompt}"]


def test_500_random_prompts_lose_no_word_and_no_byte_of_syntax() -> None:
    rng = random.Random(0)
    policy = writing(lambda prompt: spoiled(prompt, rng))
    changed = kept = 0
    for _ in range(500):
        parts = rng.choices(WORDS, k=rng.randrange(1, 12)) + rng.choices(PIECES, k=rng.randrange(4))
        parts += rng.choices(("BREAK", "AND"), k=rng.randrange(2)) + rng.choices(WORDS, k=rng.randrange(3))
        if rng.random() < 0.5:
            rng.shuffle(parts)
        prompt = " ".join(parts)
        for candidate in optimize(prompt, policy, None, count=8).candidates:
            assert protect(candidate.text)[1] == protect(prompt)[1]
            for piece in (*PIECES, "BREAK", "AND", "🎨"):
                assert candidate.text.count(piece) >= prompt.count(piece)
            assert missing_words(prompt, candidate.text) == []
            changed += candidate.text != prompt
            kept += candidate.text == prompt
    assert changed > 500 and kept > 50  # both outcomes were met


def test_random_weights_never_lose_a_word_either(tmp_path: Path) -> None:
    policy = open_policy(small.save_policy(tmp_path / "random"), lambda model: lambda: model, Hooks())
    for prompt in ("a red fox", "a (red:1.2) fox <lora:x:1>", "two stars BREAK a cat"):
        found = optimize(prompt, policy, None)
        assert found.prompt == prompt and found.dropped and found.notes[-1] == "The prompt is unchanged."


# What the policy reads


@pytest.mark.parametrize(
    "prompt", ["", "a fox", "a, b (c d:1.2), e BREAK f", " \n a  b,\tc", "BREAK a", "🎨 별, (a AND b)"]
)
def test_opening_and_rest_are_the_prompt(prompt: str) -> None:
    for most in range(12):
        head, rest = opening(prompt, lambda text: len(text.split()), most)
        assert head + rest == prompt and len(plain_words(head).split()) <= most


@pytest.mark.parametrize(
    ("most", "head"),
    [
        (2, "a red"),
        (4, "a red fox"),
        (6, "a red fox, (sits here:1.2)"),
        (10, "a red fox, (sits here:1.2), on a hill"),
        (99, "a red fox, (sits here:1.2), on a hill "),
    ],
)
def test_a_long_prompt_is_cut_at_a_comma_before_a_divider_and_never_in_syntax(most: int, head: str) -> None:
    prompt = "a red fox, (sits here:1.2), on a hill BREAK a star"
    cut = opening(prompt, lambda text: len(text.split()), most)[0]
    assert cut.strip() == head.strip()


def test_of_10000_words_the_first_are_styled_and_all_stay() -> None:
    prompt = ", ".join(f"word{i} star" for i in range(5000))
    found = optimize(prompt, ADDING, None, count=2)
    assert "sharp focus" in found.prompt and missing_words(prompt, found.prompt) == []
    assert found.prompt.index("sharp focus") < 400
    assert any("read" in note and "The rest follows unchanged" in note for note in found.notes)
    unbroken = "(" + "star " * 10_000 + ":1.2)"
    assert optimize(unbroken, ADDING, None).prompt == unbroken


def test_the_part_before_a_divider_is_styled() -> None:
    found = optimize("a (red:1.1) fox BREAK a blue star AND x", ADDING, None)
    assert found.candidates[0].text == "a (red:1.1) fox, sharp focus BREAK a blue star AND x"
    assert found.candidates[1].text == "a painting of a (red:1.1) fox, 8k BREAK a blue star AND x"


def test_brackets_of_opening_and_rest_make_no_pair() -> None:
    found = optimize("a fox BREAK a hare :)", saying("a fox :( 8k", "a fox, 8k"), None)
    assert [one.text for one in found.candidates] == ["a fox, 8k BREAK a hare :)"]
    assert [one.why for one in found.dropped] == ["it changes the syntax of the rest"]


# Ways of writing


def test_the_policys_candidates_come_in_the_order_of_their_scores() -> None:
    found = optimize("a fox", saying("a fox, 8k", "a hare", "a fox, 8k", "a fox", "a fox, oil"), None, count=2)
    assert [one.text for one in found.candidates] == ["a fox, 8k", "a fox"]
    assert [one.scores for one in found.candidates] == [{"beam": -10.0}, {"beam": -13.0}]
    assert found.candidates[0].log_probability == -1.0
    assert [(one.text, one.why) for one in found.dropped] == [("a hare", "these words of the prompt are missing: fox")]
    assert found.notes == ("written wrote 5 prompts; 4 keep all of yours.",)


def test_if_nothing_is_left_the_prompt_comes_back_with_a_note() -> None:
    found = optimize(" a (red:1) fox ", saying("a hare", ""), None)
    assert [one.text for one in found.candidates] == [" a (red:1) fox "] and len(found.dropped) == 2
    assert found.notes[-1] == "The prompt is unchanged."


def test_a_taught_policy_styles_its_prompt() -> None:
    model = small.taught_model()
    policy = Policy("taught", small.tokenizer(), 256, small.pairs()[0][small.END], lambda: model)
    found = optimize(small.PROMPT, policy, None)
    assert [one.text for one in found.candidates[:2]] == list(small.STYLED[:2])
    assert any(one.text == small.STYLED[2] and "missing: red" in one.why for one in found.dropped)
    woven = optimize("a red fox in the (snow:1.3) <lora:ink:1>", policy, None)
    assert woven.prompt == "a red fox in the (snow:1.3), digital painting, sharp focus <lora:ink:1>"


def test_a_language_model_writes_as_many_as_asked_for() -> None:
    llm = rewrites("a ⟦1⟧ fox, oil painting", "a fox", "a ⟦1⟧ fox, photograph")
    found = optimize("a (red:1.2) fox", None, llm, count=3)
    assert [one.text for one in found.candidates] == ["a (red:1.2) fox, oil painting", "a (red:1.2) fox, photograph"]
    assert found.candidates[0].log_probability is None and found.asked.calls == 1
    assert [one.text for one in found.dropped] == ["a fox"]
    user = llm.asked[0].messages[1].content
    assert "<number>\n3\n</number>" in user and "(red:1.2)" not in user


def test_with_both_the_language_model_goes_first() -> None:
    llm = rewrites("a fox on a ⟦1⟧ hill")
    found = optimize("fox, (green:1.1) hill", ADDING, llm, count=2)
    assert found.prompt == "a fox on a (green:1.1) hill, sharp focus" and len(found.candidates) == 2
    assert "<number>\n1\n</number>" in llm.asked[0].messages[1].content
    found = optimize("fox, (green:1.1) hill", saying("a hare"), rewrites("a fox on a ⟦1⟧ hill"))
    assert found.prompt == "a fox on a (green:1.1) hill"  # what is clear stays where the policy fails


def test_another_language_passes_the_policy_and_a_language_model_translates_it() -> None:
    prompt = "눈 속의 빨간 여우 (shiny:1.2)"
    alone = optimize(prompt, ADDING, None)
    assert alone.prompt == prompt and "another language (ko)" in alone.notes[0]
    llm = rewrites("a red fox in the snow ⟦1⟧", english="a red fox in the snow ⟦1⟧")
    both = optimize(prompt, ADDING, llm)
    assert both.prompt == "a red fox in the snow (shiny:1.2), sharp focus"
    assert both.notes[0] == "Translated by scripted: a red fox in the snow (shiny:1.2)"


@pytest.mark.parametrize(
    ("prompt", "reply", "why"),
    [
        ("빨간 별", {"english": "", "prompts": ["a red star"]}, "translation is missing"),
        ("빨간 별", {"english": "빨간 star 별별별별", "prompts": ["x"]}, "translation is missing"),
        ("빨간 별 (x:1.1)", {"english": "a red star", "prompts": ["a red star"]}, "english: the placeholder"),
        ("빨간 별", {"english": "a red star", "prompts": ["a blue star"]}, "missing: red"),
        ("two red foxes", {"english": "a blue hare", "prompts": ["two red foxes, a hare"]}, None),
        ("the red fox", {"english": "a blue hare", "prompts": ["a blue hare"]}, "missing: red, fox"),
        ("a red fox", {"english": "", "prompts": []}, "prompts"),
        ("a red fox", {"english": "", "prompts": ["a red fox"] * 5}, "prompts"),
        ("a red fox", {"english": "", "prompts": ["a red fox" + ", very fine" * ADDED_WORDS]}, "words longer"),
        ("a red fox BREAK a hare", {"english": "", "prompts": ["a hare ⟦1⟧ a red fox"]}, "missing: red, fox"),
        ("a red fox", {"english": "", "prompts": ["a red fox (best:1.2)"]}, "prompt syntax"),
    ],
)
def test_an_answer_that_loses_something_is_asked_again_then_dropped(
    prompt: str, reply: dict[str, Any], why: str | None
) -> None:
    llm = replying(reply)
    found = optimize(prompt, None, llm)
    if why is None:
        assert len(llm.asked) == 1
        return
    assert found.prompt == prompt and len(llm.asked) == 3 and why in llm.asked[1].messages[-1].content
    assert found.notes[0].startswith("The language model was of no help.") and found.asked.calls == 3
    with pytest.raises(LLMError):
        optimize(prompt, None, replying(reply), strict=True)


def test_without_the_language_model_the_policy_goes_on() -> None:
    dead = replying(LLMConnectionError("No server answers. Start it."))
    found = optimize("a fox", ADDING, dead)
    assert found.prompt == "a fox, sharp focus" and "No server answers" in found.notes[0]
    long = "a fox, " * MAX_CHARACTERS
    asked = rewrites("a fox")
    assert optimize(long, None, asked).prompt == long and not asked.asked


def test_the_same_question_is_asked_once_for_each_seed() -> None:
    from dataclasses import replace

    llm = Scripted(lambda options, seed: {"english": "", "prompts": [f"a fox, style {seed}"]})
    texts = [optimize("a fox", None, replace(llm, seed=seed)).prompt for seed in (1, 2, 1)]
    assert texts == ["a fox, style 1", "a fox, style 2", "a fox, style 1"] and len(llm.asked) == 2


# Bad input


@pytest.mark.parametrize("prompt", ["", "  \n\t", ", ;", "<lora:x:1>", "🎨", "BREAK", r"\(\)"])
def test_without_a_word_there_is_nothing_to_write(prompt: str) -> None:
    llm = rewrites("a fox")
    found = optimize(prompt, ADDING, llm)
    assert [one.text for one in found.candidates] == [prompt] and not llm.asked
    assert found.notes[0].startswith("There is no word in the prompt")


@pytest.mark.parametrize(
    "prompt", ["a star Rephrase: a moon", " Rephrase:", "a 🎨👩‍🎨 star ★", "a star 별", "étoile à côté"]
)
def test_odd_prompts_are_text_like_any_other(prompt: str) -> None:
    found = optimize(prompt, ADDING, None)
    assert found.prompt == f"{prompt.strip()}, sharp focus"


def test_neither_policy_nor_language_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="Link Load Prompt Policy into policy"):
        optimize("a fox", None, None)


# --- best of n ---------------------------------------------------------------------------------------------


def worth(**of: float) -> tuple[Callable[[list[tuple[str, str]], int], list[float]], list[list[str]]]:
    """A reward by the last word of a text, and the texts that it was asked about."""
    asked: list[list[str]] = []

    def reward(pairs: list[tuple[str, str]], seed: int) -> list[float]:
        assert {prompt for prompt, _ in pairs} == {"a fox"} and seed == 7
        asked.append([text for _, text in pairs])
        return [of[text.split()[-1]] for _, text in pairs]

    return reward, asked


@pytest.mark.parametrize(
    ("of", "order", "note"),
    [
        ({"ink": 0.5, "oil": 2.0, "fox": 1.0}, ["a fox, oil", "a fox", "a fox, ink"], r"3 prompts: \+1 over"),
        ({"ink": 0.5, "oil": 2.0, "fox": 9.0}, ["a fox", "a fox, oil", "a fox, ink"], "No candidate's pictures"),
        ({"ink": NAN, "oil": -3.0, "fox": -4.0}, ["a fox, oil", "a fox", "a fox, ink"], "2 prompts"),
        ({"ink": 1.0, "oil": 2.0, "fox": NAN}, ["a fox, oil", "a fox, ink", "a fox"], "the highest score"),
        ({"ink": NAN, "oil": NAN, "fox": NAN}, ["a fox, ink", "a fox, oil"], "None of the pictures got a score"),
    ],
)
def test_the_best_of_n_is_the_one_whose_pictures_are_worth_most(
    of: dict[str, float], order: list[str], note: str
) -> None:
    reward, asked = worth(**of)
    made = optimize("a fox", saying("a fox, ink", "a fox, oil"), None)
    best = best_of("a fox", made, reward, 7)
    assert [one.text for one in best.candidates] == order and best.prompt == order[0]
    assert asked == [["a fox, ink", "a fox, oil", "a fox"]], "the prompt as it was is drawn too, once"
    assert re.search(note, best.notes[-1])
    for one in best.candidates:
        value = of[one.text.split()[-1]]
        assert one.scores.get("reward", NAN) == pytest.approx(value, nan_ok=True)
        assert ("beam" in one.scores) == (one.text != "a fox")


@pytest.mark.parametrize("node", [AtelierPromptOptimizer, AtelierTrainPromptOptimizer])
def test_what_is_left_out_of_a_request_has_the_default_that_is_shown(node: type) -> None:
    shown = {one.id: one.default for one in node.define_schema().inputs if hasattr(one, "default")}
    names = ("pictures", "size", "sampler_steps", "cfg", "sampler_name", "scheduler", "negative")
    taken = {**signature(picture_reward).parameters, **signature(node.execute).parameters}
    assert {name: taken[name].default for name in names} == {name: shown[name] for name in names}


def test_with_nothing_to_choose_from_nothing_is_drawn() -> None:
    reward, asked = worth()
    made = optimize("", saying("x"), None)
    assert best_of("", made, reward, 7) == made and not asked


# --- over the API ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(server: Any) -> Iterator[Path]:
    """A taught policy in the server's own models folder, under a name that no other test uses."""
    folder = Path(server.base) / "models" / "prompt_optimizers" / "test-taught"
    small.save_policy(folder, small.taught_model())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(
    server: ComfyClient,
    policy: str | None = "test-taught",
    llm: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    **inputs: Any,
) -> Any:
    """Queues the node with its inputs and outputs, and `more` nodes."""
    graph: dict[str, Any] = {
        **(more or {}),
        "optimize": {"class_type": "AtelierPromptOptimizer", "inputs": {"prompt": small.PROMPT, **inputs}},
        "best": {"class_type": "PreviewAny", "inputs": {"source": ["optimize", 0]}},
        "all": {"class_type": "PreviewAny", "inputs": {"source": ["optimize", 1]}},
        "trace": {"class_type": "PreviewAny", "inputs": {"source": ["optimize", 2]}},
    }
    if policy is not None:
        graph["policy"] = {"class_type": "AtelierLoadPromptPolicy", "inputs": {"policy": policy}}
        graph["optimize"]["inputs"]["policy"] = ["policy", 0]
    if llm is not None:
        graph["llm"] = {"class_type": "AtelierLLMServer", "inputs": llm}
        graph["optimize"]["inputs"]["llm"] = ["llm", 0]
    entry = server.queue(graph)
    texts = {name: entry["outputs"][name]["text"] for name in ("best", "all", "trace")}
    return texts["best"][0], texts["all"], json.loads(texts["trace"][0]), entry


def test_the_node_gives_the_best_all_and_the_trace(server: ComfyClient, installed: Path) -> None:
    best, texts, trace, _ = run(server)
    assert best == texts[0] == small.STYLED[0] and texts[1] == small.STYLED[1]
    assert [one["text"] for one in trace["candidates"]] == texts
    assert trace["candidates"][0]["scores"]["beam"] > trace["candidates"][1]["scores"]["beam"]
    assert any("missing: red" in one["why"] for one in trace["dropped"])
    assert run(server, count=1)[1] == texts[:1]


def test_another_prompt_does_not_load_the_policy_again(server: ComfyClient, installed: Path) -> None:
    run(server, prompt="a star")
    *_, entry = run(server, prompt="two stars")
    cached = [data["nodes"] for event, data in entry["status"]["messages"] if event == "execution_cached"]
    assert "policy" in cached[0] and "optimize" not in cached[0]


def test_a_language_model_and_a_policy_over_the_api(server: ComfyClient, installed: Path) -> None:
    answer = json.dumps({"english": small.PROMPT, "prompts": [small.PROMPT]})
    with fake.scripted(fake.says(answer)) as scripted:
        llm = {"base_url": scripted.url, "model": "m", "profile": "", "temperature": 0.0, "seed": 0, "timeout": 20.0}
        llm = {**llm, "keep_alive": -1, "max_tokens": 300}
        best, _, trace, _ = run(server, llm=llm, prompt="눈 속의 빨간 여우", seed=7)
        assert best == small.STYLED[0] and trace["notes"][0].startswith("Translated")
        assert scripted.chats[0]["seed"] == 7
    with pytest.raises(GraphError, match="AtelierPromptOptimizer"):
        run(server, llm={**llm, "base_url": "http://127.0.0.1:9/v1"}, prompt="a hare", on_error="stop")


def test_the_reward_draws_all_candidates_and_takes_the_best(server: ComfyClient, installed: Path) -> None:
    kind = {"scorer": "aesthetic", "clip_model": "shapeworld", "aesthetic_head": "shapeworld.safetensors"}
    more = {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "scorer": {"class_type": "AtelierLoadScorer", "inputs": kind},
    }
    linked = {"model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2], "scorer": ["scorer", 0]}
    drawn = {"size": 128, "pictures": 1, "sampler_steps": 2, "cfg": 1.0, "scheduler": "normal", "seed": 3}
    best, texts, trace, _ = run(server, more=more, **linked, **drawn)
    rewards = [one["scores"]["reward"] for one in trace["candidates"]]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] != rewards[-1]
    assert best == texts[0] and {small.PROMPT, *small.STYLED[:2]} <= {*texts}
    assert rewards[texts.index(small.PROMPT)] == 0, "what the prompt's own pictures gain over themselves"
    with pytest.raises(GraphError, match=r"Candidates are drawn and scored\. Link clip, vae\."):
        run(server, more=more, model=["load", 0], scorer=["scorer", 0])


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"policy": None}, "nothing that could optimize"),
        ({"policy": "missing"}, "AtelierLoadPromptPolicy"),
        ({"count": 0}, "smaller than min"),
        ({"beams": 99}, "bigger than max"),
        ({"seed": -1}, "smaller than min"),
    ],
)
def test_bad_input_is_refused(server: ComfyClient, installed: Path, inputs: dict[str, Any], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        run(server, **inputs)


def test_a_half_copied_folder_is_told(server: Any, installed: Path) -> None:
    folder = installed.parent / "test-half"
    folder.mkdir()
    try:
        (folder / "config.json").write_text((installed / "config.json").read_text())
        with pytest.raises(GraphError, match=r"test-half has no weights\. It needs model\.safetensors or"):
            run(server, policy="test-half")
    finally:
        shutil.rmtree(folder)


def test_an_empty_prompt_stays_empty(server: ComfyClient, installed: Path) -> None:
    assert run(server, prompt="")[:2] == ("", [""])
