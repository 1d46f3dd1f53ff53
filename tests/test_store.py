"""The ratings store: pictures, ratings and scores, and several writers at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoredImage, now
from atelier.feedback.tables import PROMPTS
from rating_stores import LOAD, Table, both, image, rated
from sqlalchemy import func, select

# Pictures and ratings


@both
def test_a_picture_comes_back_as_it_went_in(store: Store) -> None:
    full = image(
        1,
        "a 🐈 (cat:1.2), \\(x\\)\nBREAK",
        "ses'sion",
        negative="흐림",
        checkpoint="sdxl\\a.safetensors",
        seed=2**64 - 1,
        files=("a.png",),
    )
    bare = StoredImage(full.digest, "", "s", created=now() - timedelta(days=1))
    assert store.register([full, bare]) == 2
    assert store.image(full.key) == full and store.image(bare.key) == bare
    assert store.images_with(full.digest) == (full, bare)


@both
def test_the_same_picture_is_kept_once_and_its_files_are_collected(store: Store) -> None:
    first = image(1, files=("a.png",))
    assert store.register([first, first]) == 1
    assert store.register([replace(first, files=("b.png", "a.png"), created=now())]) == 0
    assert store.image(first.key) == replace(first, files=("a.png", "b.png"))


@both
def test_one_content_made_by_two_prompts_is_two_pictures(store: Store) -> None:
    black = [image(1, "a cat"), image(1, "a dog"), image(1, "a cat", seed=2), image(1, "a cat", session="t")]
    assert store.register(black) == 4
    store.rate(black[0].key, -1, session="s")
    assert store.feedback("s").disliked == (black[0],)


@both
def test_the_full_prompt_is_the_key(store: Store) -> None:
    long = "word " * 4000
    store.register([image(1, long + "a"), image(2, long + "b"), image(3, long + "a")])
    with store._database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(PROMPTS)) == 2
    assert store.image(image(2, long + "b").key).prompt == long + "b"


@both
def test_a_new_rating_supersedes_and_zero_takes_back(store: Store, tmp_path: Path) -> None:
    picture = rated(store, 1, 1)
    store.rate(picture.key, -1, session="s")
    assert [rating.value for rating in store.ratings("s")] == [-1]
    store.rate(picture.key, 0, session="s")
    assert store.ratings("s") == () and store.feedback("s").disliked == ()
    store.rate(picture.key, 1, session="s")
    assert store.feedback("s").liked == (picture,)
    store.export_file(tmp_path / "all.jsonl")
    events = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [event["value"] for event in events if event["type"] == "rating"] == [1, -1, 0, 1]


@both
def test_sources_and_sessions_do_not_supersede_each_other(store: Store) -> None:
    picture = rated(store, 1, 1)
    store.rate(picture.key, -1, session="s", source="aesthetic")
    store.rate(picture.key, -1, session="other")
    store.rate(picture.key, 0, session="s", source="aesthetic")
    assert store.feedback("s").liked == (picture,)
    assert store.feedback("other").disliked == (picture,)


@both
def test_feedback_leaves_out_what_is_rated_too_weakly(store: Store) -> None:
    picture = rated(store, 1, 1)
    store.rate(picture.key, 1, session="s", strength=0.4)
    assert [rating.strength for rating in store.ratings("s")] == [0.4]
    assert store.feedback("s", 0.4).liked == (picture,) and store.feedback("s", 0.5).liked == ()
    store.rate(picture.key, 1, session="s", source="aesthetic")
    store.rate(picture.key, -1, session="s", strength=0.1)
    assert store.feedback("s", 0.5).liked == ()  # a person's weak dislike still goes before a scorer's like
    for strength in (0, 1.01, float("nan"), "1", True):
        with pytest.raises(ValueError, match="strength"):
            store.rate(picture.key, 1, session="s", strength=strength)


@both
def test_pictures_are_listed_with_a_persons_rating_in_their_session(store: Store) -> None:
    start = now()
    batches = [[image(2 * n + m, created=start + timedelta(seconds=n)) for m in range(2)] for n in range(3)]
    for batch in batches:
        store.register(batch)
    (a, b), (c, d), (e, f) = batches
    store.rate(a.key, 1, session="s", strength=0.5)
    store.rate(a.key, -1, session="another")
    store.rate(b.key, 1, session="s", source="aesthetic")
    store.rate(c.key, 1, session="s", source="user")
    store.rate(c.key, -1, session="s", source="api")
    store.rate(d.key, 1, session="s")
    store.rate(d.key, 0, session="s")

    def listed(*arguments: object, **options: object) -> list[tuple[StoredImage, int]]:
        return [(i, r.value if r else 0) for i, r in store.rated_images(*arguments, **options)]

    assert listed("s") == [(e, 0), (f, 0), (c, -1), (d, 0), (a, 1), (b, 0)]
    assert listed("s", only_rated=True) == [(c, -1), (a, 1)]
    assert listed("s", only_rated=True, limit=1) == [(c, -1)]
    assert listed(keys=[d.key, a.key, "0" * 64, d.key]) == [(d, 0), (a, 1)]
    assert listed("another") == [] and listed("none") == []


@both
def test_feedback_is_in_the_order_of_ratings_and_a_person_goes_before_a_scorer(store: Store) -> None:
    pictures = [image(number) for number in range(5)]
    store.register(pictures)
    for number, value in ((3, 1), (0, -1), (4, 1), (1, 1), (3, 1)):
        store.rate(pictures[number].key, value, session="s")
    store.rate(pictures[4].key, -1, session="s", source="aesthetic")
    store.rate(pictures[2].key, -1, session="s", source="aesthetic")
    feedback = store.feedback("s")
    assert feedback.liked == (pictures[4], pictures[1], pictures[3])
    assert feedback.disliked == (pictures[0], pictures[2])
    store.rate(pictures[4].key, 0, session="s")  # now the scorer's word counts
    assert store.feedback("s").disliked == (pictures[0], pictures[4], pictures[2])


@both
def test_the_revision_grows_with_every_rating_of_its_session(stores: Callable[..., Store], new_url: Callable) -> None:
    url = new_url()
    store, other_process = stores(url), stores(url)
    picture, seen = image(1), [0]
    store.register([picture])
    for writer, value, source in ((store, 1, "user"), (other_process, 1, "user"), (store, 0, "user"), (store, 1, "x")):
        writer.rate(picture.key, value, session="s", source=source)
        seen.append(store.revision("s"))
    assert seen == sorted(set(seen)) and store.feedback("s").revision == seen[-1]
    store.rate(picture.key, 1, session="other")
    assert store.revision("s") == seen[-1] and store.revision("none") == 0


@both
def test_the_newest_rating_by_people_leaves_scorers_out(store: Store) -> None:
    picture, seen = image(1), [store.newest_by_people()]
    store.register([picture])
    for value, source in ((1, "user"), (-1, "aesthetic"), (0, "api")):
        store.rate(picture.key, value, session="s", source=source)
        seen.append(store.newest_by_people())
    assert seen[0] == 0 and len(set(seen)) == 3 and seen[1] == seen[2]


@both
def test_a_rating_holds_even_if_the_clock_was_set_back(stores: Callable[..., Store], tmp_path: Path) -> None:
    ahead, store = stores(), stores()
    picture = rated(ahead, 1, 1)
    ahead.export_file(tmp_path / "x.jsonl")
    today, later = now(), now() + timedelta(days=400)
    moved = (tmp_path / "x.jsonl").read_text().replace(f'"created": "{today.year}-', f'"created": "{later.year + 1}-')
    (tmp_path / "x.jsonl").write_text(moved)
    store.import_file(tmp_path / "x.jsonl")
    store.rate(picture.key, -1, session="s")
    assert store.feedback("s").disliked == (store.image(picture.key),)


@both
def test_the_newest_score_holds_and_the_same_again_adds_nothing(store: Store) -> None:
    picture = image(1)
    store.register([picture])
    for value in (0.5, 0.75, 0.75, np.float32(0.25)):
        store.score(picture.key, "aesthetic", value)
    assert store.score(picture.key, "aesthetic", 0.25) == store.score(picture.key, "aesthetic", 0.25)
    assert store.prompt_values("aesthetic") == [("a cat", 0.25)]


@both
def test_prompt_values_are_the_ratings_that_hold(store: Store) -> None:
    rated(store, 1, 1, prompt="a dog")
    rated(store, 2, -1)
    back = rated(store, 3, 1)
    store.rate(back.key, 0, session="s")
    store.rate(back.key, -1, session="t")
    assert store.prompt_values() == [("a dog", 1.0), ("a cat", -1.0), ("a cat", -1.0)]
    assert store.prompt_values("aesthetic") == []


@both
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda store: image(1, "nul\0"), "prompt"),
        (lambda store: image(1, "\ud83d"), "surrogate"),
        (lambda store: image(1, session=""), "session"),
        (lambda store: image(1, session="x" * 501), "501"),
        (lambda store: image(1, seed=2**64), "seed"),
        (lambda store: replace(image(1), digest="cat.png"), "digest"),
        (lambda store: store.rate(image(1).key, 2, session="s"), "like"),
        (lambda store: store.rate("1", 1, session="s"), "image"),
        (lambda store: store.score(image(1).key, "x", float("nan")), "finite"),
        (lambda store: store.score(image(1).key, "x", 10**400), "finite"),
    ],
)
def test_values_that_no_database_holds_are_named(store: Store, make: Callable, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make(store)


@both
def test_a_picture_that_is_not_there_cannot_be_rated(store: Store) -> None:
    for call in (store.image, lambda key: store.rate(key, 1, session="s"), lambda key: store.score(key, "x", 1.0)):
        with pytest.raises(LookupError, match="no picture"):
            call(image(1).key)


# Several writers


WRITER = (
    LOAD
    + """
import hashlib
from any_name.records import StoredImage
from any_name.store import open_store

url, name = sys.argv[1:]
store = open_store(url)
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    digest = hashlib.sha256(f"{name if number % 2 else 'both'} {number}".encode()).hexdigest()
    picture = StoredImage(digest, f"prompt {number % 10}", "s")
    store.register([picture])
    store.rate(picture.key, 1, session="s", source=name)
"""
)


@both
def test_two_processes_open_a_new_database_and_write_at_once(new_url: Callable, stores: Callable[..., Store]) -> None:
    url = new_url()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.close()
    assert [writer.wait(300) for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdout.close()
    store = stores(url)
    ratings = store.ratings("s")
    assert len(ratings) == store.revision("s") == 200
    assert len({rating.image for rating in ratings}) == 150
    assert len({(rating.source, rating.image) for rating in ratings}) == 200


@both
def test_threads_share_a_store(store: Store) -> None:
    pictures = [image(number, f"prompt {number}") for number in range(40)]
    store.register(pictures)
    failed = []

    def work(part: list[StoredImage], encoder: Table) -> None:
        try:
            for picture in part:
                store.rate(picture.key, 1, session="s")
                store.embed_rated(encoder)
                store.evidence(np.array([1.0, 0]), "table", -1.0, 50)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(pictures[at::4], Table())) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and store.revision("s") == 40
    store.embed_rated(Table())
    assert len(store.similar(np.array([1.0, 0]), "table", -1.0, 50)) == 40
