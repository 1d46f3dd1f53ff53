"""Runs asynchronous work from synchronous code so that it can be watched and cancelled at any moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import wait
from typing import TypeVar

from .backend import Hooks

T = TypeVar("T")

POLL_SECONDS = 0.1
"""How often the host is asked whether to go on. Cancelling takes this long at the most."""


def run_watched(work: Callable[[Callable[[int], None]], Awaitable[T]], hooks: Hooks, total: int) -> T:
    """Run `work(count)` to its end and return its result; `count` takes the number of tokens so far.

    The work has an event loop of its own in a thread of its own, since the host's is busy running the node.
    Whatever `hooks.check` raises here cancels the work, which closes its connections, and goes on up.
    """
    from anyio.from_thread import start_blocking_portal  # comes with openai

    so_far = 0

    def count(tokens: int) -> None:
        nonlocal so_far
        so_far = tokens

    show = hooks.progress(total)
    with start_blocking_portal() as portal:
        future = portal.start_task_soon(work, count)
        while wait([future], timeout=POLL_SECONDS).not_done:
            hooks.check()
            show(so_far)
        return future.result()
