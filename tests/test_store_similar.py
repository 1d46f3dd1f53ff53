"""The ratings store finds similar prompts: what is embedded, which are near, and how models did on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from atelier.feedback.ratings import Store
from atelier.feedback.records import Rating
from atelier.feedback.rows import add_ratings, batches
from atelier.feedback.similar import PromptIndex
from rating_stores import Table, both, image, rated


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
