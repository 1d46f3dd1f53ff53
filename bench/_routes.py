"""What the router does with a library of demo checkpoints, and a person who rates the pictures.

To be imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from _gallery import Gallery, Order, order
from _wishes import Wish
from assemble import EXPERTS
from atelier.feedback.records import StoredImage
from atelier.feedback.store import open_store
from atelier.llm.embeddings import load_encoder
from atelier.llm.llm_parser import read_wish
from atelier.llm.records import Library, ModelRecord
from atelier.llm.routing import Choice, choose
from atelier.llm.tree_build import grow
from atelier.nodes.history import StoredHistory

MODELS = ("base", *EXPERTS)


def file_of(model: str) -> str:
    return f"shapeworld-{model}.safetensors"


def record_of(library: Library, name: str) -> ModelRecord:
    return next(model for model in library.models if model.name == name)


def prompt_of(wish: Wish) -> str:
    return read_wish(wish.text).prompt


class Routes:
    """A library with its tree, and what the router does with it.

    `drawn_by` names the demo checkpoint that is really in a file, where the file's name does not.
    """

    def __init__(self, library: Library, drawn_by: Mapping[str, str] | None = None) -> None:
        self.library, self.encoder = library, load_encoder()
        self.tree = grow(library.models, self.encoder).tree
        self._drawn_by = {file_of(model): model for model in MODELS} | dict(drawn_by or {})

    def choice(self, wish: Wish, history: StoredHistory | None = None, count: int = 1) -> Choice:
        return choose(self.library, prompt_of(wish), self.encoder, tree=self.tree, history=history, count=count)

    def names(self, wishes: Iterable[Wish], history: StoredHistory | None = None) -> list[str]:
        """The file that is chosen for each wish."""
        return [self.choice(wish, history).model.name for wish in wishes]

    def orders(self, wishes: Sequence[Wish], names: Sequence[str]) -> list[Order]:
        """A picture of each wish by the model whose file stands beside it, from the prompt as the parser reads it."""
        return [self.order(wish, name, prompt_of(wish)) for wish, name in zip(wishes, names, strict=True)]

    def order(self, wish: Wish, name: str, prompt: str) -> Order:
        return order(wish, self._drawn_by[name], prompt)


class Ratings:
    """A ratings store of its own, and the person who rates into it."""

    def __init__(self, folder: Path, name: str, routes: Routes) -> None:
        self.url = f"sqlite:///{folder}/{name}.sqlite3"
        self.history, self.count = StoredHistory(self.url, routes.encoder), 0
        self._store, self._routes = open_store(self.url), routes

    def compare(self, wishes: Sequence[Wish], gallery: Gallery, most: int | None = None) -> None:
        """For each wish, have the three best models draw it; like the best pictures and dislike the worst."""
        for model in self._routes.library.models:
            gallery.scores(self._routes.orders(wishes, [model.name] * len(wishes)))  # together, which is faster
        for wish in wishes:
            names = [place.model.name for place in self._routes.choice(wish, self.history, 3).ranking]
            scores = gallery.scores(self._routes.orders([wish] * len(names), names))
            for name, value in zip(names, scores, strict=True):
                if min(scores) < max(scores) and value in (min(scores), max(scores)) and self.count != most:
                    self._rate(wish, name, 1 if value == max(scores) else -1)

    def _rate(self, wish: Wish, name: str, value: int) -> None:
        digest = sha256(f"{name} {wish.number}".encode()).hexdigest()
        picture = StoredImage(digest, prompt_of(wish), "bench", checkpoint=name, seed=wish.number)
        self._store.register([picture])
        self._store.rate(picture.key, value, session="bench")
        self.count += 1

    def close(self) -> None:
        self._store.close()
