"""What nodes share that read a session from the ratings store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..feedback.records import StoreError
from ..feedback.store import default_url, open_store

if TYPE_CHECKING:
    from ..feedback.ratings import Store


def session_input() -> io.Input:
    return io.String.Input("session", default="default", tooltip="Name of the session, as in the Rate Images node.")


def session_fingerprint(session: str | None, state: Callable[[Store, str], object]) -> str | float:
    """What a node depends on beside its inputs: the `state` of a session in the store. Never raises.

    A linked session is None here, for it is not known yet; the node runs again then.
    """
    if session is None:
        return float("nan")
    try:
        return str(state(open_store(default_url()), session.strip()))
    except StoreError as error:
        return str(error)
