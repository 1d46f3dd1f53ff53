"""A scorer that rates: which pictures it chooses, that a person goes first, and the node over the API."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoredImage
from atelier.nodes import auto_rate
from atelier.nodes.auto_rate import choose, give
from comfy_api_client import ComfyClient, GraphError
from graphs import DEMO_SCORER, for_demo, load, node_of
from PIL import Image
from rating_stores import both, image
from shapeworld.render import render
from shapeworld.scene import Scene, Thing

NAN = float("nan")
RELEVANCE = "relevance to the prompt"


# --- which pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best", "worst", "values"),
    [
        ([0.1, 0.4, 0.2, 0.3], 1, 1, [-1, 1, 0, 0]),
        ([0.1, 0.4, 0.2, 0.3], 2, 2, [-1, 1, -1, 1]),
        ([0.1, 0.4], 0, 1, [-1, 0]),
        ([0.1, 0.4], 0, 0, [0, 0]),
        # Of equal scores the earlier is the higher.
        ([0.2, 0.2, 0.1], 1, 1, [1, 0, -1]),
        ([0.1, 0.1, 0.2], 1, 1, [0, -1, 1]),
        # What would be on both sides is on neither.
        ([0.5, 0.5, 0.5], 1, 1, [0, 0, 0]),
        ([0.9, 0.5, 0.5, 0.1], 2, 2, [1, 0, 0, -1]),
        # What is no number is not rated.
        ([NAN, 0.2, float("inf"), 0.1], 1, 1, [0, 1, 0, -1]),
        ([NAN, 0.2, NAN], 1, 1, [0, 1, 0]),
        ([], 1, 1, []),
    ],
)
def test_best_and_worst(scores: list[float], best: int, worst: int, values: list[int]) -> None:
    assert choose(scores, best, worst) == values


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without files."""

    def rate(store: Store, picture: StoredImage, value: int, source: str) -> None:
        store.rate(picture.key, value, session=picture.session, source=source)

    monkeypatch.setattr(auto_rate, "rate", rate)


def batch(store: Store, count: int) -> list[StoredImage]:
    pictures = [image(number) for number in range(count)]
    store.register(pictures)
    return pictures


def held(store: Store, pictures: Sequence[StoredImage], source: str = "clip") -> list[int]:
    values = {rating.image: rating.value for rating in store.ratings("s") if rating.source == source}
    return [values.get(picture.key, 0) for picture in pictures]


@both
def test_a_person_is_never_overruled(store: Store, unkept: None) -> None:
    pictures = batch(store, 4)
    store.rate(pictures[1].key, -1, session="s")
    store.rate(pictures[3].key, 1, session="s", source="api")
    assert give(store, pictures, "clip", [0.1, 0.9, 0.5, 0.0], 1, 1) == [-1, None, 1, None]
    assert held(store, pictures, "user") == [0, -1, 0, 0] and held(store, pictures, "api") == [0, 0, 0, 1]
    store.rate(pictures[2].key, -1, session="s")
    found = store.feedback("s")
    assert [p.key for p in found.liked] == [pictures[3].key]
    assert {p.key for p in found.disliked} == {p.key for p in pictures[:3]}


@both
def test_when_a_person_takes_back_the_scorer_may_rate(store: Store, unkept: None) -> None:
    pictures = batch(store, 2)
    store.rate(pictures[0].key, -1, session="s")
    store.rate(pictures[0].key, 0, session="s")
    assert give(store, pictures, "clip", [0.9, 0.1], 1, 1) == [1, -1]


@both
def test_rating_again_adds_nothing_and_a_new_choice_replaces_the_old(store: Store, unkept: None) -> None:
    pictures = batch(store, 3)
    give(store, pictures, "clip", [0.9, 0.5, 0.1], 1, 1)
    revision = store.revision("s")
    give(store, pictures, "clip", [0.9, 0.5, 0.1], 1, 1)
    assert store.revision("s") == revision
    give(store, pictures, "clip", [0.1, 0.5, 0.9], 1, 0)
    assert held(store, pictures) == [0, 0, 1]
    give(store, pictures, "other", [0.9, 0.5, 0.1], 1, 0)
    assert held(store, pictures) == [0, 0, 1] and held(store, pictures, "other") == [1, 0, 0]


@both
def test_the_same_picture_twice_is_rated_once(store: Store, unkept: None) -> None:
    pictures = batch(store, 2)
    values = give(store, [pictures[0], pictures[0], pictures[1]], "clip", [0.9, 0.9, 0.1], 1, 1)
    assert values == [1, 1, -1] and store.revision("s") == 2


# --- over the API ------------------------------------------------------------------------------------------

THINGS = (("square", "green"), ("star", "red"), ("circle", "blue"))


def upload(server: ComfyClient, shape: str, colour: str) -> str:
    picture = render(Scene((Thing(shape, colour, radius=0.3),), "white"))
    return server.upload(picture, f"{uuid.uuid4().hex}.png")


def run(server: ComfyClient, session: str, things: Sequence[tuple[str, str]] = THINGS, **inputs: Any) -> dict[str, Any]:
    """The outputs of Auto Rate on pictures of single things."""
    graph: dict[str, Any] = {}
    images: list[Any] = []
    for number, thing in enumerate(things):
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": upload(server, *thing)}}
        link = [f"load{number}", 0]
        if number:
            graph[f"join{number}"] = {"class_type": "ImageBatch", "inputs": {"image1": images, "image2": link}}
            link = [f"join{number}", 0]
        images = link
    loader = {"scorer": RELEVANCE, "clip_model": DEMO_SCORER}
    rate = {
        "images": images,
        "scorer": ["scorer", 0],
        "session": session,
        "best": 1,
        "worst": 1,
        "prompt": "a red star",
    }
    graph["scorer"] = {"class_type": "AtelierLoadScorer", "inputs": loader}
    graph["rate"] = {"class_type": "AtelierAutoRate", "inputs": rate | inputs}
    return server.queue(graph)["outputs"]["rate"]


def call(server: ComfyClient, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"} if data else {})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def feedback(server: ComfyClient, session: str) -> str:
    values = {"session": session, "last": 4, "minimum_strength": 0.0, "prompts": "all"}
    graph = {
        "feedback": {"class_type": "AtelierFeedback", "inputs": values},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["feedback", 1]}},
    }
    return server.queue(graph)["outputs"]["report"]["text"][0]


def test_the_best_is_liked_and_the_worst_disliked(server: ComfyClient) -> None:
    session = f"auto {uuid.uuid4().hex}"
    output = run(server, session)
    (text,) = output["text"]
    lines = text.splitlines()
    assert lines[0].startswith(f"clip_relevance/{DEMO_SCORER} ")
    assert lines[1].endswith("picture 2  liked") and lines[3].endswith("disliked") and len(lines) == 4
    assert len(output["images"]) == 3
    assert feedback(server, session).startswith("1 liked, 1 disliked")
    kept = list((server.base / "output" / "atelier_rated").glob("*.png"))
    shown = [np.asarray(Image.open(file).convert("RGB")) for file in kept]
    star = np.asarray(render(Scene((Thing("star", "red", radius=0.3),), "white")))
    assert any(np.array_equal(picture, star) for picture in shown)


def test_scores_and_ratings_are_kept_under_the_scorers_name(server: ComfyClient) -> None:
    session = f"kept {uuid.uuid4().hex}"
    run(server, session)
    store = Store(f"sqlite:///{database(server)}")
    try:
        (one,) = store.rounds(session, 6)
    finally:
        store.close()
    assert [picture.rating and picture.rating.value for picture in one.pictures].count(1) == 1
    assert {picture.rating.source for picture in one.pictures if picture.rating} == {f"clip_relevance/{DEMO_SCORER}"}
    names = {name for picture in one.pictures for name in picture.scores}
    assert len(names) == 1 and names.pop().startswith(f"clip_relevance/{DEMO_SCORER} ")
    assert all(len(picture.scores) == 1 and picture.image.prompt == "a red star" for picture in one.pictures)


def database(server: ComfyClient) -> Path:
    return next((server.base / "user").rglob("ratings.sqlite3"))


def test_a_persons_thumb_stays(server: ComfyClient) -> None:
    session = f"person {uuid.uuid4().hex}"
    run(server, session, best=0, worst=0)
    found = call(server, f"/atelier/pictures?session={session.replace(' ', '%20')}")["pictures"]
    for picture in found:
        call(server, "/atelier/ratings", {"image": picture["image"], "value": -1})
    (text,) = run(server, session)["text"]
    assert text.count("rated by a person") == 3
    assert feedback(server, session).startswith("0 liked, 3 disliked")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"best": 2, "worst": 2}, "2 best and 2 worst are more than the 3 pictures"),
        ({"prompt": ""}, "needs a prompt"),
        ({"session": " "}, "session must have 1 to 500 characters"),
        ({"best": -1}, "AtelierAutoRate"),
        ({"trace": ["scorer", 0]}, "AtelierAutoRate"),
    ],
)
def test_bad_input_is_refused(server: ComfyClient, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        run(server, **({"session": f"bad {uuid.uuid4().hex}"} | inputs))


def test_the_loop_runs_without_a_person(server: ComfyClient) -> None:
    """The template, three times: each round adds ratings, the next one uses them, and the sheet shows all."""
    session, heights = f"loop {uuid.uuid4().hex}", []
    for number in range(3):
        graph = for_demo(load("auto_rate"), session=session, seed=number, steps=2, batch_size=2, best=1, worst=1)
        entry = server.queue(graph)
        used = entry["outputs"][node_of(graph, "What was used")]["text"][0]
        assert used.startswith(f"{number} liked, {number} disliked")
        heights.append(server.images(entry, node_of(graph, "Session"))[0].height)
    assert heights == sorted(set(heights))
