"""The wish parser on its rules: kinds, cores, negatives, and what it must not touch."""

from __future__ import annotations

import json
from typing import Any

import pytest
from atelier.llm.parser import KINDS, parse
from growth import grows_linearly

CORES = [
    (
        "I want a picture of a shiny red star above a blue square, drawn in chalk",
        "instruction",
        "a shiny red star above a blue square, drawn in chalk",
    ),
    ("generate an image of a dog", "instruction", "a dog"),
    ("Could you please draw two red stars? Thanks!", "instruction", "two red stars"),
    ("Hello! I'd like a chalk drawing of a star.", "instruction", "a chalk drawing of a star"),
    ("Show me a red star please", "instruction", "a red star"),
    ("something that feels like rain on a Sunday", "inspiration", "rain on a Sunday"),
    ("I want something like a red star in pixel art", "inspiration", "a red star in pixel art"),
    ("I feel like seeing the sea at dawn, give me inspiration", "inspiration", "the sea at dawn"),
    ("a quiet harbour, inspire me!", "inspiration", "a quiet harbour"),
    ("I want to see a beach", "inspiration", "a beach"),
    ("Imagine a city under the sea", "inspiration", "a city under the sea"),
    ("If I were a bird, what would I see?", "hypothesis", "the view of a bird"),
    (
        "If I were a bird, what would I see? Draw it in chalk",
        "hypothesis",
        "the view of a bird, Draw it in chalk",
    ),
    (
        "If I were a bird, what would I see, drawn in chalk?",
        "hypothesis",
        "the view of a bird, drawn in chalk",
    ),
    ("If I had a red star, how would it look? as a neon sign", "hypothesis", "a red star, as a neon sign"),
    ("If you give me a toy, I will laugh very happily", "hypothesis", "a toy, laugh very happily"),
    ("If I had a red star, it would be drawn in chalk", "hypothesis", "a red star, drawn in chalk"),
    ("What if dogs could fly?", "hypothesis", "dogs could fly"),
]

UNCHANGED = [
    "a red star, chalk",
    "  a  star ,  two spaces ",
    "a man with no hat",
    "A no smoking sign",
    "No Country for Old Men poster",
    "no people",
    "to be or not to be",
    "paint splashes on a wall",
    "make-up artist, make love not war",
    "picture of a cat",
    "빨간 별, 분필로 그린",
    "我想要一张红星的图片",
    "une étoile rouge dessinée à la craie",
    "🎨✨",
    "one line\nanother line\n",
    "(draw a star:1.2)",
]

NEGATIVES = [
    ("a red star without text", "a red star", "text"),
    ("a beach, no people", "a beach", "people"),
    ("a portrait, but not blurry", "a portrait", "blurry"),
    ("a portrait but not blurry", "a portrait", "blurry"),
    ("a cat, negative: dog, (blurry:1.2)", "a cat", "dog, (blurry:1.2)"),
    ("a star\nNegative prompt: ugly\nsecond line", "a star\nsecond line", "ugly"),
    ("a cat --no text, logo --ar 1:1", "a cat --ar 1:1", "text, logo"),
    ("a man without a hat in a garden with a dog", "a man in a garden with a dog", "a hat"),
    ("a star, and no text, and no logo, in chalk", "a star, in chalk", "text, logo"),
    ("a street, no people and don't show cars", "a street", "people, cars"),
    ("No people. A beach", "A beach", "people"),
    ("a road without cars and a tree", "a road and a tree", "cars"),
]


@pytest.mark.parametrize(("wish", "kind", "core"), CORES)
def test_kind_and_core(wish: str, kind: str, core: str) -> None:
    parsed = parse(wish)
    assert (parsed.kind, parsed.prompt, parsed.negative) == (kind, core, "")
    assert parsed.kind in KINDS
    assert parsed.trace


@pytest.mark.parametrize("wish", UNCHANGED)
def test_a_prompt_is_returned_unchanged(wish: str) -> None:
    parsed = parse(wish)
    assert (parsed.kind, parsed.prompt, parsed.negative) == ("prompt", wish, "")


@pytest.mark.parametrize(("wish", "prompt", "negative"), NEGATIVES)
def test_what_to_leave_out(wish: str, prompt: str, negative: str) -> None:
    parsed = parse(wish)
    assert (parsed.prompt, parsed.negative) == (prompt, negative)


def test_kind_and_negative_together() -> None:
    parsed = parse("Draw me a red star, drawn in chalk, without text. Thank you!")
    assert (parsed.kind, parsed.prompt, parsed.negative) == (
        "instruction",
        "a red star, drawn in chalk",
        "text",
    )


def test_a_condition_keeps_its_negation() -> None:
    parsed = parse("If I lived without gravity, what would I see?")
    assert (parsed.prompt, parsed.negative) == ("the view of I lived without gravity", "")


@pytest.mark.parametrize(
    "syntax",
    [
        "(word without text:1.2)",
        "((x))",
        "[x]",
        r"\(no people\)",
        "<lora:a:1>",
        "embedding:b",
        "{a|b}",
        "BREAK",
        "AND",
    ],
)
def test_prompt_syntax_survives_every_rule(syntax: str) -> None:
    parsed = parse(f"I want a picture of a star, {syntax} in chalk, without text")
    assert (parsed.prompt, parsed.negative) == (f"a star, {syntax} in chalk", "text")
    assert syntax in parse(f"a star, not {syntax}").negative


def test_a_script_that_the_rules_do_not_read_is_noted() -> None:
    parsed = parse("밤하늘에 높이 떠 있는 붉은 별, no people")
    assert (parsed.prompt, parsed.negative) == ("밤하늘에 높이 떠 있는 붉은 별, no people", "")
    assert "another script" in parsed.trace[0]


@pytest.mark.parametrize("wish", ["", "  \n\t "])
def test_an_empty_wish_says_what_to_do(wish: str) -> None:
    with pytest.raises(ValueError, match="Write what you want to see"):
        parse(wish)


@pytest.mark.parametrize("wish", ["negative: blurry", "--no text", " , negative prompt: a, b"])
def test_only_a_negative_says_what_to_do(wish: str) -> None:
    with pytest.raises(ValueError, match="Write also what you want to see"):
        parse(wish)


def test_a_long_wish_is_kept_whole() -> None:
    core = ", ".join(["a red star"] * 833) + " and one"
    assert len(core) >= 10_000
    assert parse("I want a picture of " + core).prompt == core
    assert parse(core).prompt == core


@pytest.mark.parametrize(
    "unit",
    [
        "a red star, ",
        "(",
        "[(",
        "<a:",
        r"\(",
        "no ",
        "without ",
        ", not",
        "\n",
        " ",
        "a.",
        "if ",
        "please ",
        "--no ",
        ", but and please ",
        "negative:",
        "i want ",
    ],
)
def test_time_grows_with_length_not_with_its_square(unit: str) -> None:
    assert grows_linearly(parse, "a", unit)


def test_the_node_gives_its_first_four_outputs() -> None:
    from atelier.nodes.parse import AtelierPromptParser

    prompt, negative, kind, trace = AtelierPromptParser.execute("Draw a ★, without text").args[:4]
    assert (prompt, negative, kind) == ("a ★", "text", "instruction")
    told: dict[str, Any] = json.loads(trace)
    assert told["prompt"] == prompt and told["negative"] == negative and told["kind"] == kind
    assert len(told["trace"]) == 2


def graph(wish: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "AtelierPromptParser", "inputs": {"wish": wish}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def shown(entry: dict[str, Any], node_id: str = "2") -> str:
    return entry["outputs"][node_id]["text"][0]


def test_over_the_api(server: Any) -> None:
    assert shown(server.queue(graph("I want a picture of a {red|blue} ★ \\(x\\)"))) == "a {red|blue} ★ \\(x\\)"
    long = "a red star, " * 900
    assert shown(server.queue(graph(long))) == long
    with pytest.raises(RuntimeError, match="Write what you want to see"):
        server.queue(graph("  "))
