"""ShapeWorld's taste, the aesthetic head that reads it from pictures, and the policy that writes prompts for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from assemble import PARTS, assemble_head, assemble_policies, assemble_scorer, header
from atelier.feedback.aesthetic import Aesthetic, fold, load_head
from atelier.feedback.open_clip_model import open_model
from atelier.llm.backend import Hooks
from atelier.llm.gpt2_files import derive_merges
from atelier.llm.optimize import optimize
from atelier.llm.promptist import Policy, open_policy
from atelier.llm.words import missing_words
from shapeworld.caption import Words, read
from shapeworld.oracle import Sight, look
from shapeworld.render import render
from shapeworld.scene import COLOURS, SHAPES, Scene, Thing, random_scene
from shapeworld.taste import (
    HABITS,
    NOTHING,
    PEOPLE,
    WORLD,
    engineered,
    engineered_inputs,
    is_held_out,
    training_inputs,
    training_prompts,
    user_inputs,
)
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from training.aesthetic import as_layers, fit
from training.policy import new_tokenizer, vocabulary


def scene(**settings: str) -> Scene:
    return Scene((Thing("star", "red", radius=0.3),), **{"background": "sky", **settings})


# --- the taste ---------------------------------------------------------------------------------------------


def test_marks_are_of_how_a_picture_is_made() -> None:
    cold = scene()
    assert WORLD(scene(background="night")) > WORLD(cold) > WORLD(scene(background="black"))
    assert WORLD(cold.with_thing(0, radius=0.15)) < WORLD(cold) > WORLD(cold.with_thing(0, x=0.3, y=0.3))
    assert WORLD(scene(background="night", style="chalk")) == WORLD(scene(style="chalk")) < WORLD(cold)
    assert WORLD(Sight((), "night", "flat")) == NOTHING


def test_what_a_picture_shows_leaves_people_cold() -> None:
    for changes in ({"shape": "heart"}, {"colour": "blue"}, {"texture": "shiny"}):
        assert WORLD(scene().with_thing(0, **changes)) == WORLD(scene())


def test_the_oracle_marks_a_picture_as_its_scene() -> None:
    scenes = [random_scene(np.random.default_rng([3, i]), style_share={"flat": 1.0}) for i in range(40)]
    gaps = [abs(WORLD(one) - WORLD(look(render(one)))) for one in scenes]
    assert np.median(gaps) < 0.15 and np.mean(gaps) < 0.4


def test_two_persons_contradict_each_other() -> None:
    grounds = ("sky", "white", "black", "night")
    marks = np.array([[rule(scene(background=ground)) for ground in grounds] for rule in PEOPLE])
    assert np.corrcoef(marks)[0, 1] < -0.9


# --- what people write -------------------------------------------------------------------------------------


def test_inputs_are_held_out_and_the_same_each_time() -> None:
    asked = user_inputs(60)
    assert asked == user_inputs(60) and len(dict(asked)) == 60
    assert all(is_held_out(description.things[0]) and read(text) == description for text, description in asked)
    assert all(len(description.things) == 2 for _, description in user_inputs(40, out_of_domain=True))
    learnt = [prompt.split(",")[0] for prompt in training_prompts(300)] + training_inputs(100)
    pairs = [tuple(text.split()[-2:]) for text in learnt if text.split()[0] in ("a", "an") and len(text.split()) < 6]
    things = [Words(shape, colour) for colour, shape in pairs if colour in COLOURS and shape in SHAPES]
    assert len(things) > 200 and not any(map(is_held_out, things))


def test_people_add_at_most_one_phrase_of_a_kind_and_lose_nothing() -> None:
    asked = user_inputs(60) + user_inputs(20, out_of_domain=True)
    for (text, _), prompt in zip(asked, engineered_inputs(asked), strict=True):
        assert prompt.startswith(f"{text}, ") and missing_words(text, prompt) == []
        added = prompt.removeprefix(f"{text}, ").split(", ")
        for _, choices in HABITS.values():
            assert sum(phrase in choices for phrase in [*added, *text.split()]) <= 1
    assert all("large" not in engineered("a small red star", np.random.default_rng(i)) for i in range(50))


# --- the aesthetic head ------------------------------------------------------------------------------------


def test_the_layers_are_the_fitted_map() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(400, 128, generator=generator), dim=1)
    true = torch.randn(128, generator=generator)
    weight, bias = fit(vectors, vectors @ true + 5, 1e-9)
    assert (weight - true).abs().max() < 1e-3 and abs(bias - 5) < 1e-3
    layers = as_layers(weight, bias)
    assert [layers[f"layers.{n}.weight"].shape[0] for n in range(3)] == [32, 16, 1]
    folded, constant = fold(layers)
    assert torch.allclose(folded, weight.float(), atol=1e-5) and torch.allclose(constant, bias.float(), atol=1e-5)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_the_shipped_head_sees_the_taste(models: Path) -> None:
    clip = open_model(assemble_scorer(models), lambda model: lambda: model)
    head = Aesthetic(clip, load_head(assemble_head(models)))
    scenes = [random_scene(np.random.default_rng([4, i]), 1, {"flat": 1.0}) for i in range(60)]
    pictures = torch.stack([torch.from_numpy(np.array(render(one), np.float32)) / 255 for one in scenes])
    seen = head.score(pictures, "")
    assert np.corrcoef(seen, [WORLD(one) for one in scenes])[0, 1] > 0.7
    assert abs(np.mean(seen) - np.mean([WORLD(one) for one in scenes])) < 0.5


# --- the policy --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 1], ids=["supervised", "reinforced"])
def policy(models: Path, request: pytest.FixtureRequest) -> Policy:
    return open_policy(assemble_policies(models)[request.param], lambda model: lambda: model, Hooks())


def test_head_and_policy_are_small_and_assembled_once(models: Path) -> None:
    assert (PARTS / "policy.safetensors").stat().st_size < 0.7e6
    assert (PARTS / "aesthetic.safetensors").stat().st_size < 50_000
    files = [assemble_head(models), *(folder / "model.safetensors" for folder in assemble_policies(models))]
    before = [file.stat().st_mtime_ns for file in files]
    assemble_head(models)
    assemble_policies(models)
    assert [file.stat().st_mtime_ns for file in files] == before
    files[1].write_bytes(b"half a file")
    assemble_policies(models)
    assert "atelier.parts" in header(files[1])


def test_the_vocabulary_says_how_texts_are_cut() -> None:
    """The folder is shipped without its merges, which follow from the numbers of the tokens."""
    texts = training_prompts(300)
    learnt = new_tokenizer(texts)
    known = vocabulary(learnt)
    merges = derive_merges(known, len(known) - 1)

    derived = Tokenizer(BPE(known, merges))
    derived.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in [*texts[:50], "A fox, two gulls; 별 🎨"]:
        assert derived.encode(text).ids == learnt.encode(text).ids


@pytest.mark.parametrize("out_of_domain", [False, True])
def test_the_policy_keeps_the_content_and_adds_to_it(policy: Policy, out_of_domain: bool) -> None:
    asked = [text for text, _ in user_inputs(12, out_of_domain)]
    found = [optimize(text, policy, None, 1).prompt for text in asked]
    assert all(missing_words(text, prompt) == [] for text, prompt in zip(asked, found, strict=True))
    changed = [prompt for text, prompt in zip(asked, found, strict=True) if prompt != text]
    assert len(changed) >= 10, found
    phrases = {phrase for _, choices in HABITS.values() for phrase in choices}
    assert all(set(prompt.split(", ")[1:]) & phrases for prompt in changed)
