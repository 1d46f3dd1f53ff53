"""Scorers: the cosines, the models they stand on, and the nodes that load and use them over the API."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assemble import PARTS, SCORER, assemble_scorer, header
from atelier.feedback.open_clip_model import BATCH, TEXTS_KEPT, OpenClip, open_model
from atelier.feedback.scorers import ClipRelevance, ScorerSetupError, TargetSimilarity, label, weights_version
from atelier.nodes.clip_models import NO_MODEL
from atelier.nodes.score import order, report, score_batch
from atelier.nodes.scorers import RELEVANCE, TARGET, AtelierLoadScorer
from comfy_api_client import ComfyClient, GraphError
from graphs import DEMO_SCORER
from PIL import Image
from safetensors.torch import load_file, save_file
from shapeworld.render import render
from shapeworld.scene import COLOURS, Scene, Thing
from torch import Tensor


class Vectors:
    """An encoder that gives the vectors it was made with, whatever it sees."""

    name, version = "vectors", "v1"

    def __init__(self, pictures: Sequence[Sequence[float]], text: Sequence[float] = (1.0, 0.0)) -> None:
        self.pictures = torch.nn.functional.normalize(torch.tensor(pictures, dtype=torch.float32), dim=-1)
        self.text, self.read = torch.tensor(text), ""

    def encode_images(self, images: Tensor) -> Tensor:
        return self.pictures[: len(images)]

    def encode_text(self, text: str) -> Tensor:
        self.read = text
        return self.text


def scene(shape: str, colour: str) -> Tensor:
    """A ShapeWorld picture as an IMAGE [1, 128, 128, 3]."""
    pixels = np.asarray(render(Scene((Thing(shape, colour, radius=0.3),), "white")), np.float32)
    return torch.from_numpy(pixels / 255)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's scorer, as a user would install it."""
    return assemble_scorer(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> OpenClip:
    return open_model(folder, lambda model: lambda: model)


# --- the numbers -------------------------------------------------------------------------------------------


def test_relevance_is_the_cosine_of_picture_and_prompt() -> None:
    scorer = ClipRelevance(Vectors([[3, 4], [1, 0], [0, -2]], [1.0, 0.0]))
    assert scorer.score(torch.zeros(3, 4, 4, 3), "x") == pytest.approx([0.6, 1.0, 0.0])
    assert (scorer.name, label(scorer)) == ("clip_relevance/vectors", "clip_relevance/vectors v1")


def test_similarity_is_the_mean_cosine_with_the_targets() -> None:
    encoder = Vectors([[1, 0], [0, 1]])
    scorer = TargetSimilarity(encoder, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert scorer.score(torch.zeros(2, 4, 4, 3), "") == pytest.approx([0.3, 0.9])
    other = TargetSimilarity(encoder, torch.tensor([[1.0, 0.0]]))
    assert label(scorer) != label(other) and scorer.name == other.name


def test_the_version_changes_with_the_weights() -> None:
    weights = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    versions = {
        weights_version(changed)
        for changed in (
            weights,
            {"a": torch.zeros(3), "c": torch.zeros(2, 2)},
            {"a": torch.zeros(3), "b": torch.zeros(4)},
            {"a": torch.tensor([0.0, 0.0, 1e-3]), "b": torch.zeros(2, 2)},
        )
    }
    assert len(versions) == 4 and weights_version(dict(reversed(weights.items()))) in versions


def test_syntax_does_not_count() -> None:
    encoder = Vectors([[1, 0]])
    score_batch(torch.zeros(1, 4, 4, 3), ClipRelevance(encoder), "a (red:1.2) star, <lora:x:1> BREAK night")
    assert encoder.read.split() == ["a", "red", "star,", "night"]


def test_what_is_no_number_comes_last_and_equal_scores_keep_their_order() -> None:
    nan = float("nan")
    assert order([0.1, nan, 0.5, 0.1, float("inf"), 0.5]) == [2, 5, 0, 3, 1, 4]
    text = report(ClipRelevance(Vectors([[1, 0]])), [0.25, nan], ["liked", ""])
    assert text.splitlines() == ["clip_relevance/vectors v1", "0.2500  picture 1  liked", "no number  picture 2"]


class Broken(Vectors):
    def encode_images(self, images: Tensor) -> Tensor:
        return super().encode_images(images) * float("nan")


@pytest.mark.parametrize(
    ("images", "scorer", "prompt", "message"),
    [
        (torch.zeros(0, 4, 4, 3), Vectors, "x", "the batch is empty"),
        (torch.full((1, 4, 4, 3), float("nan")), Vectors, "x", "New picture 1 of 1 holds values"),
        (torch.zeros(1, 4, 4, 3), Vectors, " <lora:x:1> ", "needs a prompt"),
        (torch.zeros(1, 4, 4, 3), Broken, "x", "none of the 1 pictures a number"),
    ],
)
def test_a_batch_that_cannot_be_scored_is_refused(images: Tensor, scorer: type, prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_batch(images, ClipRelevance(scorer([[1, 0]])), prompt)


# --- open_clip ---------------------------------------------------------------------------------------------


def test_pictures_are_prepared_and_encoded_as_open_clip_does(folder: Path, clip: OpenClip) -> None:
    import open_clip

    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 90, 150, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = model.eval().encode_image(torch.stack([prepare(Image.fromarray(p)) for p in pixels]), normalize=True)
        said = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")("a red star"), normalize=True)[0]
    ours = clip.encode_images(torch.from_numpy(pixels).float() / 255)
    assert torch.allclose(ours, theirs, atol=1e-6) and torch.allclose(clip.encode_text("a red star"), said, atol=1e-6)
    assert torch.allclose(ours.norm(dim=1), torch.ones(3), atol=1e-6)


def test_a_text_is_read_once_while_it_is_among_the_last(clip: OpenClip) -> None:
    read: list[str] = []

    def tokenize(text: str) -> Tensor:
        read.append(text)
        return clip.tokenize(text)

    counting = replace(clip, tokenize=tokenize)
    first = counting.encode_text("a red star")
    assert torch.equal(counting.encode_text("a red star"), first) and read == ["a red star"]
    others = [f"a star {number}" for number in range(TEXTS_KEPT)]
    for text in others:
        counting.encode_text(text)
    assert torch.equal(counting.encode_text(others[1]), clip.encode_text(others[1]))
    assert read == ["a red star", *others] and torch.equal(counting.encode_text("a red star"), first)
    assert read[-1] == "a red star", "it had made room for a newer one"


def test_a_batch_is_scored_as_its_pictures_one_by_one(clip: OpenClip) -> None:
    images = torch.rand(BATCH + 3, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    single = torch.cat([clip.encode_images(image[None]) for image in images])
    assert torch.allclose(clip.encode_images(images), single, atol=1e-5)


def test_an_interrupt_ends_the_work_between_two_passes(folder: Path) -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    clip = open_model(folder, lambda model: lambda: model, check)
    with pytest.raises(KeyboardInterrupt):
        clip.encode_images(torch.zeros(5 * BATCH, 8, 8, 3))
    assert len(calls) == 2


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ScorerSetupError, match="pip install open_clip_torch"):
        open_model(folder, lambda model: lambda: model)


def copied(folder: Path, place: Path, config: str | None = None) -> Path:
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    if config is not None:
        (place / "open_clip_config.json").write_text(config)
    return place


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"model_cfg": {"text_cfg": 1}}'])
def test_a_bad_configuration_is_named(folder: Path, tmp_path: Path, config: str) -> None:
    with pytest.raises(ScorerSetupError, match=r"open_clip_config\.json is no open_clip configuration"):
        open_model(copied(folder, tmp_path / "m", config), lambda model: lambda: model)


def test_a_text_tower_from_the_network_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "some/where"
    with pytest.raises(ScorerSetupError, match="some/where, which open_clip would fetch"):
        open_model(copied(folder, tmp_path / "m", json.dumps(config)), lambda model: lambda: model)


@pytest.mark.parametrize("damage", ["cut", "missing key", "other shape"])
def test_damaged_weights_are_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    place = copied(folder, tmp_path / "m")
    file = place / "open_clip_model.safetensors"
    weights = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "missing key":
        save_file({k: v for k, v in weights.items() if k != "text_projection"}, file)
    else:
        save_file(weights | {"text_projection": torch.zeros(3, 3)}, file)
    with pytest.raises(ScorerSetupError, match=r"cannot be loaded: .* Download it again"):
        open_model(place, lambda model: lambda: model)


# --- the demo's scorer -------------------------------------------------------------------------------------


def test_the_shipped_part_is_small_and_assembled_once(folder: Path) -> None:
    assert (PARTS / "scorer.safetensors").stat().st_size < 4 * 2**20
    assert json.loads(header(PARTS / "scorer.safetensors")["open_clip_config"])["model_cfg"]
    file = folder / "open_clip_model.safetensors"
    before = file.stat().st_mtime_ns
    assert assemble_scorer(folder.parents[1]) == folder and file.stat().st_mtime_ns == before
    file.write_bytes(b"half a file")
    assemble_scorer(folder.parents[1])
    assert load_file(file)["token_embedding.weight"].shape[0] == 49408


def test_the_demo_scorer_knows_colours(clip: OpenClip) -> None:
    """Of eight pictures the one of the named colour has the highest score. Of shapes it knows little."""
    for shape in ("star", "circle"):
        images = torch.cat([scene(shape, colour) for colour in COLOURS])
        for best, colour in enumerate(COLOURS):
            assert order(ClipRelevance(clip).score(images, f"a {colour} {shape}"))[0] == best
    target = TargetSimilarity(clip, clip.encode_images(scene("circle", "red")))
    assert order(target.score(images, ""))[0] == list(COLOURS).index("red")


# --- over the API ------------------------------------------------------------------------------------------


def pictures(server: ComfyClient, *things: tuple[str, str]) -> tuple[dict[str, Any], list[Any]]:
    """Nodes that load ShapeWorld pictures, and the link to the batch."""
    graph: dict[str, Any] = {}
    batch: list[Any] = []
    for number, thing in enumerate(things):
        pixels = (scene(*thing)[0].numpy() * 255).round().astype(np.uint8)
        name = server.upload(Image.fromarray(pixels), f"{uuid.uuid4().hex}.png")
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        link = [f"load{number}", 0]
        if number:
            graph[f"join{number}"] = {"class_type": "ImageBatch", "inputs": {"image1": batch, "image2": link}}
            link = [f"join{number}", 0]
        batch = link
    return graph, batch


def scored(server: ComfyClient, things: Sequence[tuple[str, str]], loader: dict[str, Any], **inputs: Any) -> Any:
    """Outputs of Score Images: scores, report and pictures."""
    graph, batch = pictures(server, *things)
    graph |= {
        "scorer": {"class_type": "AtelierLoadScorer", "inputs": {"clip_model": DEMO_SCORER, **loader}},
        "score": {"class_type": "AtelierScoreImages", "inputs": {"images": batch, "scorer": ["scorer", 0], **inputs}},
        "scores": {"class_type": "PreviewAny", "inputs": {"source": ["score", 0]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["score", 1]}},
        "sorted": {"class_type": "PreviewImage", "inputs": {"images": ["score", 2]}},
    }
    entry = server.queue(graph)
    outputs = entry["outputs"]
    numbers = [float(text) for text in outputs["scores"]["text"]]
    return numbers, outputs["report"]["text"][0], server.images(entry, "sorted")


def test_pictures_are_scored_and_sorted(server: ComfyClient, clip: OpenClip) -> None:
    things = [("square", "green"), ("star", "blue"), ("star", "red")]
    scores, text, ordered = scored(server, things, {"scorer": RELEVANCE}, prompt="a (red:1.3) star")
    wanted = ClipRelevance(clip).score(torch.cat([scene(*thing) for thing in things]), "a red star")
    assert scores == pytest.approx(wanted, abs=2e-3) and scores.index(max(scores)) == 2
    assert text.splitlines()[0] == label(ClipRelevance(clip)) and "picture 3" in text.splitlines()[1]
    best = np.asarray(ordered[0].convert("RGB"), np.float32)
    assert np.abs(best - scene("star", "red")[0].numpy() * 255).max() <= 1


def test_a_target_is_compared_with(server: ComfyClient) -> None:
    things = [("square", "green"), ("star", "red")]
    name = server.upload(Image.fromarray((scene("square", "green")[0].numpy() * 255).astype(np.uint8)), "target.png")
    graph, batch = pictures(server, *things)
    graph |= {
        "target": {"class_type": "LoadImage", "inputs": {"image": name}},
        "scorer": {
            "class_type": "AtelierLoadScorer",
            "inputs": {"clip_model": DEMO_SCORER, "scorer": TARGET, "target": ["target", 0]},
        },
        "score": {"class_type": "AtelierScoreImages", "inputs": {"images": batch, "scorer": ["scorer", 0]}},
        "scores": {"class_type": "PreviewAny", "inputs": {"source": ["score", 0]}},
    }
    scores = [float(text) for text in server.queue(graph)["outputs"]["scores"]["text"]]
    assert scores[0] > 0.99 > scores[1]


@pytest.mark.parametrize(
    ("loader", "inputs", "message"),
    [
        ({"scorer": TARGET}, {}, "Link it into target"),
        ({"scorer": "fame"}, {}, "fame"),
        ({"scorer": RELEVANCE, "clip_model": "no-such"}, {}, "no-such"),
        ({"scorer": RELEVANCE}, {"prompt": ""}, "needs a prompt"),
        ({"scorer": RELEVANCE}, {"prompt": "x", "session": "s", "trace": "no trace"}, "not one of the Model Tree"),
        ({"scorer": RELEVANCE}, {"prompt": "x", "session": "s" * 501}, "1 to 500 characters"),
    ],
)
def test_bad_input_is_refused(
    server: ComfyClient, loader: dict[str, Any], inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        scored(server, [("star", "red")], loader, **inputs)


def test_no_model_is_a_sentence_that_helps() -> None:
    with pytest.raises(ValueError, match=r"No CLIP model for scoring is installed.*clip_scorers.*press R"):
        AtelierLoadScorer.execute(RELEVANCE, NO_MODEL)
    with pytest.raises(ValueError, match="There is no CLIP model"):
        AtelierLoadScorer.execute(RELEVANCE, f"../{SCORER}")
    with pytest.raises(ValueError, match="reads no text"):
        AtelierLoadScorer.execute(RELEVANCE, NO_MODEL, clip_vision=object())


def vision_model() -> Any:
    """A random CLIP_VISION of the host's own class."""
    from comfy.clip_vision import ClipVisionModel

    torch.manual_seed(0)
    config = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 16,
        "hidden_act": "quick_gelu",
    }  # fmt: skip
    model = ClipVisionModel(config)
    model.load_sd({k: torch.randn(v.shape, dtype=v.dtype) * 0.1 for k, v in model.get_sd().items()})
    return model


def test_a_clip_vision_of_the_host_compares_with_a_target() -> None:
    vision, images = vision_model(), torch.cat([scene("star", "red"), scene("square", "green")])
    (scorer,) = AtelierLoadScorer.execute(TARGET, NO_MODEL, scene("square", "green"), vision).args
    scores = score_batch(images, scorer, "")
    assert scores[1] == pytest.approx(1.0, abs=1e-4) and scores[0] < scores[1]
    assert scorer.name == "target_similarity/clip_vision"
    again = AtelierLoadScorer.execute(TARGET, NO_MODEL, scene("square", "green"), vision).args[0]
    other = AtelierLoadScorer.execute(TARGET, NO_MODEL, scene("star", "red"), vision).args[0]
    assert again.version == scorer.version != other.version
