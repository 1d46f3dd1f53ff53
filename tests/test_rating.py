"""Rating pictures: the node, the routes, where rated pictures are kept, and the feedback that comes of it."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from atelier.feedback.made_by import made_by
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoredImage
from atelier.nodes import picture_files
from atelier.nodes.feedback import AtelierFeedback
from atelier.nodes.rating import read_ratings
from atelier.nodes.rating_routes import add_routes
from comfy_api_client import ComfyClient, GraphError
from graphs import load
from PIL import Image

GONE = "0" * 64


def call(server: ComfyClient, path: str, body: object = None, kind: str = "application/json") -> tuple[int, Any]:
    """Status and answer of a GET, or of a POST of `body`."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": kind} if data is not None else {})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def pictures(server: ComfyClient, session: str, query: str = "") -> list[dict[str, Any]]:
    status, answer = call(server, f"/atelier/pictures?session={session}{query}")
    assert status == 200, answer
    return answer["pictures"]


def show(server: ComfyClient, session: str, count: int = 2, seed: int = 1, **inputs: Any) -> list[str]:
    """Run Rate Images on a batch of new pictures and return their keys."""
    rng = np.random.default_rng([seed, *session.encode()])
    graph: dict[str, Any] = {}
    images: list[Any] = []
    for number in range(count):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        name = server.upload(Image.fromarray(pixels), f"{uuid.uuid4().hex}.png")
        graph[f"load{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        batch = [f"load{number}", 0]
        if number:
            joined = {"image1": images, "image2": batch}
            graph[f"batch{number}"] = {"class_type": "ImageBatch", "inputs": joined}
            batch = [f"batch{number}", 0]
        images = batch
    for name, value in inputs.items():
        if name == "trace":
            graph["trace"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": value}}
            inputs = inputs | {"trace": ["trace", 0]}
    rate = {"images": images, "session": session, "strength": 1.0, **inputs}
    graph["rate"] = {"class_type": "AtelierRateImages", "inputs": rate}
    output = server.queue(graph)["outputs"]["rate"]
    assert len(output["images"]) == count
    return output["atelier_pictures"]


def feedback(server: ComfyClient, session: str, **inputs: Any) -> tuple[str | None, dict[str, Any]]:
    """The report of Feedback, None if it did not run again, and the history entry."""
    values = {"session": session, "last": 4, "minimum_strength": 0.0, "prompts": "all", **inputs}
    graph = {
        "feedback": {"class_type": "AtelierFeedback", "inputs": values},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["feedback", 1]}},
    }
    entry = server.queue(graph)
    cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    return None if "feedback" in cached else entry["outputs"]["report"]["text"][0], entry


# --- rate, undo, list --------------------------------------------------------------------------------------


def test_a_picture_is_rated_listed_and_taken_back(server: ComfyClient) -> None:
    keys = show(server, "list", 3, prompt="a red star")
    found = pictures(server, "list")
    assert [picture["image"] for picture in found] == keys
    assert {(picture["value"], picture["strength"], picture["prompt"]) for picture in found} == {
        (0, None, "a red star")
    }
    status, answer = call(server, "/atelier/ratings", {"image": keys[1], "value": 1, "strength": 0.5})
    assert status == 200 and (answer["image"], answer["value"], answer["strength"]) == (keys[1], 1, 0.5)
    call(server, "/atelier/ratings", {"image": keys[2], "value": -1})
    rated = {
        picture["image"]: (picture["value"], picture["strength"]) for picture in pictures(server, "list", "&rated=1")
    }
    assert rated == {keys[1]: (1, 0.5), keys[2]: (-1, 1.0)}
    assert call(server, "/atelier/ratings", {"image": keys[1], "value": 0})[1]["value"] == 0
    assert [picture["value"] for picture in pictures(server, "list")] == [0, 0, -1]
    status, answer = call(server, f"/atelier/pictures?image={keys[2]}&image={GONE}&image={keys[0]}")
    assert [picture["image"] for picture in answer["pictures"]] == [keys[2], keys[0]]


def test_the_newest_batch_comes_first_and_the_limit_holds(server: ComfyClient) -> None:
    first, second = show(server, "order", 2, seed=1), show(server, "order", 2, seed=2)
    assert [picture["image"] for picture in pictures(server, "order")] == second + first
    assert len({picture["created"] for picture in pictures(server, "order")}) == 2
    assert len(pictures(server, "order", "&limit=3")) == 3


def test_a_file_is_rated_by_its_content(server: ComfyClient) -> None:
    (key,) = show(server, "file", 1)
    (picture,) = pictures(server, "file")
    assert picture["file"]["type"] == "temp"
    status, answer = call(server, "/atelier/ratings", {"file": picture["file"], "value": -1})
    assert (status, answer["image"], answer["value"]) == (200, key, -1)
    assert answer["file"]["subfolder"] == "atelier_rated" and answer["file"]["type"] == "output"


def test_a_rated_picture_outlives_the_temp_folder(server: ComfyClient) -> None:
    keys = show(server, "kept", 2)
    call(server, "/atelier/ratings", {"image": keys[0], "value": 1})
    before = server.image(pictures(server, "kept")[0]["file"])
    for file in (server.base / "temp").rglob("*.png"):
        file.unlink()
    kept, lost = pictures(server, "kept")
    assert server.image(kept["file"]).tobytes() == before.tobytes() and lost["file"] is None
    assert feedback(server, "kept")[0].startswith("1 liked, 0 disliked")
    status, answer = call(server, "/atelier/ratings", {"image": keys[1], "value": 1})
    assert status == 410 and "Queue the workflow again" in answer["error"]
    assert call(server, "/atelier/ratings", {"image": keys[1], "value": 0})[0] == 200


def test_another_picture_under_the_same_temp_name_is_not_kept(server: ComfyClient) -> None:
    (key,) = show(server, "reused", 1)
    file = pictures(server, "reused")[0]["file"]
    Image.new("RGB", (32, 24), "red").save(server.base / "temp" / file["subfolder"] / file["filename"])
    assert call(server, "/atelier/ratings", {"image": key, "value": 1})[0] == 410
    assert pictures(server, "reused", "&rated=1") == []


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 10_000, 400, "not JSON"),
        (b" " * 20_000, 400, "at most"),
        ([], 400, "JSON object"),
        ({"image": GONE}, 400, "value must be"),
        ({"image": GONE, "value": 2}, 400, "value must be"),
        ({"image": GONE, "value": True}, 400, "value must be"),
        ({"image": GONE, "value": [1]}, 400, "value must be"),
        ({"image": GONE, "value": 1, "strength": 0}, 400, "strength"),
        ({"image": GONE, "value": 1, "strength": 1.5}, 400, "strength"),
        ({"image": GONE, "value": 1, "strength": "1"}, 400, "strength"),
        (b'{"image": "%s", "value": 1, "strength": NaN}' % GONE.encode(), 400, "strength"),
        ({"image": GONE, "value": 1, "path": "/etc/passwd"}, 400, "no field 'path'"),
        ({"image": GONE, "file": {}, "value": 1}, 400, "by image, its key, or by file"),
        ({"value": 1}, 400, "by image, its key, or by file"),
        ({"image": "../../etc/passwd", "value": 1}, 400, "64 hex digits"),
        ({"image": 7, "value": 1}, 400, "64 hex digits"),
        ({"image": GONE, "value": 1}, 404, "no picture"),
        ({"file": "a.png", "value": 1}, 400, "A file is"),
        ({"file": {"filename": "a.png", "path": "/"}, "value": 1}, 400, "A file is"),
        ({"file": {"filename": 1}, "value": 1}, 400, "three texts"),
        ({"file": {"filename": "none.png"}, "value": 1}, 404, "no file"),
        ({"file": {"filename": "../server.log"}, "value": 1}, 400, "no file name"),
        ({"file": {"filename": "..\\server.log"}, "value": 1}, 400, "no file name"),
        ({"file": {"filename": ""}, "value": 1}, 400, "no file name"),
        ({"file": {"filename": "a\0.png"}, "value": 1}, 400, "no file name"),
        ({"file": {"filename": "server.log", "subfolder": ".."}, "value": 1}, 400, "outside the output folder"),
        ({"file": {"filename": "passwd", "subfolder": "/etc"}, "value": 1}, 400, "outside the output folder"),
        ({"file": {"filename": "..", "subfolder": ""}, "value": 1}, 400, "outside the output folder"),
        ({"file": {"filename": "a.png", "type": "models"}, "value": 1}, 400, "output, temp, input"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, (dict, list, bytes)) else "",
)
def test_a_bad_rating_is_one_clear_sentence(body: object, status: int, says: str, server: ComfyClient) -> None:
    got, answer = call(server, "/atelier/ratings", body)
    assert got == status and answer.keys() == {"error"} and says in answer["error"], answer


def test_a_form_of_another_site_cannot_rate(server: ComfyClient) -> None:
    status, answer = call(server, "/atelier/ratings", {"image": GONE, "value": 1}, kind="text/plain")
    assert status == 400 and "application/json" in answer["error"]


def test_a_text_file_is_no_picture(server: ComfyClient) -> None:
    (server.base / "output" / "note.png").write_text("no picture")
    status, answer = call(server, "/atelier/ratings", {"file": {"filename": "note.png"}, "value": 1})
    assert status == 400 and answer["error"] == "note.png is no picture that can be read."


def test_an_unknown_picture_and_one_of_two_sessions_are_told_apart(server: ComfyClient) -> None:
    name = server.upload(Image.new("RGB", (8, 8), "teal"), "teal.png")
    file = {"filename": name, "type": "input"}
    status, answer = call(server, "/atelier/ratings", {"file": file, "value": 1})
    assert status == 404 and "Rate Images" in answer["error"]
    for session in ("one", "two"):
        graph = {
            "load": {"class_type": "LoadImage", "inputs": {"image": name}},
            "rate": {
                "class_type": "AtelierRateImages",
                "inputs": {"images": ["load", 0], "session": session, "strength": 1.0},
            },
        }
        server.queue(graph)
    assert "Several sessions" in call(server, "/atelier/ratings", {"file": file, "value": 1})[1]["error"]
    answer = call(server, "/atelier/ratings", {"file": file, "session": "two", "value": 1})[1]
    assert answer["session"] == "two" and pictures(server, "one", "&rated=1") == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "Name a session"),
        (f"session=a&image={GONE}", "Name a session"),
        ("image=../x", "64 hex digits"),
        ("session=a&limit=0", "1 to 100"),
        ("session=a&limit=101", "1 to 100"),
        ("session=a&limit=-1", "1 to 100"),
        ("session=a&limit=%D9%A1", "1 to 100"),
        ("session=a&rated=yes", "rated is 1"),
        ("session=a&path=/etc", "no parameter 'path'"),
        ("&".join(f"image={n:064x}" for n in range(101)), "At most 100"),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_question_is_one_clear_sentence(query: str, says: str, server: ComfyClient) -> None:
    status, answer = call(server, f"/atelier/pictures?{query}")
    assert status == 400 and says in answer["error"]


def test_files_of_a_foreign_store_are_not_followed(server: ComfyClient) -> None:
    """An import may name any file. None outside the host's folders is read, shown or copied."""
    secret = server.base / "secret.png"
    Image.new("RGB", (8, 8), "navy").save(secret)
    digest = picture_files.content_digest(secret)
    names = ("../secret.png [output]", f"{secret} [temp]", str(secret), "/../../secret.png [input]", "x [", "")
    image = StoredImage(digest, "p", "foreign", files=names)
    Store(f"sqlite:///{server.base}/user/__atelier/ratings.sqlite3").register([image])
    assert [picture["file"] for picture in pictures(server, "foreign")] == [None]
    assert call(server, "/atelier/ratings", {"image": image.key, "value": 1})[0] == 410
    assert not (server.base / "output" / picture_files.KEPT / f"{digest}.png").exists()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 100, None])
def test_a_database_that_cannot_be_used_is_said(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ratings.sqlite3"
    file.write_bytes(content) if content else file.mkdir()
    monkeypatch.setenv("ATELIER_DATABASE_URL", f"sqlite:///{file}")

    async def ask() -> list[tuple[int, Any]]:
        routes = web.RouteTableDef()
        add_routes(routes, lambda event, data: None)
        app = web.Application()
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            get = await client.get("/atelier/pictures?session=a")
            post = await client.post("/atelier/ratings", json={"image": GONE, "value": 1})
            return [(get.status, await get.json()), (post.status, await post.json())]

    for status, answer in asyncio.run(ask()):
        assert status == 503 and str(file) in answer["error"]
    if content:
        assert file.read_bytes() == content


# --- the node ----------------------------------------------------------------------------------------------


def test_ratings_are_given_by_text(server: ComfyClient) -> None:
    keys = show(server, "text", 4, ratings="1 up, 3 down 0.5\n4+; 4 undo,", strength=0.8)
    found = {picture["image"]: (picture["value"], picture["strength"]) for picture in pictures(server, "text")}
    assert [found[key] for key in keys] == [(1, 0.8), (0, None), (-1, 0.5), (0, None)]


@pytest.mark.parametrize(
    "text", ["up", "1", "1 good", "0 up", "3 up", "1 up 2", "1 up 0", "1 up; rm", "-1 up", "1 up 2 down"]
)
def test_a_bad_text_names_its_part(text: str, server: ComfyClient) -> None:
    with pytest.raises(ValueError, match=r"is no rating|no picture|strength"):
        read_ratings(text, 2, 1.0)


def test_a_bad_text_saves_no_rating(server: ComfyClient) -> None:
    with pytest.raises(GraphError, match=r"'2 nice' is no rating"):
        show(server, "badtext", 2, ratings="1 up, 2 nice")
    assert pictures(server, "badtext") == []


@pytest.mark.parametrize(("session", "says"), [("", "1 to 500"), ("   ", "1 to 500"), ("x" * 501, "1 to 500")])
def test_a_bad_session_is_refused(session: str, says: str, server: ComfyClient) -> None:
    with pytest.raises(GraphError, match=says):
        show(server, session, 1)


def test_the_models_name_comes_from_the_routers_trace(server: ComfyClient) -> None:
    show(server, "trace", 1, trace=json.dumps({"loaded": "lora:chalk.safetensors", "chosen": "other"}), prompt="a cat")
    (picture,) = pictures(server, "trace")
    assert (picture["checkpoint"], picture["prompt"]) == ("lora:chalk.safetensors", "a cat")
    for bad in ("no trace", "[]", "{}", '{"loaded": 1}'):
        with pytest.raises(GraphError, match="Link its output trace"):
            show(server, "trace", 1, trace=bad)


def test_what_made_a_picture_is_read_from_the_graph() -> None:
    graph = load("fabric_feedback")
    end = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    found = made_by(graph, end, "images")
    assert (found.prompt, found.negative, found.seed) == ("a star", "", 2)
    assert found.checkpoint == "v1-5-pruned-emaonly-fp16.safetensors"
    sampler = next(node for node in graph.values() if node["class_type"] == "KSampler")
    graph["lora"] = {"class_type": "LoraLoader", "inputs": {"model": sampler["inputs"]["model"], "lora_name": "a.pt"}}
    sampler["inputs"]["model"] = ["lora", 0]
    assert made_by(graph, end, "images").checkpoint == "lora:a.pt"
    graph["circle"] = {"class_type": "Reroute", "inputs": {"model": ["circle", 0]}}
    sampler["inputs"]["model"] = ["circle", 0]
    assert made_by(graph, end, "images").checkpoint == ""
    assert made_by({}, "7", "images").seed is None


# --- feedback ----------------------------------------------------------------------------------------------


def test_a_thumb_runs_feedback_again_and_nothing_else_does(server: ComfyClient) -> None:
    keys, (other,) = show(server, "again", 2), show(server, "elsewhere", 1)
    assert feedback(server, "again")[0].startswith("0 liked, 0 disliked")
    assert feedback(server, "again")[0] is None
    call(server, "/atelier/ratings", {"image": keys[0], "value": 1})
    assert feedback(server, "again")[0].startswith("1 liked, 0 disliked")
    call(server, "/atelier/ratings", {"image": other, "value": 1})
    assert feedback(server, "again")[0] is None
    call(server, "/atelier/ratings", {"image": keys[0], "value": 0})
    assert feedback(server, "again")[0].startswith("0 liked, 0 disliked")


@pytest.fixture
def rated_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoredImage]:
    """Rates grey pictures in this process, in a database of its own: `rated_here(grey, value, ...)`."""
    import folder_paths
    from atelier.nodes.rating import rate

    for name in ("temp", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    url = f"sqlite:///{tmp_path}/ratings.sqlite3"
    monkeypatch.setenv("ATELIER_DATABASE_URL", url)
    store = Store(url)

    def make(grey: int, value: int, prompt: str = "p", strength: float = 1.0, session: str = "s") -> StoredImage:
        path = tmp_path / "temp" / f"{grey}.png"
        Image.new("RGB", (16, 8), (grey, grey, grey)).save(path)
        digest = picture_files.content_digest(path)
        image = StoredImage(digest, prompt, session, files=(f"{grey}.png [temp]",))
        store.register([image])
        rate(store, image, value, strength)
        path.unlink()
        return image

    return make


def greys(pictures: tuple[torch.Tensor, ...]) -> list[int]:
    assert all(picture.shape == (8, 16, 3) and picture.dtype == torch.float32 for picture in pictures)
    return [round(float(picture.mean()) * 255) for picture in pictures]


def test_feedback_takes_the_newest_of_each_side_by_strength_and_prompt(rated_here: Callable[..., StoredImage]) -> None:
    for grey in range(6):
        rated_here(grey, 1, prompt="even" if grey % 2 == 0 else "odd", strength=(grey + 1) / 10)
    rated_here(100, -1)
    rated_here(101, -1)
    rated_here(200, 1, session="other")

    def sides(**inputs: Any) -> tuple[list[int], list[int]]:
        values = {"session": " s ", "last": 64, "minimum_strength": 0.0, "prompts": "all", **inputs}
        found = AtelierFeedback.execute(**values)[0]
        return greys(found.liked), greys(found.disliked)

    assert sides() == ([0, 1, 2, 3, 4, 5], [100, 101])
    assert sides(last=1) == ([5], [101])
    values = {"session": "s", "last": 2, "minimum_strength": 0.0, "prompts": "all"}
    strong = AtelierFeedback.execute(**values)[0]
    assert strong.liked_weights == (0.5, 0.6) and strong.disliked_weights == (1.0, 1.0)
    assert sides(minimum_strength=0.3) == ([2, 3, 4, 5], [100, 101])
    assert sides(prompts="only this", prompt="even") == ([0, 2, 4], [])
    assert sides(session="none") == ([], [])


def test_feedback_passes_over_lost_files_and_says_so(rated_here: Callable[..., StoredImage], tmp_path: Path) -> None:
    images = [rated_here(grey, 1) for grey in (10, 20, 30)]
    kept = [tmp_path / "output" / picture_files.KEPT / f"{image.digest}.png" for image in images]
    kept[2].unlink()
    kept[1].write_bytes(b"broken")
    values = {"session": "s", "last": 1, "minimum_strength": 0.0, "prompts": "all"}
    found, report = AtelierFeedback.execute(**values).result
    assert greys(found.liked) == [10] and "2 rated pictures are gone" in report
    kept[0].unlink()
    with pytest.raises(ValueError, match="All 3 rated pictures"):
        AtelierFeedback.execute(**values)


def test_a_linked_session_runs_every_time() -> None:
    assert AtelierFeedback.fingerprint_inputs(session=None) != AtelierFeedback.fingerprint_inputs(session=None)
