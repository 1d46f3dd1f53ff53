"""Pairs for supervised fine-tuning: the ways from a good prompt back to a user's, and where good prompts come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from atelier.feedback.records import StoredImage
from atelier.feedback.store import open_store
from atelier.llm.backend import LLMConnectionError
from atelier.llm.words import content_words, missing_words, phrases
from atelier.training.prompt_pairs import Pair, make_pairs, split_prompt
from atelier.training.prompt_sources import (
    NoPromptsError,
    prompt_of_parameters,
    prompts_of_file,
    prompts_of_pictures,
    prompts_of_store,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scripted_llm import Scripted, replying

WOLF = "dieselpunk blue wolf with fuzzy tail, concept art, dramatic, fantasy, pixiv"
LIGHTHOUSE = "a lighthouse on a rock, two gulls, oil painting, highly detailed, by Ivan Aivazovsky, sharp focus"


def rephrases(content: str, prompt: str) -> Scripted:
    return replying({"content": content, "prompt": prompt})


# The three ways


@pytest.mark.parametrize(
    ("prompt", "content", "modifiers"),
    [
        (WOLF, "dieselpunk blue wolf with fuzzy tail", 4),
        (LIGHTHOUSE, "a lighthouse on a rock, two gulls", 4),
        ("oil painting of a fox, two gulls", "oil painting of a fox, two gulls", 0),
        ("a fox, in the style of Monet, a hill", "a fox", 2),
        ("a fox, by Claude Monet", "a fox", 1),
        ("a fox", "a fox", 0),
        ("", "", 0),
    ],
)
def test_a_prompt_is_content_and_modifiers(prompt: str, content: str, modifiers: int) -> None:
    found = split_prompt(prompt)
    assert found[0] == content and len(found[1]) == modifiers


def test_modifiers_are_trimmed_and_some_dropped_and_shuffled() -> None:
    trim, shuffle = make_pairs([LIGHTHOUSE], seed=1).pairs
    assert trim == Pair("a lighthouse on a rock, two gulls", LIGHTHOUSE, "trim")
    assert shuffle.way == "shuffle" and shuffle.target == LIGHTHOUSE
    assert shuffle.source.startswith("a lighthouse on a rock, two gulls")
    assert missing_words(shuffle.source, LIGHTHOUSE) == [] and shuffle.source != LIGHTHOUSE


def test_shuffling_drops_and_moves_by_the_seed() -> None:
    orders, lengths = set(), set()
    for seed in range(40):
        source = [pair.source for pair in make_pairs([LIGHTHOUSE], seed).pairs if pair.way == "shuffle"]
        modifiers = tuple(phrases(source[0])[2:]) if source else ()
        orders.add(modifiers)
        lengths.add(len(modifiers))
    places = {name: i for i, name in enumerate(phrases(LIGHTHOUSE))}
    assert lengths == {0, 1, 2, 3} and len(orders) > 12
    assert any([*order] != sorted(order, key=places.__getitem__) for order in orders)


def test_a_prompt_gives_the_same_pairs_in_any_company() -> None:
    alone = make_pairs([WOLF], seed=3).pairs
    assert make_pairs([LIGHTHOUSE, WOLF, WOLF], seed=3).pairs[-len(alone) :] == alone
    assert alone == make_pairs([WOLF], seed=3).pairs


def test_prompts_are_taken_in_plain_words() -> None:
    found = make_pairs(["a (red:1.2) fox, <lora:ink:1>, [oil painting], embedding:good, 8k BREAK"], seed=0).pairs
    assert found[0].source == "a red fox" and found[0].target.startswith("a red fox, ")
    assert not any(sign in pair.source + pair.target for pair in found for sign in "()[]<>:")


def test_a_language_model_rephrases_content_and_prompt() -> None:
    llm = rephrases("a blue wolf with a fuzzy tail, dieselpunk", "concept art of a wolf")
    found = make_pairs([WOLF], llm=llm).pairs
    assert [pair.source for pair in found if pair.way == "rephrase"] == [
        "a blue wolf with a fuzzy tail, dieselpunk",
        "concept art of a wolf",
    ]
    user = llm.asked[0].messages[1].content
    assert f"<prompt>\n{WOLF}\n</prompt>" in user and "<content>\ndieselpunk blue wolf with fuzzy tail\n" in user


@pytest.mark.parametrize("said", [WOLF, "", "I cannot do that", "a wolf " * 30, "dieselpunk blue wolf with fuzzy tail"])
def test_a_rephrasing_that_teaches_nothing_is_left_out(said: str) -> None:
    found = make_pairs([WOLF], llm=rephrases(said, said))
    assert not [pair for pair in found.pairs if pair.way == "rephrase"]
    assert len(found.pairs) == len({pair.source for pair in found.pairs})


def test_what_gives_no_pair_is_told() -> None:
    found = make_pairs(["a fox", "<lora:x:1>", WOLF], llm=replying("no json"))
    assert found.skipped["a fox"] == "it has no modifiers" and found.skipped["<lora:x:1>"] == "it has no content"
    assert found.skipped[WOLF].startswith("not rephrased: ") and len(found.pairs) == 2
    assert make_pairs([]).pairs == ()


def test_a_model_that_cannot_be_reached_and_a_cancel_go_through() -> None:
    with pytest.raises(LLMConnectionError):
        make_pairs([WOLF], llm=replying(LLMConnectionError("No server answers.")))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pairs([WOLF], check=stop)


def test_words_of_another_world_can_be_modifiers() -> None:
    assert split_prompt("a red star, in stripes, large")[1] == ()
    assert split_prompt("a red star, in stripes, large", frozenset(("stripe",)))[1] == ("in stripes", "large")


# Sources


def test_a_text_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "good prompts.txt"
    file.write_bytes("\ufeffa fox, 8k\r\n\r\n  빨간 별, 수채화  \n---\na fox, 8k\n".encode())
    assert prompts_of_file(file).prompts == ("a fox, 8k", "빨간 별, 수채화")


@pytest.mark.parametrize(
    ("data", "why"), [(None, "cannot be read"), (b"\xff\xfe\x00", "not UTF-8"), (b" \n--\n", "no prompt")]
)
def test_a_text_file_without_prompts_is_told(tmp_path: Path, data: bytes | None, why: str) -> None:
    if data is not None:
        (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(NoPromptsError, match=why):
        prompts_of_file(tmp_path / "p.txt")


def graph(positive: str) -> dict[str, Any]:
    """A queued graph, its output first."""
    return {
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
        "3": {"class_type": "KSampler", "inputs": {"positive": ["6", 0], "negative": ["7", 0], "seed": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": positive}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry"}},
    }


def save(path: Path, **texts: str) -> None:
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def test_pictures_hold_their_prompts(tmp_path: Path) -> None:
    settings = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
    save(tmp_path / "a.png", prompt=json.dumps(graph("a fox, oil painting")), workflow="{}")
    save(tmp_path / "b.png", parameters=f"a star,\nwatercolor 별\nNegative prompt: blurry\n{settings}")
    save(tmp_path / "c.png", prompt=json.dumps(graph("a fox, oil painting")))  # the same again
    save(tmp_path / "d.png")
    save(tmp_path / "e.png", prompt="{not json")
    save(tmp_path / "f.png", prompt=json.dumps([1, {"inputs": 2}]))
    (tmp_path / "g.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "notes.txt").write_text("no picture")
    found = prompts_of_pictures(tmp_path)
    assert found.prompts == ("a fox, oil painting", "a star,\nwatercolor 별")
    assert sorted(found.skipped) == ["d.png", "e.png", "f.png", "g.png"]
    assert found.skipped["d.png"] == "holds no prompt" and "cannot be read" in found.skipped["e.png"]
    assert prompt_of_parameters("a star\nSteps: 3") == prompt_of_parameters("a star") == "a star"


def test_a_folder_without_prompts_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoPromptsError, match="no folder"):
        prompts_of_pictures(tmp_path / "none")
    save(tmp_path / "a.png")
    with pytest.raises(NoPromptsError, match="No picture in"):
        prompts_of_pictures(tmp_path)


def test_the_stores_liked_prompts(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'ratings.db'}")
    with pytest.raises(NoPromptsError, match="Rate some pictures"):
        prompts_of_store(store)
    ratings = [("a fox, 8k", 1), ("a hare, 8k", -1), ("a star, chalk", 1), ("a star, chalk", -1), ("a cat, ink", 1)]
    for i, (prompt, value) in enumerate(ratings):
        image = StoredImage(f"{i:064x}", prompt, "s")
        store.register([image])
        store.rate(image.key, value, session="s")
    assert prompts_of_store(store).prompts == ("a fox, 8k", "a cat, ink")
    assert content_words(make_pairs(prompts_of_store(store).prompts).pairs[0].source) == ["fox"]
