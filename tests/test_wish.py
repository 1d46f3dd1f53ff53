"""What the rules tell of a wish besides prompt and negative: edits, language, style words."""

from __future__ import annotations

import pytest
from atelier.llm.edits import edit_instruction
from atelier.llm.language import language_of
from atelier.llm.parser import parse
from atelier.llm.placeholders import hide
from atelier.llm.wish import read_by_rules
from growth import grows_linearly

EDITS = [
    ("make the sky red in this picture", "make the sky red in this picture"),
    ("Could you please turn the cat into a dog? Thanks!", "turn the cat into a dog"),
    ("Replace the sky with (stars:1.2).", "Replace the sky with (stars:1.2)"),
    ("In this photo, make the door green", "In this photo, make the door green"),
    ("I'd like to change the hat to red", "change the hat to red"),
    ("add a hat to the man", "add a hat to the man"),
    ("remove the people", "remove the people"),
    ("make it night", "make it night"),
    ("make the house look older", "make the house look older"),
    ("edit this photo so that it is winter", "edit this photo so that it is winter"),
    ("crop the image", "crop the image"),
]
NO_EDITS = [
    "a red star",
    "I want a picture of a dog",
    "make the big red star",
    "make a picture of the sea",
    "paint a wall red",
    "draw a picture of my cat",
    "If I could turn the cat into a dog, what would I see?",
    "a man who says: turn the cat into a dog",
    "add up",
    "빨간 별로 바꿔 줘",
]


@pytest.mark.parametrize(("wish", "edit"), EDITS)
def test_rules_find_a_clear_edit(wish: str, edit: str) -> None:
    found = read_by_rules(wish)
    assert found.edit_instruction == edit
    assert (found.kind, found.prompt, found.negative) == (parse(wish).kind, parse(wish).prompt, parse(wish).negative)
    assert "An edit of a picture" in found.trace[-1]


@pytest.mark.parametrize("wish", NO_EDITS)
def test_rules_leave_other_wishes_alone(wish: str) -> None:
    assert edit_instruction(wish) == ("", "")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red star, chalk", "en"),
        ("I want something nice", "en"),
        ("(a red star:1.2) <lora:x:1>", "en"),
        ("une étoile rouge dessinée à la craie", "und"),
        ("ein roter Stern auf dem Dach", "und"),
        ("chat noir", "und"),
        ("칠판에 그린 빨간 별, chalk", "ko"),
        ("我想要一张红星的图片", "zh"),
        ("赤い星を描いて", "ja"),
        ("東京駅前の夜景、浮世絵風", "ja"),
        ("κόκκινο αστέρι", "el"),
        ("красная звезда", "und-Cyrl"),
        ("نجم أحمر", "und-Arab"),
        ("🎨 123", "und"),
    ],
)
def test_rules_tell_the_language_by_script_and_common_words(text: str, language: str) -> None:
    found = read_by_rules(text)
    assert found.language == language
    assert found.english == (found.prompt if language == "en" else "")


def test_rules_find_style_words_and_their_company() -> None:
    wish = "an Oil Painting of a (pixel art:1.2) cat, flat vector illustration, no cartoon <lora:anime:1>"
    assert read_by_rules(wish).style_words == ("oil painting", "pixel art", "flat vector illustration")
    assert read_by_rules("a red star").style_words == ()


@pytest.mark.parametrize("unit", ["make the a ", "in this picture, ", "add a ", "please ", "turn the x ", " ", "⟦"])
def test_time_grows_with_length_not_with_its_square(unit: str) -> None:
    assert grows_linearly(lambda wish: (edit_instruction(wish), language_of(wish), hide(wish)), "make the ", unit)
