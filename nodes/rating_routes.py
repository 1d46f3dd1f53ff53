"""The HTTP routes of ratings, for the front end and for scripts.

    POST /atelier/ratings     {"image": KEY, "value": 1, -1 or 0, "strength": above 0 to 1}
                              {"file": {"filename", "subfolder", "type"}, "session": NAME, "value": ...}
    GET  /atelier/pictures    ?session=NAME [&rated=1] [&limit=N]: the newest pictures of a session
                              ?image=KEY&image=KEY...: these pictures

A value of 0 takes a rating back. KEY is `StoredImage.key`; the node AtelierRateImages gives it out under
`atelier_pictures`. A file is named as the host's `/view` names it; one that two sessions have rated needs `session`.
Pictures come as `rating.as_json`; a rating is answered with its picture, after it was saved. Errors are
{"error": SENTENCE}. No route serves a file: that is the host's part.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..feedback.records import StoredImage, StoreError
from ..feedback.store import default_url, open_store
from .picture_files import PictureFile, PictureGone, content_digest
from .rating import as_json, rate

if TYPE_CHECKING:
    from ..feedback.ratings import Store

LARGEST_BODY = 16_384
MOST_PICTURES = 100
"""Pictures in one answer; a URL with more keys would be too long for the server."""

EVENT = "atelier.rated"
"""Sent to every open browser when a rating is saved, with the picture as in an answer."""

Handler = Callable[[web.Request], Awaitable[web.Response]]
Send = Callable[[str, dict[str, Any]], None]


class BadRequest(ValueError):
    """What was sent cannot be done; the text says why."""


def add_routes(routes: web.RouteTableDef, send: Send) -> None:
    """Register the routes; `send(event, data)` tells all browsers."""

    @routes.post("/atelier/ratings")
    @_explained
    async def post_rating(request: web.Request) -> web.Response:
        wanted = await _body(request)
        answer = await asyncio.to_thread(_rate, wanted)
        send(EVENT, answer)
        return web.json_response(answer)

    @routes.get("/atelier/pictures")
    @_explained
    async def get_pictures(request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(_pictures, request.query))


def _explained(handler: Handler) -> Handler:
    """Turn what goes wrong into a status and one sentence."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except ValueError as error:
            status, said = 400, str(error)
        except LookupError as error:
            status, said = 404, str(error.args[0])
        except PictureGone as error:
            status, said = 410, str(error)
        except StoreError as error:
            status, said = 503, str(error)
        except OSError as error:
            status, said = 507, f"The picture cannot be kept, so it was not rated: {error.strerror or error}."
        return web.json_response({"error": said}, status=status)

    return answer


async def _body(request: web.Request) -> dict[str, Any]:
    # Another site's page cannot send this type without asking the browser first.
    if request.content_type != "application/json":
        raise BadRequest("Send a JSON object, with the header Content-Type: application/json.")
    data = await request.content.read(LARGEST_BODY + 1)
    while len(data) <= LARGEST_BODY and (more := await request.content.read(LARGEST_BODY + 1 - len(data))):
        data += more
    if len(data) > LARGEST_BODY:
        raise BadRequest(f"A rating has at most {LARGEST_BODY} bytes.")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest('The body must be a JSON object, such as {"image": KEY, "value": 1}.')
    unknown = sorted(body.keys() - {"image", "file", "session", "value", "strength"})
    if unknown:
        raise BadRequest(f"A rating has no field {unknown[0][:80]!r}. It has image or file, session, value, strength.")
    if ("image" in body) == ("file" in body):
        raise BadRequest("Name the picture by image, its key, or by file.")
    return body


def _rate(wanted: dict[str, Any]) -> dict[str, Any]:
    value, strength = wanted.get("value"), wanted.get("strength", 1.0)
    if isinstance(value, bool) or value not in (-1, 0, 1):
        raise BadRequest("The value must be 1 (like), -1 (dislike) or 0 (takes the rating back).")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise BadRequest("The strength must be a number above 0 and at most 1.")
    store = open_store(default_url())
    image = _named(store, wanted) if "image" in wanted else _found(store, wanted)
    rating = rate(store, image, int(value), float(strength))
    return as_json(store.image(image.key), rating)


def _named(store: Store, wanted: dict[str, Any]) -> StoredImage:
    image = store.image(_key(wanted["image"]))
    if wanted.get("session", image.session) != image.session:
        raise BadRequest("This picture belongs to another session. Leave the session out.")
    return image


def _found(store: Store, wanted: dict[str, Any]) -> StoredImage:
    """The newest picture with the content of a file."""
    file = wanted["file"]
    if not isinstance(file, dict) or file.keys() - {"filename", "subfolder", "type"} or "filename" not in file:
        raise BadRequest('A file is {"filename": ..., "subfolder": ..., "type": ...}, as the history lists it.')
    found = PictureFile(**file)
    if not found.path.is_file():
        raise LookupError(f"There is no file {found.filename[:80]!r} in that folder.")
    try:
        images = store.images_with(content_digest(found.path))
    except OSError as error:
        raise BadRequest(f"{error}.") from None
    if "session" in wanted:
        images = tuple(image for image in images if image.session == wanted["session"])
    if not images:
        raise LookupError("This picture is not known. Link the images to a Rate Images node and queue again.")
    if len({image.session for image in images}) > 1:
        raise BadRequest("Several sessions have this picture. Say which by session.")
    return images[-1]


def _pictures(query: Mapping[str, str]) -> dict[str, Any]:
    unknown = sorted(set(query) - {"session", "image", "rated", "limit"})
    if unknown:
        raise BadRequest(f"There is no parameter {unknown[0][:80]!r}. There are session, image, rated and limit.")
    keys, session = [_key(key) for key in query.getall("image", [])], query.get("session")
    if bool(keys) == (session is not None):
        raise BadRequest("Name a session, or the pictures by image.")
    if len(keys) > MOST_PICTURES:
        raise BadRequest(f"At most {MOST_PICTURES} pictures can be asked for at once.")
    rated = query.get("rated", "0")
    if rated not in ("0", "1"):
        raise BadRequest("The parameter rated is 1 (only rated pictures) or 0 (all).")
    limit = query.get("limit", str(MOST_PICTURES))
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MOST_PICTURES:
        raise BadRequest(f"The limit must be a whole number from 1 to {MOST_PICTURES}.")
    found = open_store(default_url()).rated_images(session, keys, only_rated=rated == "1", limit=int(limit))
    return {"pictures": [as_json(image, rating) for image, rating in found]}


def _key(key: object) -> str:
    if not (isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key)):
        raise BadRequest("The key of a picture has 64 hex digits (0-9, a-f).")
    return key
