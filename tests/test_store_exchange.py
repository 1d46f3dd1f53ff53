"""Export and import of the ratings store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from atelier.feedback.ratings import Store
from rating_stores import both, digests, image, rated


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
        (RATING.replace(', "uid"', ', "strength": 1.5, "uid"'), "strength"),
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


@both
def test_a_strength_is_exported_and_counts_in_full_if_it_is_left_out(
    store: Store, stores: Callable[..., Store], tmp_path: Path
) -> None:
    (tmp_path / "old.jsonl").write_text("\n".join([HEADER, IMAGE, RATING]), encoding="utf-8")
    store.import_file(tmp_path / "old.jsonl")
    assert [rating.strength for rating in store.ratings("s")] == [1.0]
    store.rate(KEY, -1, session="s", strength=0.3)
    store.export_file(tmp_path / "new.jsonl")
    other = stores()
    other.import_file(tmp_path / "new.jsonl")
    assert [(rating.value, rating.strength) for rating in other.ratings("s")] == [(-1, 0.3)]
