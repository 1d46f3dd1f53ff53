"""The contact sheet of a session: which rounds, what is drawn, and the node over the API."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from atelier.feedback.contact_sheet import (
    CAPTION,
    CELL,
    COLUMNS,
    DISLIKED,
    FRAME,
    GAP,
    HEAD,
    LIKED,
    MARGIN,
    MOST,
    draw_sheet,
)
from atelier.feedback.ratings import Store
from atelier.feedback.records import Rating, StoredImage
from atelier.feedback.rounds import Judged, Round
from comfy_api_client import ComfyClient, GraphError
from PIL import Image, ImageColor
from rating_stores import both, image

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
BLUE = (20, 40, 220)


def at(minute: int) -> dict[str, Any]:
    return {"created": START + timedelta(minutes=minute)}


# --- which rounds ------------------------------------------------------------------------------------------


@both
def test_rounds_are_the_newest_batches_oldest_first(store: Store) -> None:
    for minute in range(4):
        store.register([image(10 * minute + i, f"prompt {minute}", **at(minute)) for i in range(3)])
    store.register([image(99, session="other", **at(9))])
    rounds = store.rounds("s", 2)
    assert [one.number for one in rounds] == [3, 4]
    assert [[p.image.prompt for p in one.pictures] for one in rounds] == [["prompt 2"] * 3, ["prompt 3"] * 3]
    assert [p.image.seed for p in rounds[0].pictures] == [20, 21, 22]
    assert [one.number for one in store.rounds("s", 50)] == [1, 2, 3, 4]
    assert store.rounds("nobody's", 6) == []


@both
def test_a_person_goes_before_a_scorer_and_each_scorer_has_its_newest_score(store: Store) -> None:
    pictures = [image(i, **at(0)) for i in range(3)]
    store.register(pictures)
    first, second, third = (picture.key for picture in pictures)
    store.rate(first, 1, session="s", strength=0.5)
    store.rate(first, -1, session="s", source="clip")
    store.rate(second, -1, session="s", source="clip")
    store.rate(third, 1, session="s")
    store.rate(third, 0, session="s")
    for value in (0.1, 0.2):
        store.score(first, "clip v1", value)
    store.score(first, "other v1", 3.0)
    (one,) = store.rounds("s", 6)
    seen = [(p.rating and (p.rating.value, p.rating.strength, p.rating.source), dict(p.scores)) for p in one.pictures]
    assert seen == [
        ((1, 0.5, "user"), {"clip v1": 0.2, "other v1": 3.0}),
        ((-1, 1.0, "clip"), {}),
        (None, {}),
    ]


@both
def test_the_state_changes_with_each_picture_rating_and_score(store: Store) -> None:
    states = [store.state("s")]
    picture = image(1)
    for act in (
        lambda: store.register([picture]),
        lambda: store.rate(picture.key, 1, session="s"),
        lambda: store.rate(picture.key, 0, session="s"),
        lambda: store.score(picture.key, "clip", 0.5),
    ):
        act()
        states.append(store.state("s"))
    assert len(set(states)) == 5
    store.register([image(2, session="other")])
    store.rate(image(2, session="other").key, 1, session="other")
    assert store.state("s") == states[-1]


# --- what is drawn -----------------------------------------------------------------------------------------


def judged(value: int = 0, strength: float = 1.0, source: str = "user", number: int = 1, **scores: float) -> Judged:
    picture = image(number)
    rating = Rating(picture.key, "s", value, source, strength=strength) if value else None
    return Judged(picture, rating, scores)


def draw(*pictures: Judged, load: Callable[[StoredImage], Any] = lambda _: Image.new("RGB", (64, 64), BLUE)) -> Any:
    return np.asarray(draw_sheet("s", [Round(1, pictures)], load))


def corner(column: int) -> tuple[int, int]:
    """Top left pixel (y, x) of a picture in the first line of a sheet with one scorer or none."""
    return MARGIN + HEAD + CAPTION, MARGIN + column * (CELL + GAP)


def test_frames_have_the_colour_and_the_strength_of_the_rating() -> None:
    sheet = draw(judged(1), judged(-1, number=2), judged(1, 0.5, number=3), judged(number=4))
    for column, colour, thick in ((0, LIKED, FRAME), (1, DISLIKED, FRAME), (2, LIKED, 4), (3, None, 0)):
        y, x = corner(column)
        row = sheet[y + CELL // 2, x - GAP // 2 : x]
        wanted = np.all(row == ImageColor.getrgb(colour or "#000000"), axis=-1)
        assert wanted.sum() == thick and wanted[len(row) - thick :].all()
        assert tuple(sheet[y + CELL // 2, x + CELL // 2]) == BLUE


def test_a_picture_keeps_its_proportions() -> None:
    y, x = corner(0)
    sheet = draw(judged(), load=lambda _: Image.new("RGB", (200, 100), BLUE))
    column = np.all(sheet[y : y + CELL, x + CELL // 2] == BLUE, axis=-1)
    assert column.sum() == CELL // 2 and column[CELL // 4 : 3 * CELL // 4].all()


def test_a_picture_that_is_gone_is_a_marked_blank() -> None:
    y, x = corner(0)
    there, gone = draw(judged(1)), draw(judged(1), load=lambda _: None)
    assert gone.shape == there.shape
    cell = gone[y : y + CELL, x : x + CELL].reshape(-1, 3)
    assert len(np.unique(cell, axis=0)) > 3 and not np.all(cell == BLUE, axis=-1).any()
    assert tuple(gone[y + CELL // 2, x - 2]) == ImageColor.getrgb(LIKED)


def test_scores_and_prompts_are_written() -> None:
    plain, scored = draw(judged()), draw(judged(clip=0.25))
    y, x = corner(0)
    below = np.s_[y + CELL + 2 : y + CELL + 27, x : x + CELL]
    assert (plain[below] == 255).all() and not (scored[below] == 255).all()
    assert not np.array_equal(draw(judged(clip=0.25)), draw(judged(clip=0.75)))


def test_a_large_round_is_wrapped_and_cut() -> None:
    full = draw(*(judged(number=i) for i in range(MOST)))
    more = draw(*(judged(number=i) for i in range(500)))
    assert full.shape == more.shape and full.shape[1] == 2 * MARGIN + COLUMNS * (CELL + GAP) - GAP
    assert not np.array_equal(full, more)


@pytest.mark.parametrize("session", ["empty", "x" * 500, "é 빨간 별 \n\t\x07", "🎨"])
def test_any_session_name_and_prompt_can_be_drawn(session: str) -> None:
    assert np.asarray(draw_sheet(session, [], lambda _: None)).shape[1] > 4 * CELL
    strange = Judged(image(1, session * 1000), None, {session: 1e30})
    draw_sheet(session, [Round(1, (strange, judged(a=1.0, b=2.0)))], lambda _: Image.new("RGB", (1, 3000)))


# --- over the API ------------------------------------------------------------------------------------------


def view(server: ComfyClient, session: str, **inputs: Any) -> Image.Image | None:
    """The sheet, None if the node did not run again."""
    graph = {"view": {"class_type": "AtelierSessionView", "inputs": {"session": session, "rounds": 6, **inputs}}}
    entry = server.queue(graph)
    cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
    return None if "view" in cached else server.images(entry, "view")[0]


def rate(server: ComfyClient, session: str, colour: tuple[int, int, int], ratings: str = "") -> None:
    name = server.upload(Image.new("RGB", (64, 48), colour), f"{uuid.uuid4().hex}.png")
    graph = {
        "load": {"class_type": "LoadImage", "inputs": {"image": name}},
        "rate": {
            "class_type": "AtelierRateImages",
            "inputs": {"images": ["load", 0], "session": session, "strength": 1.0, "ratings": ratings, "prompt": "a"},
        },
    }
    server.queue(graph)


def test_the_sheet_follows_the_session(server: ComfyClient) -> None:
    session = f"view {uuid.uuid4().hex}"
    empty = view(server, session)
    assert empty is not None and view(server, session) is None
    rate(server, session, BLUE)
    first = view(server, session)
    assert first is not None and first.height > empty.height and view(server, session) is None
    rate(server, session, (200, 10, 10), "1 down")
    second = np.asarray(view(server, session).convert("RGB"))
    assert np.all(second == ImageColor.getrgb(DISLIKED), axis=-1).sum() > 4 * FRAME * CELL
    newest = np.asarray(view(server, session, rounds=1).convert("RGB"))
    assert newest.shape[0] < second.shape[0] and not np.all(newest == BLUE, axis=-1).any()


def test_lost_files_are_shown_as_lost(server: ComfyClient) -> None:
    session = f"lost {uuid.uuid4().hex}"
    rate(server, session, BLUE)
    for file in (server.base / "temp").rglob("*.png"):
        file.unlink()
    sheet = np.asarray(view(server, session).convert("RGB"))
    assert not np.all(sheet == BLUE, axis=-1).any()


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"rounds": 51}])
def test_bad_input_is_refused(server: ComfyClient, bad: dict[str, Any]) -> None:
    with pytest.raises(GraphError, match="AtelierSessionView"):
        view(server, "bad", **bad)
