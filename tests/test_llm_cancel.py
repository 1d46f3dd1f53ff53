"""Cancelling a question to a language model server: within a second, whatever the server does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import llm_servers as fake
import pytest
from atelier.llm.ask import ask
from atelier.llm.backend import Hooks, LLMConnectionError
from atelier.llm.server import ServerLLM
from llm_servers import QUESTION, Colour, server_llm

pytestmark = pytest.mark.usefixtures("fresh_memory")


class Stop(BaseException):
    """What a host raises to interrupt."""


@pytest.mark.parametrize("act", [fake.hangs, fake.starts_and_hangs, fake.drips])
def test_host_interrupt_ends_a_call_within_a_second(act: fake.Act) -> None:
    import comfy.model_management as memory
    from atelier.llm.hosting import HOST_HOOKS

    with fake.scripted(act) as server:
        llm = server_llm(server, timeout=60.0, hooks=HOST_HOOKS)
        began: list[float] = []

        def interrupt() -> None:
            while not server.chats:
                time.sleep(0.05)
            time.sleep(0.3)  # well into the answer
            began.append(time.monotonic())
            memory.interrupt_current_processing()

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(memory.InterruptProcessingException):
            ask(llm, QUESTION, Colour)
        assert time.monotonic() - began[0] < 1
        assert server.hung_up.wait(2)


class Cancel:
    """A check of the host that raises 0.3 s after something has happened."""

    def __init__(self, happened: Callable[[], object]) -> None:
        self.happened = happened
        self.seen: float | None = None

    def __call__(self) -> None:
        if self.seen is None and self.happened():
            self.seen = time.monotonic()
        if self.seen is not None and time.monotonic() - self.seen > 0.3:
            raise Stop

    def took(self) -> float:
        """Seconds from then to now."""
        return time.monotonic() - self.seen


def test_interrupt_during_a_wait_for_a_busy_server() -> None:
    with fake.scripted(fake.error(429, "busy", {"Retry-After": "15"})) as server:
        cancel = Cancel(lambda: server.chats)
        with pytest.raises(Stop):
            ask(server_llm(server, hooks=Hooks(check=cancel)), QUESTION, Colour)
        assert cancel.took() < 1.3 and len(server.chats) == 1


def test_slow_look_up_of_the_servers_name_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system cannot be told to stop looking a name up, so it is left behind."""
    look_up, asked, done = socket.getaddrinfo, threading.Event(), threading.Event()

    def slowly(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("slow.example", b"slow.example"):
            asked.set()
            done.wait(20)
            raise socket.gaierror("no such name")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    cancel = Cancel(asked.is_set)
    try:
        with pytest.raises(Stop):
            ask(ServerLLM("http://slow.example/v1", "m", hooks=Hooks(check=cancel)), QUESTION, Colour)
        assert cancel.took() < 1.3
        began = time.monotonic()
        with pytest.raises(LLMConnectionError, match="within 1 s"):
            ask(ServerLLM("http://slow.example/v1", "m", timeout=1.0), QUESTION, Colour)
        assert time.monotonic() - began < 5
    finally:
        done.set()
