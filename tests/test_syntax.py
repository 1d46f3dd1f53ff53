"""Prompt syntax comes back byte for byte, whatever happens to the text around it."""

from __future__ import annotations

import random

import pytest
from atelier.llm.syntax import protect, restore

PIECES = [
    "(word:1.2)",
    "((x))",
    "[x]",
    "[from:to:0.5]",
    r"\(",
    r"\)",
    "\\\\",
    "<lora:my style v2:0.8>",
    "embedding:bad-hands_5",
    "{a|b}",
    "{a (x:1.1)|[b]}",
    "(a, embedding:easy, <lora:x:1>:1.3)",
    "BREAK",
    "AND",
]


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_becomes_one_mark_and_comes_back(piece: str) -> None:
    text, pieces = protect(f"a red star, {piece} in chalk")
    assert pieces == (piece,)
    assert len(text) == len("a red star,  in chalk") + 1
    assert restore(text, pieces) == f"a red star, {piece} in chalk"


def test_the_outermost_group_is_one_piece() -> None:
    assert protect("a ((red) (shiny:1.1) star:1.2) b")[1] == ("((red) (shiny:1.1) star:1.2)",)


@pytest.mark.parametrize("plain", ["BREAKFAST", "SAND", "band and break", "a ( b", "a ) b", "3 < 4 > 2", "a] [b"])
def test_ordinary_text_is_left_alone(plain: str) -> None:
    assert protect(plain) == (plain, ())


def test_an_escaped_bracket_opens_no_group() -> None:
    assert protect(r"\(a (b\) c)")[1] == (r"\(", r"(b\) c)")


def test_pieces_follow_their_marks_when_text_moves() -> None:
    text, pieces = protect("one (a:1.1) two [b] three {c|d}")
    assert restore(" ".join(reversed(text.split())), pieces) == "{c|d} three [b] two (a:1.1) one"


def test_marks_that_were_in_the_text_come_back() -> None:
    text = "a \U000f0000 b (c:1.1) \U0010ffff"
    assert restore(*protect(text)) == text


def test_any_text_comes_back() -> None:
    rng = random.Random(0)
    alphabet = [*"()[]{}<>|:\\ \n,ab1", *PIECES, "\U000f0001", "별", "🎨"]
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(40)))
        assert restore(*protect(text)) == text
