"""The ratings store on SQLite and on a real PostgreSQL server, which the tests start where its programs are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import atelier.feedback.database as database_module
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from atelier.feedback.ratings import Store
from atelier.feedback.records import StoredImage, StoreError, now
from atelier.feedback.similar import PromptIndex
from atelier.feedback.store import default_url, open_store
from atelier.feedback.tables import METADATA, PROMPTS, VERSION_TABLE
from sqlalchemy import func, select, text

FEEDBACK = Path(__file__).resolve().parents[1] / "feedback"
PASSWORD = "pa:ss/w@rd%1"

LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "any_name", r"{FEEDBACK / "__init__.py"}", submodule_search_locations=[r"{FEEDBACK}"]
)
sys.modules["any_name"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["any_name"])
"""
"""Makes `feedback/` importable in a plain process, under another name and without the rest of the pack."""


def image(number: int, prompt: str = "a cat", session: str = "s", **fields: object) -> StoredImage:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return StoredImage(digest, prompt, session, **{"checkpoint": "base", "seed": number, **fields})


def rated(store: Store, number: int, value: int = 1, session: str = "s", **fields: object) -> StoredImage:
    """Register and rate a picture."""
    picture = image(number, session=session, **fields)
    store.register([picture])
    store.rate(picture.key, value, session=session)
    return picture


def digests(images: Sequence[StoredImage]) -> list[str]:
    return [picture.digest for picture in images]


class Table:
    """An encoder that looks vectors up, or makes one from the text's hash."""

    def __init__(self, vectors: dict[str, Sequence[float]] | None = None, name: str = "table", width: int = 2) -> None:
        self.vectors, self.name, self.width = vectors or {}, name, width
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return np.asarray(self.vectors.get(text, np.random.default_rng(seed).normal(size=self.width)), np.float32)


# Databases


class PostgresServer:
    """A server of our own in a temporary folder, on a free port of this machine."""

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        login = ["-U", "atelier", "--pwfile", str(folder / "password"), "--auth=scram-sha-256"]
        self._run("initdb", "-D", str(folder / "data"), *login, "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-p {self.port} -k {folder} -h 127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start")

    def _run(self, program: str, *arguments: str) -> None:
        # The group and the folder too: PostgreSQL looks at what it may do with them.
        group = None if self._user is None else pwd.getpwnam(self._user).pw_gid
        extra = None if self._user is None else []
        log = self._folder.with_suffix(".log")
        with log.open("wb") as output:
            done = subprocess.run(
                [self._programs / program, *arguments],
                cwd="/",
                user=self._user,
                group=group,
                extra_groups=extra,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=300,
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {log.read_text(errors='replace')}")

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://atelier:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    pytest.importorskip("psycopg")
    found = shutil.which("initdb")
    places = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        pytest.skip("PostgreSQL's initdb is neither on PATH nor in /usr/lib/postgresql/*/bin")
    user = None
    if os.geteuid() == 0:  # initdb refuses root
        known = [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")]
        if not known:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
        user = max(known)
    folder = Path(tempfile.mkdtemp(prefix="atelier-pg-"))
    try:
        server = PostgresServer(places[-1].parent, folder, user)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes the URL of another empty database."""
    kind, made = request.param, iter(range(100))
    server = request.getfixturevalue("postgres_server") if kind == "postgres" else None

    def new() -> str:
        if server is None:
            return f"sqlite:///{tmp_path}/new folder/50% of #{next(made)}.sqlite3"
        name = f"t{hashlib.sha256(str((tmp_path, next(made))).encode()).hexdigest()[:16]}"
        server.execute(f"CREATE DATABASE {name}")
        return server.url(name)

    return new


both = pytest.mark.parametrize("new_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def stores(new_url: Callable[[], str]) -> Iterator[Callable[..., Store]]:
    """Opens the store of a new database, or another one of a URL; closes them at the end."""
    with contextlib.ExitStack() as stack:

        def new(url: str | None = None) -> Store:
            return stack.enter_context(contextlib.closing(Store(url or new_url())))

        yield new


@pytest.fixture
def store(stores: Callable[..., Store]) -> Store:
    return stores()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a SQLite store with one liked picture, closed."""
    path = tmp_path / "ratings.sqlite3"
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        rated(store, 1)
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 1.0)


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


# Similar prompts


@both
def test_similar_agrees_with_brute_force(store: Store) -> None:
    prompts = [f"prompt {number}" for number in range(60)]
    pictures = [image(number, prompt) for number, prompt in enumerate(prompts)]
    store.register(pictures)
    for picture in pictures:
        store.score(picture.key, "x", 1.0)
    encoder = Table(width=16)
    assert store.embed_rated(encoder) == 60
    vectors = encoder.encode(prompts)
    query = encoder.encode(["another"])[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = np.argsort(-cosines)[:20]
    found = store.similar(query, "table", -1.0, 20)
    assert [hit.prompt for hit in found] == [prompts[at] for at in best]
    np.testing.assert_allclose([hit.similarity for hit in found], cosines[best], atol=1e-6)
    floor = float(np.median(cosines))
    assert len(store.similar(query, "table", floor, 1000)) == int((cosines >= floor).sum())
    assert store.similar(query, "table", 1.1, 20) == ()


@both
def test_evidence_counts_for_each_prompt_and_checkpoint_what_holds(store: Store) -> None:
    vectors = {"cat": (1, 0), "kitten": (1, 0.1), "house": (0, 1)}
    rated(store, 1, 1, prompt="cat", checkpoint="a")
    rated(store, 2, 1, prompt="cat", checkpoint="a")
    rated(store, 3, -1, prompt="cat", checkpoint="b")
    kitten = rated(store, 4, -1, prompt="kitten", checkpoint="a")
    store.rate(kitten.key, 1, session="s")
    rated(store, 5, 1, prompt="house", checkpoint="b")
    only_scored = image(6, "cat", checkpoint="c")
    store.register([only_scored, image(7, "cat", checkpoint="d")])
    store.score(only_scored.key, "aesthetic", 0.1)
    store.score(only_scored.key, "aesthetic", 0.5)
    store.embed_rated(Table(vectors))
    found = store.evidence(np.array([2.0, 0.0]), "table", 0.5, 10)
    counts = [(e.prompt, e.checkpoint, e.likes, e.dislikes, dict(e.scores)) for e in found]
    assert counts == [
        ("cat", "a", 2, 0, {}),
        ("cat", "b", 0, 1, {}),
        ("cat", "c", 0, 0, {"aesthetic": (0.5,)}),
        ("kitten", "a", 1, 0, {}),
    ]
    assert found[0].similarity == pytest.approx(1) and 0.98 < found[3].similarity < 1


@both
def test_the_index_reads_only_what_another_process_added(
    stores: Callable[..., Store], new_url: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    store, other_process = stores(url), stores(url)
    encoder, read = Table({"a": (1, 0), "b": (1, 0.01), "c": (1, 0.02)}), []
    append = PromptIndex._append
    monkeypatch.setattr(PromptIndex, "_append", lambda self, ids, v: (read.append(len(ids)), append(self, ids, v))[1])

    def ask() -> list[str]:
        return [hit.prompt for hit in store.similar(np.array([1.0, 0]), "table", 0.9, 10)]

    assert ask() == []
    for number, prompt in enumerate("ab"):
        rated(store, number, prompt=prompt)
    store.embed_rated(encoder)
    assert ask() == ["a", "b"] and ask() == ["a", "b"] and read == [2]
    rated(other_process, 3, prompt="c")
    other_process.embed_rated(encoder)
    assert ask() == ["a", "b", "c"] and ask() == ["a", "b", "c"] and read == [2, 1]


@both
def test_only_new_prompts_with_a_rating_are_embedded(stores: Callable[..., Store], new_url: Callable) -> None:
    url = new_url()
    store, encoder = stores(url), Table()
    store.register([image(1, "never rated")])
    rated(store, 2, prompt="a")
    rated(store, 3, prompt="b")
    assert store.embed_rated(encoder) == 2 and store.embed_rated(encoder) == 0
    rated(store, 4, prompt="a")
    rated(store, 5, prompt="c")
    assert store.embed_rated(encoder) == 1 and stores(url).embed_rated(encoder) == 0
    assert encoder.asked == ["a", "b", "c"]
    assert store.embed_rated(Table(name="another", width=3)) == 3


@both
def test_embedding_that_is_interrupted_goes_on_where_it_was(store: Store) -> None:
    pictures = [image(number, f"p{number}") for number in range(1100)]
    store.register(pictures)
    with store._database.write() as connection:
        from atelier.feedback.records import Rating
        from atelier.feedback.rows import add_ratings, batches

        for batch in batches(pictures):
            add_ratings(connection, [Rating(picture.key, "s", 1) for picture in batch])
    encoder, seen = Table(), []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.embed_rated(encoder, stop)
    assert seen == [(500, 1100)]
    assert store.embed_rated(encoder) == 600
    assert len(encoder.asked) == len(set(encoder.asked)) == 1100
    assert len(store.similar(np.array([1.0, 0]), "table", -1.0, 5000)) == 1100


@both
def test_vectors_that_do_not_fit_are_refused(store: Store) -> None:
    rated(store, 1)
    with pytest.raises(ValueError, match="finite"):
        store.embed_rated(Table({"a cat": (1, np.nan)}))
    store.embed_rated(Table())
    rated(store, 2, prompt="b")
    with pytest.raises(ValueError, match="width 2"):
        store.embed_rated(Table(width=3))
    with pytest.raises(ValueError, match="width 2"):
        store.similar(np.zeros(3), "table", 0, 1)
    with pytest.raises(ValueError, match="NaN"):
        store.similar(np.array([np.nan, 0]), "table", 0, 1)
    with pytest.raises(ValueError, match="limit"):
        store.similar(np.zeros(2), "table", 0, 0)
    assert store.similar(np.zeros(2), "table", 0.1, 5) == ()


# Export and import


def exported(store: Store, path: Path) -> set[str]:
    """The lines of an export, each image's files sorted: their order is the order of registration."""
    store.export_file(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {json.dumps({**line, "files": sorted(line.get("files", ()))}, sort_keys=True) for line in lines}


@both
def test_merging_exports_is_a_union_and_a_second_import_changes_nothing(
    stores: Callable[..., Store], tmp_path: Path
) -> None:
    one, two, merged, reverse = stores(), stores(), stores(), stores()
    shared = rated(one, 1, files=("one.png",))
    two.register([replace(shared, files=("two.png",), created=shared.created - timedelta(hours=1))])
    two.rate(shared.key, -1, session="s")
    one.score(shared.key, "aesthetic", 0.1 + 0.2)
    two.register(image(number, f"p{number}") for number in range(2, 600))
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    exported(one, a), exported(two, b)
    first = merged.import_file(a)
    assert (first.images, first.ratings, first.scores) == (1, 1, 1)
    merged.import_file(b)
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(b.read_bytes() + a.read_bytes())
    reverse.import_file(joined)
    union = exported(merged, tmp_path / "m.jsonl")
    assert union == exported(reverse, tmp_path / "r.jsonl") and len(union) == 1 + 599 + 2 + 1
    assert merged.feedback("s").disliked == (merged.image(shared.key),)
    assert set(merged.image(shared.key).files) == {"one.png", "two.png"}
    again = merged.import_file(joined)
    assert (again.images, again.ratings, again.scores) == (0, 0, 0)
    assert exported(merged, tmp_path / "m.jsonl") == union


HEADER = '{"type": "atelier-ratings", "version": 1}'
KEY = image(2).key
IMAGE = (
    f'{{"type": "image", "digest": "{image(2).digest}", "prompt": "a cat", "session": "s", "negative": "", '
    '"checkpoint": "base", "seed": 2, "files": [], "created": "2025-01-02T03:04:05+00:00"}'
)
RATING = (
    f'{{"type": "rating", "image": "{KEY}", "session": "s", "value": 1, "source": "user", '
    f'"created": "2025-01-02T03:04:05+09:00", "uid": "{"0" * 32}"}}'
)


@both
@pytest.mark.parametrize(
    ("line", "word"),
    [
        (RATING.replace('"value": 1', '"value": 5'), "rating is 1"),
        (RATING.replace(KEY, image(3).key), "no picture"),
        (RATING.replace(', "uid"', ', "extra": 1, "uid"'), "extra"),
        (RATING.replace('"source": "user", ', ""), "source"),
        (RATING.replace("+09:00", ""), "time zone"),
        (RATING.replace("2025-", "yesterday-"), "isoformat"),
        (RATING[:-5], "delimiter|Unterminated|Expecting"),
        (IMAGE.replace('"files": []', '"files": "a"'), "files"),
        (IMAGE.replace('"a cat"', "7"), "prompt must be text"),
        ('{"type": ["image"]}', "type must be"),
        (HEADER.replace("1", "2"), "Update Atelier"),
        ("[" * 100_000, "recursion|Expecting"),
        ("[1]", "object"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(store: Store, tmp_path: Path, line: str, word: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes("\n".join([HEADER, IMAGE, "", line, RATING]).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"line 4: .*({word})"):
        store.import_file(path)
    assert store.revision("s") == 0
    with pytest.raises(LookupError):
        store.image(KEY)
    path.write_text("\ufeff" + "\r\n".join([HEADER, IMAGE, "", RATING]))
    assert store.import_file(path).ratings == 1 and digests(store.feedback("s").liked) == [image(2).digest]


@both
def test_a_bad_line_after_many_good_ones_imports_nothing(stores: Callable[..., Store], tmp_path: Path) -> None:
    full, empty = stores(), stores()
    full.register(image(number, f"p{number}") for number in range(1100))
    full.export_file(tmp_path / "x.jsonl")
    with (tmp_path / "x.jsonl").open("a") as file:
        file.write("{}")
    with pytest.raises(ValueError, match="line 1102: the type must be"):
        empty.import_file(tmp_path / "x.jsonl")
    with pytest.raises(LookupError):
        empty.image(image(0, "p0").key)


@both
def test_a_file_without_the_header_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(IMAGE)
    with pytest.raises(ValueError, match="line 1: the first line must be"):
        store.import_file(tmp_path / "x.jsonl")


@both
def test_an_export_that_fails_leaves_the_old_one(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated(store, 1)
    path = tmp_path / "out" / "x.jsonl"
    store.export_file(path)
    old = path.read_bytes()
    monkeypatch.setattr("atelier.feedback.exchange._to_line", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.export_file(path)
    assert path.read_bytes() == old and os.listdir(path.parent) == ["x.jsonl"]


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


# Schema


@both
def test_the_migrations_make_the_tables(store: Store) -> None:
    options = {"version_table": VERSION_TABLE, "compare_type": True}
    with store._database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []


@both
def test_an_older_database_is_upgraded_and_a_newer_one_is_left_alone(
    new_url: Callable, stores: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as old:
        picture = rated(old, 1)
    newer = tmp_path / "newer 100%"
    shutil.copytree(FEEDBACK / "migrations", newer)
    (newer / "versions" / "0002_next.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision, down_revision = '0002', '0001'\n"
        "def upgrade():\n    op.add_column('atelier_ratings', sa.Column('comment', sa.Text))\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(database_module, "MIGRATIONS", newer)
        upgraded = stores(url)
        assert upgraded.feedback("s").liked == (picture,)
        upgraded.close()
    path = Path(url.removeprefix("sqlite:///"))
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=r"newer Atelier: its schema is 0002.*Update Atelier"):
        Store(url)
    assert before is None or path.read_bytes() == before


@both
def test_an_upgrade_that_fails_changes_nothing(
    new_url: Callable, stores: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as old:
        rated(old, 1)
    shutil.copytree(FEEDBACK / "migrations", tmp_path / "broken")
    (tmp_path / "broken" / "versions" / "0002_next.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\nrevision, down_revision = '0002', '0001'\n"
        "def upgrade():\n    op.drop_table('atelier_scores')\n    op.execute('SELECT nonsense FROM nowhere')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(database_module, "MIGRATIONS", tmp_path / "broken")
        with pytest.raises(StoreError, match="nowhere"):
            Store(url)
    store = stores(url)
    assert store.prompt_values("aesthetic") == [] and store.revision("s") == 1


# Databases that cannot be used


def test_the_same_url_gives_the_same_store(file: Path) -> None:
    with contextlib.closing(open_store(f"sqlite:///{file}")) as store:
        assert open_store(f"sqlite:///{file}") is store


def test_sqlite_is_in_write_ahead_mode_and_checks_references(file: Path) -> None:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store, store._database.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_locked_file_is_waited_for_and_then_named(file: Path, impatient: None) -> None:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match=r"locked by another program.*Nothing was saved.*try again"):
                store.rate(image(1).key, -1, session="s")
            assert len(store.feedback("s").liked) == 1  # readers do not wait
            threading.Timer(0.3, other.rollback).start()
            store.rate(image(1).key, -1, session="s")
        assert [rating.value for rating in store.ratings("s")] == [-1]


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_a_locked_server_is_waited_for_and_then_named(new_url: Callable, impatient: None) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as store, contextlib.closing(Store(url)) as other:
        store.register([image(1)])
        with other._database.write(), pytest.raises(StoreError, match=r"locked by another writer.*Nothing was saved"):
            store.rate(image(1).key, 1, session="s")
        store.rate(image(1).key, 1, session="s")
        assert store.revision("s") == 1


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Root may write everywhere; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5:
            folder.chmod(0o755)
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("folder_too", [False, True])
def test_a_read_only_file_can_be_read(
    file: Path, request: pytest.FixtureRequest, folder_too: bool, impatient: None
) -> None:
    file.chmod(0o444)
    file.parent.chmod(0o555 if folder_too else 0o777)
    request.addfinalizer(lambda: (file.parent.chmod(0o755), file.chmod(0o644)))
    before = file.read_bytes()
    request.getfixturevalue("unprivileged")
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        assert digests(store.feedback("s").liked) == [image(1).digest]
        with pytest.raises(StoreError, match=r"can be read but not written.*nothing was saved"):
            store.rate(image(1).key, -1, session="s")
    assert file.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a writer who may do more than the reader")
def test_a_reader_without_rights_sees_what_another_writes(file: Path, request: pytest.FixtureRequest) -> None:
    file.parent.chmod(0o755)
    request.getfixturevalue("unprivileged")
    with contextlib.closing(Store(f"sqlite:///{file}")) as reader:
        assert len(reader.feedback("s").liked) == 1
        os.seteuid(0)
        with contextlib.closing(Store(f"sqlite:///{file}")) as writer:
            rated(writer, 2)
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        assert len(reader.feedback("s").liked) == 2


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_a_read_only_server_can_be_read(new_url: Callable, postgres_server: PostgresServer) -> None:
    url = new_url()
    with contextlib.closing(Store(url)) as store:
        rated(store, 1)
    postgres_server.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    with contextlib.closing(Store(url)) as store:
        assert len(store.feedback("s").liked) == 1
        with pytest.raises(StoreError, match="can be read but not written"):
            store.rate(image(1).key, -1, session="s")


@pytest.mark.parametrize("damage", [lambda data: b"not a database " * 500, lambda data: data[: len(data) // 2]])
def test_a_damaged_file_is_named_and_left_as_it_is(file: Path, damage: Callable[[bytes], bytes]) -> None:
    file.write_bytes(damage(file.read_bytes()))
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"ratings.sqlite3 is damaged.*left as it is"):
        Store(f"sqlite:///{file}").feedback("s")
    assert file.read_bytes() == before


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path}")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot make the folder"):
        Store(f"sqlite:///{tmp_path}/file/below/x.sqlite3")


def test_a_file_that_is_deleted_in_use_loses_no_rating_silently(file: Path) -> None:
    with contextlib.closing(Store(f"sqlite:///{file}")) as store:
        store.rate(image(1).key, -1, session="s")
        file.unlink()
        with pytest.raises(StoreError, match="deleted, moved or replaced"):
            store.rate(image(1).key, 1, session="s")
        assert not file.exists()


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_a_restarted_server_is_connected_to_again(new_url: Callable, postgres_server: PostgresServer) -> None:
    with contextlib.closing(Store(new_url())) as store:
        rated(store, 1)
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
            "backend_type = 'client backend'"
        )
        store.rate(image(1).key, -1, session="s")
        assert store.revision("s") == 2


def refused(url: str, caplog: pytest.LogCaptureFixture) -> str:
    """The error's whole traceback and the log of opening this URL, which must not show the password."""
    caplog.set_level(0)
    with pytest.raises(StoreError) as caught:
        Store(url)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(caught.value)
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "ss/w@rd", "w@rd", "hunter2"):
        assert secret not in shown
    return str(caught.value)


@pytest.mark.parametrize("new_url", ["postgres"], indirect=True)
def test_no_password_is_shown_by_a_server_that_refuses(
    new_url: Callable, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert "does not exist" in refused(postgres_server.url("nothing"), caplog)
    assert "authentication failed" in refused(postgres_server.url("postgres", "hunter2"), caplog)
    assert f"127.0.0.1:{postgres_server.port}" in refused(postgres_server.url("postgres", "hunter2"), caplog)
    url = new_url()
    with contextlib.closing(Store(url)) as store:
        assert PASSWORD not in repr(store) and quote(PASSWORD, safe="") not in repr(store)


def test_no_password_is_shown_by_a_url_that_cannot_be_used(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        assert "Check that the server runs" in refused(f"postgresql://me:hunter2@{nobody}/x", caplog)
        assert "Check that the server runs" in refused(f"postgresql://{nobody}/x?password=hunter2", caplog)
    assert "more than one @" in refused(f"postgresql://me:{PASSWORD}@localhost/x", caplog)
    assert "cannot be read" in refused("postgresql://me:hunter2@localhost:port/x", caplog)
    assert "hunter2" not in refused("postgresql://me:hunter2@localhost/x?hunter2=1", caplog)
    for url in ("mysql://me:hunter2@localhost/x", "sqlite://", "sqlite:///:memory:", "hunter2", ""):
        assert "is no address" in refused(url, caplog)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert 'pip install "psycopg[binary]"' in refused("postgresql://me:hunter2@localhost/x", caplog)


@pytest.mark.parametrize("package", ["sqlalchemy", "alembic"])
def test_a_missing_package_is_named_when_a_store_is_opened(package: str, tmp_path: Path) -> None:
    script = f"""{LOAD}
sys.modules[{package!r}] = None
from any_name.store import StoreError, open_store
try:
    open_store("sqlite:///{tmp_path}/x.sqlite3")
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert f"need the package {package}" in done.stdout and "pip install" in done.stdout, done.stderr


def test_the_default_is_in_the_hosts_private_folder_unless_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import folder_paths

    monkeypatch.setenv("ATELIER_DATABASE_URL", " ")
    assert default_url() == f"sqlite:///{folder_paths.get_user_directory()}/__atelier/ratings.sqlite3"
    monkeypatch.setenv("ATELIER_DATABASE_URL", "postgresql://localhost/team")
    assert default_url() == "postgresql://localhost/team"
