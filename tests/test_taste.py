"""Taste: the fit itself, simulated people on ShapeWorld, what is read from the store, and the node over the API."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from assemble import assemble_scorer
from atelier.feedback.open_clip_model import OpenClip, open_model
from atelier.feedback.ratings import Store
from atelier.feedback.scorers import label
from atelier.feedback.taste import (
    PENALTY,
    Taste,
    TasteError,
    area_under_curve,
    features,
    fit_taste,
    held_out_auc,
)
from atelier.nodes import taste as taste_node
from atelier.nodes.picture_files import PictureGone
from comfy_api_client import ComfyClient, GraphError
from graphs import DEMO_SCORER
from PIL import Image
from rating_stores import both, rated
from shapeworld.render import render
from shapeworld.scene import COLOURS, Scene, Thing, random_scene
from shapeworld.trial import HELD_OUT
from torch import Tensor

NAN = float("nan")


def example(count: int = 40, width: int = 6, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Features whose first number decides, with some thumbs that slipped."""
    rng = np.random.default_rng(seed)
    seen = torch.tensor(rng.normal(size=(count, width)), dtype=torch.float32)
    thumbs = [1 if value > 0 else -1 for value in seen[:, 0].tolist()]
    return seen, [-thumb if slips else thumb for thumb, slips in zip(thumbs, rng.random(count) < 0.1, strict=True)]


# --- the fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(40, 6), (12, 30)])
def test_the_head_is_the_minimum_of_the_penalised_loss(count: int, width: int) -> None:
    """The slope of the loss, by autograd in the full space, is zero where the fit ends; strengths count."""
    seen, thumbs = example(count, width)
    strengths = [0.2 + 0.8 * (i % 3) / 2 for i in range(count)]
    head = fit_taste(seen, thumbs, strengths)
    centred = seen.double() - seen.double().mean(0)
    size = centred.square().sum(1).mean().sqrt()
    weight = (head.weight * size).requires_grad_()
    bias = torch.tensor(head.bias, dtype=torch.float64, requires_grad=True)
    logits = centred / size @ weight + bias
    wanted = torch.tensor([float(thumb > 0) for thumb in thumbs], dtype=torch.float64)
    counts = torch.tensor(strengths, dtype=torch.float64)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, counts, reduction="sum")
    (loss + PENALTY / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-6 and bias.grad.abs() < 1e-4
    assert torch.allclose(head(seen), torch.sigmoid(logits).float(), atol=1e-6)


def test_the_same_ratings_give_the_same_head_and_their_order_does_not_count() -> None:
    seen, thumbs = example()
    first, again, backwards = (
        fit_taste(seen, thumbs), fit_taste(seen.clone(), list(thumbs)), fit_taste(seen.flip(0), thumbs[::-1])
    )  # fmt: skip
    assert torch.equal(first.weight, again.weight) and first.bias == again.bias
    assert torch.allclose(first(seen), backwards(seen), atol=1e-5)


def test_ratings_that_can_be_told_apart_in_full_have_a_finite_fit() -> None:
    seen = torch.tensor([[1.0, 0], [0.9, 0], [-1, 0], [-0.9, 0]])
    head = fit_taste(seen, [1, 1, -1, -1])
    assert head.weight.isfinite().all() and (head(seen) > 0.5).tolist() == [True, True, False, False]
    same = fit_taste(torch.ones(4, 2), [1, 1, 1, -1])
    assert same(torch.ones(1, 2)).item() == pytest.approx(0.75, abs=1e-3), "what cannot be told apart has the average"


@pytest.mark.parametrize(
    ("seen", "thumbs", "message"),
    [
        (torch.zeros(0, 4), [], "There are 0 liked and 0 disliked. Rate more pictures"),
        (torch.rand(3, 4), [1, -1, 1], "at least 4 rated pictures .* There are 2 liked and 1 disliked"),
        (torch.rand(5, 4), [1] * 5, "thumbs down among them. There are 5 liked and 0 disliked"),
        (torch.rand(5, 4), [-1] * 5, "There are 0 liked and 5 disliked"),
        (torch.full((4, 4), NAN), [1, 1, -1, -1], "not numbers"),
    ],
)
def test_too_little_to_learn_from_is_refused(seen: Tensor, thumbs: list[int], message: str) -> None:
    with pytest.raises(TasteError, match=message):
        fit_taste(seen, thumbs)


def test_the_area_under_the_curve_by_hand() -> None:
    assert area_under_curve(torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1])) == (1 + 1 + 0.5 + 1) / 4


def test_held_out_ratings_are_not_seen() -> None:
    """Thumbs by chance in a wide space are fitted in full, and yet not foreseen."""
    rng = np.random.default_rng(3)
    seen = torch.tensor(rng.normal(size=(80, 200)), dtype=torch.float32)
    thumbs = [1 if up else -1 for up in rng.random(80) < 0.5]
    head = fit_taste(seen, thumbs)
    up, down = (head(seen[[i for i in range(80) if thumbs[i] == side]]) for side in (1, -1))
    assert area_under_curve(up, down) > 0.99
    assert held_out_auc(seen, thumbs) == pytest.approx(0.5, abs=0.2)
    assert held_out_auc(*example(60)) > 0.75
    assert held_out_auc(seen[:8], [1, 1, 1, 1, -1, -1, -1, -1]) is None


# --- simulated people --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return open_model(assemble_scorer(tmp_path_factory.mktemp("models")), lambda model: lambda: model)


@pytest.fixture(scope="module")
def world(clip: OpenClip) -> tuple[Tensor, list[str]]:
    """Features of 360 pictures of one thing each, and the colours of the things."""
    scenes = [random_scene(np.random.default_rng([HELD_OUT, 31, i]), 1) for i in range(360)]
    images = torch.from_numpy(np.stack([np.asarray(render(scene), np.float32) / 255 for scene in scenes]))
    prompts = torch.stack([clip.encode_text(f"a {scene.things[0].shape}") for scene in scenes])
    return features(clip.encode_images(images), prompts), [scene.things[0].colour for scene in scenes]


def person(number: int) -> tuple[set[str], set[str]]:
    """The four of eight colours that somebody likes, and another's four: two of them, and two others."""
    colours = [str(colour) for colour in np.random.default_rng([HELD_OUT, 32, number]).permutation(list(COLOURS))]
    return set(colours[:4]), set(colours[2:6])


def foreseen(seen: Tensor, colours: list[str], number: int) -> tuple[float, float]:
    """How well 60 thumbs, one of ten a slip, foretell what this person likes of the rest, and what another does."""
    own, others = person(number)
    rng = np.random.default_rng([HELD_OUT, 33, number])
    order = rng.permutation(len(colours))
    slips = rng.random(60) < 0.1
    thumbs = [1 if (colours[i] in own) != slip else -1 for i, slip in zip(order[:60], slips, strict=True)]
    chances = fit_taste(seen[order[:60]], thumbs)(seen[order[60:]])

    def auc(likes: set[str]) -> float:
        liked = torch.tensor([colours[i] in likes for i in order[60:]])
        return area_under_curve(chances[liked], chances[~liked])

    return auc(own), auc(others)


def test_a_taste_foretells_its_person_and_nobody_else(world: tuple[Tensor, list[str]]) -> None:
    """Twelve people with a hidden rule of colours. The interval is the 95 % one of the mean over people."""
    results = np.array([foreseen(*world, number) for number in range(12)])
    half = 1.96 * results.std(0, ddof=1) / math.sqrt(len(results))
    low, high = results.mean(0) - half, results.mean(0) + half
    assert low[0] > 0.9, f"own rule: {low[0]:.3f} to {high[0]:.3f}"
    assert low[1] < 0.5 < high[1] and high[1] < 0.65, f"another's: {low[1]:.3f} to {high[1]:.3f}"


def test_a_taste_scores_with_the_prompt(clip: OpenClip, world: tuple[Tensor, list[str]]) -> None:
    seen, colours = world
    thumbs = [1 if colour in ("red", "blue") else -1 for colour in colours]
    taste, other = (Taste(clip, fit_taste(seen[part], thumbs[part])) for part in (slice(100), slice(100, 200)))
    images = torch.cat([picture("star", "red"), picture("star", "green")])
    liked, disliked = taste.score(images, "a star")
    assert 1 > liked > 0.5 > 0.2 > disliked > 0
    wanted = taste.head(features(clip.encode_images(images), clip.encode_text("a circle").expand(2, -1)))
    assert taste.score(images, "a circle") == pytest.approx(wanted.tolist())
    assert label(taste) != label(other) and taste.name == f"taste/all sessions/{clip.name}"
    assert len(label(Taste(clip, taste.head, "s" * 500))) < 300 and taste.needs_prompt


# --- the store ---------------------------------------------------------------------------------------------


@both
def test_ratings_of_all_sessions_are_listed(store: Store) -> None:
    here, there = rated(store, 1), rated(store, 2, -1, "t")
    rated(store, 3, 0)
    store.rate(there.key, 1, session="t", source="aesthetic")
    listed = {image.key: rating.value for image, rating in store.rated_images(only_rated=True) if rating}
    assert listed == {here.key: 1, there.key: -1}
    assert len(store.rated_images(only_rated=True, limit=1)) == 1
    assert [image.key for image, _ in store.rated_images("t", only_rated=True)] == [there.key]


@both
def test_pictures_that_are_gone_are_passed_over(store: Store, clip: OpenClip, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gone = rated(store, 1, prompt="a (red:1.2) star"), rated(store, 2, -1)

    def load(image: Any) -> Tensor:
        if image.key == gone.key:
            raise PictureGone("gone")
        return torch.zeros(16, 24, 3)

    monkeypatch.setattr(taste_node, "load_picture", load)
    pairs = [(image, rating) for image, rating in store.rated_images(only_rated=True) if rating]
    seen, ratings = taste_node.read(clip, pairs)
    assert [rating.image for rating in ratings] == [kept.key]
    assert torch.allclose(seen[0, seen.shape[1] // 2 :], clip.encode_text("a red star"), atol=1e-5)


# --- over the API ------------------------------------------------------------------------------------------

SHAPES = ("star", "circle", "square", "triangle", "heart")


def picture(shape: str, colour: str) -> Tensor:
    """A ShapeWorld picture as an IMAGE [1, 128, 128, 3]."""
    pixels = np.asarray(render(Scene((Thing(shape, colour, radius=0.3),), "white")), np.float32)
    return torch.from_numpy(pixels / 255)[None]


def batch(server: ComfyClient, things: Sequence[tuple[str, str]]) -> tuple[dict[str, Any], list[Any]]:
    """Nodes that load pictures of single things, and the link to the batch."""
    graph: dict[str, Any] = {}
    link: list[Any] = []
    for number, thing in enumerate(things):
        pixels = (picture(*thing)[0].numpy() * 255).round().astype(np.uint8)
        name = server.upload(Image.fromarray(pixels), f"{uuid.uuid4().hex}.png")
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        last, link = link, [f"load{number}", 0]
        if number:
            graph[f"join{number}"] = {"class_type": "ImageBatch", "inputs": {"image1": last, "image2": link}}
            link = [f"join{number}", 0]
    return graph, link


def rate(server: ComfyClient, session: str, things: Sequence[tuple[str, str]], ratings: str) -> None:
    graph, images = batch(server, things)
    inputs = {"images": images, "session": session, "strength": 1.0, "ratings": ratings, "prompt": "a shape"}
    server.queue(graph | {"rate": {"class_type": "AtelierRateImages", "inputs": inputs}})


@pytest.fixture
def ask(server: ComfyClient) -> Callable[[str], tuple[list[float], str]]:
    """What the taste of a session says of a red and a green cross, in the same graph each time, and its report."""
    graph, images = batch(server, [("cross", "red"), ("cross", "green")])

    def ask(session: str) -> tuple[list[float], str]:
        inputs = {"images": images, "scorer": ["taste", 0], "prompt": "a shape"}
        nodes = graph | {
            "taste": {"class_type": "AtelierLoadTaste", "inputs": {"clip_model": DEMO_SCORER, "session": session}},
            "score": {"class_type": "AtelierScoreImages", "inputs": inputs},
            "scores": {"class_type": "PreviewAny", "inputs": {"source": ["score", 0]}},
            "report": {"class_type": "PreviewAny", "inputs": {"source": ["taste", 1]}},
        }
        outputs = server.queue(nodes)["outputs"]
        return [float(text) for text in outputs["scores"]["text"]], outputs["report"]["text"][0]

    return ask


def test_thumbs_become_a_scorer(server: ComfyClient, ask: Callable[[str], tuple[list[float], str]]) -> None:
    session = f"taste {uuid.uuid4().hex}"
    things = [(shape, colour) for shape in SHAPES for colour in ("red", "green")]
    reds, greens = (
        [f"{n} {'up' if colour == liked else 'down'}" for n, (_, colour) in enumerate(things, 1)]
        for liked in ("red", "green")
    )
    with pytest.raises(GraphError, match="There are 0 liked and 0 disliked"):
        ask(session)
    rate(server, session, things, ", ".join(reds[:3]))
    with pytest.raises(GraphError, match=r"at least 4 rated pictures .*There are 2 liked and 1 disliked"):
        ask(session)
    rate(server, session, things, ", ".join(reds))
    (red, green), report = ask(session)
    assert red > 0.6 > 0.4 > green
    assert report.startswith("Learned from 5 liked and 5 disliked pictures. Of a liked and a disliked picture")
    # A new mind: the node runs again by itself.
    rate(server, session, things, ", ".join(greens))
    (red, green), _ = ask(session)
    assert red < 0.4 < 0.6 < green
