"""What goes into the ratings store and comes out of it: pictures, ratings, scores, and what they say."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import numbers
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

LONGEST_NAME = 500
"""Characters of a session's, source's, scorer's or encoder's name: PostgreSQL cannot index much longer ones."""

PEOPLE = ("user", "api")
"""Sources of ratings that speak for a person. Every other source is a scorer's name."""


class StoreError(RuntimeError):
    """The database cannot be used. The message says why and what to do; what was asked for was not done."""


def now() -> datetime:
    return datetime.now(timezone.utc)


def new_uid() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class StoredImage:
    """One generated picture.

    `digest` is the SHA-256 of the file or of the pixels, 64 lower-case hex digits. `checkpoint` is the model's name,
    empty if it is not known; `seed` is in [0, 2^64). `files` are the places where the picture was saved, in the order
    in which they became known.

    Raises:
        ValueError: A field has a value that no database can hold; the message names it.
    """

    digest: str
    prompt: str
    session: str
    negative: str = ""
    checkpoint: str = ""
    seed: int | None = None
    files: tuple[str, ...] = ()
    created: datetime = field(default_factory=now)

    def __post_init__(self) -> None:
        _check_hex(self.digest, 64, "digest")
        _check_name(self.session, "session")
        for what in ("prompt", "negative", "checkpoint"):
            _check_text(getattr(self, what), what)
        if self.seed is not None and not (_is_int(self.seed) and 0 <= self.seed < 2**64):
            raise ValueError(f"The seed must be a whole number from 0 to 2^64 - 1, not {self.seed!r}.")
        if not isinstance(self.files, tuple):
            raise ValueError("The files must be a tuple of paths.")
        for file in self.files:
            _check_text(file, "file")
        _check_time(self.created)

    @functools.cached_property
    def key(self) -> str:
        """The picture's name in every store, 64 hex digits.

        It comes from the content and from what made it, not from the content alone: two prompts that both give a
        black picture are two pictures, and a rating belongs to one of them.
        """
        made_by = [self.digest, self.session, self.prompt, self.negative, self.checkpoint, self.seed]
        return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()


@dataclass(frozen=True)
class Rating:
    """One click: +1, -1, or 0, which takes the rating back. `image` is the picture's key.

    `strength` says how much it counts, above 0 and at most 1.

    Clicks are never changed or deleted. Of those with one image, session and source the newest holds.
    """

    image: str
    session: str
    value: int
    source: str = "user"
    created: datetime = field(default_factory=now)
    uid: str = field(default_factory=new_uid)
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_hex(self.image, 64, "image")
        _check_name(self.session, "session")
        _check_name(self.source, "source")
        if not (_is_int(self.value) and self.value in (-1, 0, 1)):
            raise ValueError(f"A rating is 1 (like), -1 (dislike) or 0 (takes the rating back), not {self.value!r}.")
        _check_time(self.created)
        _check_hex(self.uid, 32, "uid")
        if not (_is_finite(self.strength) and 0 < self.strength <= 1):
            raise ValueError(f"The strength of a rating must be above 0 and at most 1, not {self.strength!r}.")


def deciding(ratings: Iterable[Rating]) -> dict[str, Rating]:
    """The rating that counts of each picture, from those that hold, oldest first.

    A person's goes before a scorer's, and of two alike the newest counts.
    """
    return {rating.image: rating for rating in sorted(ratings, key=lambda rating: rating.source in PEOPLE)}


@dataclass(frozen=True)
class Score:
    """What a scorer measured on one picture. `image` is the picture's key. Of one scorer's, the newest holds."""

    image: str
    scorer: str
    value: float
    created: datetime = field(default_factory=now)
    uid: str = field(default_factory=new_uid)

    def __post_init__(self) -> None:
        _check_hex(self.image, 64, "image")
        _check_name(self.scorer, "scorer")
        if not _is_finite(self.value):
            raise ValueError(f"A score must be a finite number, not {self.value!r}.")
        _check_time(self.created)
        _check_hex(self.uid, 32, "uid")


@dataclass(frozen=True)
class SessionFeedback:
    """The liked and disliked pictures of a session, each in the order in which they were rated, oldest first.

    `strengths` has the strength of each picture's rating by the picture's key.
    """

    revision: int
    liked: tuple[StoredImage, ...]
    disliked: tuple[StoredImage, ...]
    strengths: Mapping[str, float]


@dataclass(frozen=True)
class SimilarPrompt:
    """A stored prompt and its cosine similarity to the one that was asked for."""

    prompt: str
    similarity: float


@dataclass(frozen=True)
class Evidence:
    """How one checkpoint did on one similar prompt.

    `likes` and `dislikes` count ratings that hold; `scores` has one value for each scored picture, by scorer.
    """

    prompt: str
    similarity: float
    checkpoint: str
    likes: int
    dislikes: int
    scores: Mapping[str, tuple[float, ...]]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _check_text(value: object, what: str) -> None:
    """Refuse what PostgreSQL or UTF-8 cannot hold, on SQLite too, so that every store can be merged."""
    if not isinstance(value, str):
        raise ValueError(f"The {what} must be text, not {type(value).__name__}.")
    if "\0" in value:
        raise ValueError(f"The {what} holds a NUL character. Remove it.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The {what} holds half of a Unicode surrogate pair. Remove it.") from None


def _check_name(value: object, what: str) -> None:
    _check_text(value, what)
    if not 0 < len(value) <= LONGEST_NAME:
        raise ValueError(f"The {what} must have 1 to {LONGEST_NAME} characters; this one has {len(value)}.")


def _check_hex(value: object, digits: int, what: str) -> None:
    if not (isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value)):
        raise ValueError(f"The {what} must be {digits} hex digits (0-9, a-f), not {str(value)[:80]!r}.")


def _check_time(value: object) -> None:
    if not (isinstance(value, datetime) and value.tzinfo is not None):
        raise ValueError(f"The time of creation must have a time zone: {value!r}.")
