"""Word dropout: what is left out, what never is, and the node over the API."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from atelier.llm.dropout import drop_words
from comfy_api_client import ComfyClient, GraphError
from growth import grows_linearly

PIECES = [
    "(shiny star:1.2)",
    "((x y))",
    "[from here:to there:0.5]",
    r"\(",
    "<lora:my style:0.8>",
    "embedding:bad-hands_5",
    "{a cat|b dog}",
    "BREAK",
    "AND",
]
PROMPT = "a red star above (a blue square:1.3), in chalk, <lora:my chalk:0.7>, BREAK night sky; {day|night} at sea"


@pytest.mark.parametrize("prompt", [PROMPT, "", "  \n", "one", " two  words\t", "a,,b ,; c\n\nd", "빨간 별, 🎨"])
def test_at_zero_every_byte_stays(prompt: str) -> None:
    assert drop_words(prompt, 0.0, 1).prompt == prompt and drop_words(prompt, 0.0, 1).words == ()


def test_the_same_seed_leaves_out_the_same_words_everywhere() -> None:
    """Written down once: another platform or version must give the same."""
    made = drop_words("a large shiny red star in chalk, on a gray background, at night", 0.4, 7)
    assert made.prompt == "shiny star, on gray, night"
    assert " ".join(made.words) == "a large red in chalk a background at"
    assert len({drop_words(PROMPT, 0.4, seed).prompt for seed in range(20)}) > 15


def test_each_word_goes_with_probability_p_by_itself() -> None:
    words = [f"w{i}" for i in range(10)]
    runs = [drop_words(" ".join(words), 0.3, seed).words for seed in range(4000)]
    share = Counter(word for run in runs for word in run)
    assert all(abs(share[word] / 4000 - 0.3) < 0.03 for word in words)  # four standard errors
    both = sum("w0" in run and "w1" in run for run in runs) / 4000
    assert abs(both - 0.09) < 0.02


@pytest.mark.parametrize("piece", PIECES)
def test_syntax_comes_back_byte_for_byte(piece: str) -> None:
    for seed in range(50):
        assert piece in drop_words(f"a red star, {piece} in chalk{piece}, one", 0.9, seed).prompt


def test_random_prompts_lose_no_syntax_and_gain_nothing() -> None:
    rng = random.Random(0)
    plain = ["red", "star,", "in", "chalk", ",", ";", "\n", "(open", "a:b", "별"]
    for number in range(500):
        picked = rng.choices([*plain, *PIECES], k=rng.randrange(1, 25))
        made = drop_words(" ".join(picked), rng.random(), number)
        for piece in PIECES:
            assert made.prompt.count(piece) == " ".join(picked).count(piece)
        letters = Counter(" ".join(picked)) - Counter(made.prompt) - Counter("".join(made.words))
        assert set(letters) <= set(" ,;\n")
        assert not Counter(made.prompt) - Counter(" ".join(picked))


@pytest.mark.parametrize("prompt", ["one", "two words", "a, b,\nc", "BREAK star", "<lora:x:1> red star", " x "])
def test_a_prompt_is_never_emptied(prompt: str) -> None:
    plain = {"one", "two", "words", "a", "b", "c", "star", "red", "x"}
    for seed in range(30):
        made = drop_words(prompt, 1.0, seed)
        assert len(plain & set(made.prompt.replace(",", " ").split())) == 1


@pytest.mark.parametrize(
    ("prompt", "words", "left"),
    [
        ("a red star, in chalk", ("star,",), None),
        ("x, a b c", ("a", "b"), "x, c"),
        ("red, blue, green", ("blue",), "red, green"),
        ("red, blue, green", ("red",), "blue, green"),
        ("red, blue, green", ("green",), "red, blue"),
        ("red star\nblue square, green", ("star", "blue"), "red\nsquare, green"),
        ("  red star  ", ("star",), "  red  "),
    ],
)
def test_separators_around_a_word_that_went(prompt: str, words: tuple[str, ...], left: str | None) -> None:
    """Of all seeds, those that leave out just these words leave this text; a comma is no part of a word."""
    found = {made.prompt for made in (drop_words(prompt, 0.5, seed) for seed in range(400)) if made.words == words}
    assert found == ({left} if left else set())


def test_a_long_prompt_takes_linear_time() -> None:
    assert grows_linearly(lambda text: drop_words(text, 0.5, 1), "", "word, ")


# --- over the API ------------------------------------------------------------------------------------------


def run(server: ComfyClient, **inputs: Any) -> dict[str, Any]:
    graph = {
        "drop": {"class_type": "AtelierPromptDropout", "inputs": {"prompt": PROMPT, "p": 0.5, "seed": 3, **inputs}},
        "prompts": {"class_type": "PreviewAny", "inputs": {"source": ["drop", 0]}},
        "dropped": {"class_type": "PreviewAny", "inputs": {"source": ["drop", 1]}},
    }
    return server.queue(graph)["outputs"]


def test_the_node_gives_a_list(server: ComfyClient) -> None:
    outputs = run(server, count=3)
    made = [drop_words(PROMPT, 0.5, seed) for seed in (3, 4, 5)]
    assert outputs["prompts"]["text"] == [one.prompt for one in made]
    assert outputs["dropped"]["text"] == [" ".join(one.words) for one in made]


def test_an_empty_prompt_stays_empty(server: ComfyClient) -> None:
    assert run(server, prompt="", count=1)["prompts"]["text"] == [""]


@pytest.mark.parametrize("bad", [{"p": 1.5}, {"p": -0.1}, {"count": 0}, {"seed": -1}])
def test_bad_input_is_refused(server: ComfyClient, bad: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match="AtelierPromptDropout"):
        run(server, count=1, **bad) if "count" not in bad else run(server, **bad)
