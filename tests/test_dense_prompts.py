"""The prompts of the dense-prompt benchmark: those of the grammar, and those of a user's file."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPO


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_dense_prompts", REPO / "bench" / "_dense_prompts.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_dense_prompts"] = module
    spec.loader.exec_module(module)
    return module


DENSE = load()
NAMES = [name for kind in DENSE.KINDS for name in kind.names]
RELATED = re.compile(rf"(?:{'|'.join(DENSE.RELATIONS)}) the ({'|'.join(NAMES)})\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return DENSE.dense_prompts(300, seed=5)


def test_prompts_are_dense_and_differ(prompts: list[str]) -> None:
    assert len(set(prompts)) == 300
    lengths = [len(prompt.split()) for prompt in prompts]
    assert min(lengths) >= 40 and max(lengths) <= 140 and max(lengths) - min(lengths) > 50
    assert all(prompt.count(". ") >= 3 for prompt in prompts)


def test_each_prompt_has_several_entities_with_attributes_of_their_own(prompts: list[str]) -> None:
    words = {word for kind in DENSE.KINDS for options in kind.attributes.values() for word in options}
    described = re.compile(rf"\ban? ((?:(?:{'|'.join(words)}) )+)({'|'.join(NAMES)})\b")
    for prompt in prompts:
        entities = described.findall(prompt)
        assert 3 <= len(entities) <= 6 and len({name for _, name in entities}) == len(entities), prompt
        assert all(attributes.strip() for attributes, _ in entities)


def test_relations_hold_between_things_that_were_named_before(prompts: list[str]) -> None:
    for prompt in prompts:
        related = list(RELATED.finditer(prompt))
        assert len(related) >= 2, prompt
        assert all(f" {match[1]}" in prompt[: match.start()] for match in related), prompt


def test_english_is_right_about_articles_and_capitals(prompts: list[str]) -> None:
    for prompt in prompts:
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|\{|\}|  |\. [a-z]", prompt), prompt
        assert prompt[0].isupper() and prompt.endswith(".")


def test_prompts_depend_on_the_seed_alone(prompts: list[str]) -> None:
    assert DENSE.dense_prompts(20, seed=5) == prompts[:20]
    assert not set(DENSE.dense_prompts(20, seed=6)) & set(prompts)


def test_a_users_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "color_val.txt"
    file.write_bytes(
        "\ufeffa green bench and a blue bowl\r\n\r\n  a red car\u2028and a café \na red car\na red car".encode()
    )
    assert DENSE.read_prompts(file) == [
        "a green bench and a blue bowl",
        "a red car\u2028and a café",
        "a red car",
        "a red car",
    ]


def test_a_file_that_cannot_serve_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"a caf\xe9")
    for name, why in (
        ("none.txt", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("empty.txt", "holds no prompt"),
        ("latin.txt", r"no UTF-8 text \(byte 5\)"),
    ):
        with pytest.raises(ValueError, match=why) as error:
            DENSE.read_prompts(tmp_path / name)
        assert str(tmp_path) in str(error.value)
