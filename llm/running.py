"""Runs asynchronous work from synchronous code so that it can be watched and cancelled at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from .backend import Hooks

T = TypeVar("T")

POLL_SECONDS = 0.1
"""How often the host is asked whether to go on."""
CLOSING_SECONDS = 0.5
"""How long cancelled work may take to close its connections before it is left behind."""


def run_watched(work: Callable[[Callable[[int], None]], Coroutine[Any, Any, T]], hooks: Hooks, total: int) -> T:
    """Run `work(count)` to its end and return its result; `count` takes the number of tokens so far.

    The work has an event loop of its own in a thread of its own, since the host's is busy running the node.
    Whatever `hooks.check` raises here cancels the work, which closes its connections, and goes on up.
    """
    so_far = 0

    def count(tokens: int) -> None:
        nonlocal so_far
        so_far = tokens

    show = hooks.progress(total)
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(count))
    outcome: Future[T] = Future()
    threading.Thread(target=_run, args=(loop, task, outcome), name="atelier-llm", daemon=True).start()
    try:
        while wait([outcome], timeout=POLL_SECONDS).not_done:
            hooks.check()
            show(so_far)
    except BaseException:
        # The task is cancelled in its own thread. The thread is not joined: the look-up of a server's name cannot
        # be cancelled and may take half a minute.
        with contextlib.suppress(RuntimeError):  # the work has just ended, and its loop is closed
            loop.call_soon_threadsafe(task.cancel)
        wait([outcome], timeout=CLOSING_SECONDS)
        raise
    return outcome.result()


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[T], outcome: Future[T]) -> None:
    """Run the task to its end and put what came of it into `outcome`."""
    try:
        outcome.set_result(loop.run_until_complete(task))
    except BaseException as error:
        outcome.set_exception(error)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
