"""Rating a picture: by a click, by a script over HTTP, or by a text in a node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..feedback.records import Rating, StoredImage
from .picture_files import find, keep

if TYPE_CHECKING:
    from ..feedback.ratings import Store

VALUES = {"up": 1, "+": 1, "down": -1, "-": -1, "undo": 0}
_ONE = re.compile(r"(\d+)\s*(up|down|undo|\+|-)\s*(\d*\.?\d+)?", re.IGNORECASE)


def rate(store: Store, image: StoredImage, value: int, strength: float = 1.0, source: str = "user") -> Rating:
    """Rate a picture in its own session; 0 takes the rating back. A picture that is rated is kept from then on.

    Raises:
        PictureGone: There is no file left that could be kept. Nothing was saved.
        OSError: The picture cannot be copied. Nothing was saved.
        StoreError, ValueError: See `Store.rate`.
    """
    if value:
        keep(store, image)
    return store.rate(image.key, value, session=image.session, source=source, strength=strength)


def read_ratings(text: str, count: int, strength: float) -> list[tuple[int, int, float]]:
    """(index, value, strength) of each rating in a text like `1 up, 3 down 0.5, 4 undo`.

    Pictures are numbered from 1 to `count`. A rating without a strength has the one that is given.

    Raises:
        ValueError: A part of the text is no rating; the message quotes it.
    """
    found = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        match = _ONE.fullmatch(part)
        if match is None:
            raise ValueError(
                f"{part[:80]!r} is no rating. Write the picture's number and up, down or undo, and a strength if you "
                "like, with commas between: 1 up, 3 down 0.5"
            )
        number, own = int(match[1]), float(match[3]) if match[3] else strength
        if not 1 <= number <= count:
            raise ValueError(f"There is no picture {number}: this batch has the pictures 1 to {count}.")
        if not 0 < own <= 1:
            raise ValueError(f"The strength in {part!r} must be above 0 and at most 1.")
        found.append((number - 1, VALUES[match[2].lower()], own))
    return found


def as_json(image: StoredImage, rating: Rating | None) -> dict[str, Any]:
    """A picture and its rating as the routes send them. `file` is what the host's `/view` takes, null if it is gone."""
    file = find(image)
    place = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type} if file else None
    return {
        "image": image.key,
        "session": image.session,
        "value": rating.value if rating else 0,
        "strength": rating.strength if rating and rating.value else None,
        "file": place,
        "prompt": image.prompt,
        "negative": image.negative,
        "checkpoint": image.checkpoint,
        "seed": image.seed,
        "created": image.created.isoformat(),
    }
