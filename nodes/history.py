"""The ratings store as the router's memory of how models did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..feedback.records import Evidence, StoreError
from ..feedback.store import default_url, open_store
from ..llm.embeddings import Encoder, embed


class StoredHistory:
    """Answers `similar` from the store, with the embeddings of one encoder."""

    def __init__(self, url: str, encoder: Encoder) -> None:
        self._url, self._encoder = url, encoder

    def similar(self, prompt: str, floor: float, limit: int) -> Sequence[Evidence]:
        """How each model did on prompts like this one. Raises StoreError if the database cannot be used."""
        store = open_store(self._url)
        store.embed_rated(self._encoder)
        return store.evidence(embed(self._encoder, [prompt])[0], self._encoder.name, floor, limit)


def stored_history(encoder: Encoder) -> StoredHistory | None:
    """The history of this installation, None if nothing was ever rated here."""
    url = _existing()
    return StoredHistory(url, encoder) if url else None


def ratings_state() -> str:
    """A text that changes when a person rates a picture, so that the router looks again. Never raises.

    A scorer's ratings are left out: they come with every picture.
    """
    url = _existing()
    try:
        return str(open_store(url).newest_by_people()) if url else ""
    except StoreError as error:
        return str(error)


def _existing() -> str | None:
    """The database's address. A SQLite file that is not there is not made: that is for those who rate."""
    url = default_url()
    path = url.removeprefix("sqlite:///")
    return None if path != url and not Path(path).expanduser().exists() else url
