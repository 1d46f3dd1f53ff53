"""A language model server that does what it should not: each fault has one stated outcome."""

from __future__ import annotations

import time
import tracemalloc
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import llm_servers as fake
import pytest
from atelier.llm.ask import ask, ask_traced
from atelier.llm.backend import Hooks, LLMAnswerError, LLMConnectionError, LLMSetupError
from atelier.llm.server import ServerLLM
from atelier.llm.transport import retry_delay
from llm_servers import GOOD, QUESTION, SCENE, Colour, Scene, server_llm

PIECE = b'data: {"choices": [{"delta": {"content": "'
"""How a streamed piece begins."""

pytestmark = pytest.mark.usefixtures("fresh_memory")


def test_refused_connection_says_what_to_start() -> None:
    with fake.scripted() as gone:
        url = gone.url
    with pytest.raises(LLMConnectionError, match=r"Nothing answers at .*\(.+\)\. Start the server"):
        ask(ServerLLM(url, "m"), QUESTION, Colour)


@pytest.mark.parametrize("act", [fake.hangs, fake.starts_and_hangs, fake.drips])
def test_hang_and_slow_drip_end_at_the_timeout(act: fake.Act) -> None:
    with fake.scripted(act) as server:
        began = time.monotonic()
        with pytest.raises(LLMConnectionError, match="within 1 s"):
            ask(server_llm(server, timeout=1.0), QUESTION, Colour)
        assert 0.9 < time.monotonic() - began < 3
        assert server.hung_up.wait(3)


@pytest.mark.parametrize("code", [401, 403])
def test_401_is_no_matter_for_a_retry(code: int) -> None:
    with fake.scripted(fake.error(code, "who are you")) as server:
        with pytest.raises(LLMSetupError, match=rf"wants a key \({code}\)\. Name a profile"):
            ask(server_llm(server), QUESTION, Colour)
        assert len(server.chats) == 1


def test_429_waits_as_long_as_it_is_told() -> None:
    with fake.scripted(fake.error(429, "slow down", {"Retry-After": "1"}), fake.says(GOOD)) as server:
        began = time.monotonic()
        assert ask(server_llm(server), QUESTION, Colour).choice == "red"
        assert time.monotonic() - began >= 1 and len(server.chats) == 2


def test_429_with_a_long_wait_is_an_error_at_once() -> None:
    with fake.scripted(fake.error(429, "quota used up", {"Retry-After": "3600"})) as server:
        began = time.monotonic()
        with pytest.raises(LLMConnectionError, match=r"\(429\): quota used up"):
            ask(server_llm(server), QUESTION, Colour)
        assert time.monotonic() - began < 3 and len(server.chats) == 1


def test_retry_after_is_read_in_seconds_or_as_a_date() -> None:
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=10), usegmt=True)
    assert 8 < retry_delay({"retry-after": soon}, 0) <= 10
    cases = {
        "3": 3,
        " 2.5 ": 2.5,
        "-1": 0,
        "0": 0,
        "Wed, 21 Oct 2015 07:28:00 GMT": 0,
        "soon": 1,
        "21": None,
        "nan": None,
    }
    assert {asked: retry_delay({"retry-after": asked}, 2) for asked in cases} == cases
    assert [retry_delay({}, attempt) for attempt in range(3)] == [0.5, 1, 2]


def test_500_is_tried_again_and_then_told() -> None:
    fault = fake.error(500, "out of memory", {"Retry-After": "0"})
    with fake.scripted(fault, fault, fake.says(GOOD)) as server:
        assert ask(server_llm(server), QUESTION, Colour).choice == "red"
    with fake.scripted(fault) as server:
        with pytest.raises(LLMConnectionError, match=r"fails \(500\): out of memory"):
            ask(server_llm(server), QUESTION, Colour)
        assert len(server.chats) == 4


def test_refused_question_is_told_in_the_servers_words() -> None:
    with (
        fake.scripted(fake.error(400, "the context is full")) as server,
        pytest.raises(LLMSetupError, match=r"400.*the context is full.*max_tokens"),
    ):
        ask(server_llm(server), QUESTION, Colour)


@pytest.mark.parametrize(
    ("act", "answer", "why"),
    [
        (fake.says('{"choice": "re', "length"), Colour, "cut off.*max_tokens"),
        (fake.says(f"<think>{'so ' * 50}", "length"), Colour, "only reasoning.*max_tokens"),
        (fake.says("", reasoning_content="hmm"), Colour, "only reasoning"),
        (fake.says(""), Colour, "the reply is empty"),
        (fake.streams({**fake.chunk(), "choices": []}), Colour, "the reply is empty"),
        (fake.says("", "content_filter"), Colour, "withheld"),
        (fake.says("", refusal="I will not"), Colour, "withheld"),
        (fake.says(SCENE.lower()), Scene, "missing keys: Kind, Text; unknown keys: kind, text"),
        (fake.says('{"종류": "prompt", "내용": "별"}'), Scene, "unknown keys: 종류, 내용"),
        (fake.says('{"choice": "crimson"}'), Colour, "'red' or 'blue'"),
        (fake.says("I would say red."), Colour, "no complete JSON"),
    ],
    ids=[
        "truncated", "cut-reasoning", "reasoning-only", "empty", "empty-choices", "withheld", "refusal",
        "lowercase-keys", "korean-keys", "wrong-enum", "prose",
    ],
)  # fmt: skip
def test_reply_without_an_answer_is_sent_back_and_never_forwarded(act: fake.Act, answer: type, why: str) -> None:
    with fake.scripted(act) as server:
        with pytest.raises(LLMAnswerError, match=f"asked 3 times.*{why}") as caught:
            ask(server_llm(server), QUESTION, answer)
        assert len(server.chats) == 3
    assert len(caught.value.trace.attempts) == 3 and all(attempt.error for attempt in caught.value.trace.attempts)
    roles = [message["role"] for message in server.chats[2]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert all(message["content"] for message in server.chats[2]["messages"])


def test_model_corrects_itself_when_it_sees_its_error() -> None:
    with fake.scripted(fake.says('{"choice": "crimson"}'), fake.says(GOOD)) as server:
        answer, trace = ask_traced(server_llm(server), QUESTION, Colour)
    assert answer.choice == "red" and [attempt.error is None for attempt in trace.attempts] == [False, True]
    assert "crimson" in server.chats[1]["messages"][2]["content"]
    assert "'red' or 'blue'" in server.chats[1]["messages"][3]["content"]


@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f"Here:\n{GOOD}\nBye", f"<think>blue?</think>\n{GOOD}"])
def test_fences_prose_and_thinking_cost_no_second_call(text: str) -> None:
    with fake.scripted(fake.says(text)) as server:
        assert ask(server_llm(server), QUESTION, Colour).choice == "red"
        assert len(server.chats) == 1


@pytest.mark.parametrize(
    "act",
    [
        fake.floods(200, "text/event-stream", PIECE),
        fake.floods(200, "text/event-stream", PIECE, b'"}}]}\n\n' + PIECE),
        fake.floods(200, "application/json", b'{"choices": [{"message": {"content": "'),
        fake.floods(500, "application/json", b'{"error": {"message": "'),
    ],
    ids=["one-event", "many-events", "no-stream", "error"],
)
def test_50_mb_reply_is_cut_off(act: fake.Act) -> None:
    with fake.scripted(act) as server:
        tracemalloc.start()
        try:
            with pytest.raises(LLMAnswerError, match="far more than an answer"):
                ask(server_llm(server, timeout=60.0), QUESTION, Colour)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert server.hung_up.wait(5) and server.sent < 30_000_000 and len(server.chats) == 1
    assert peak < 60_000_000


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (fake.breaks_off, "broke off"),
        (fake.streams(b"{not json"), "not the OpenAI protocol"),
        (fake.status(200, "<html>hello</html>"), "not the OpenAI protocol.*/v1"),
    ],
)
def test_what_is_no_reply_is_a_connection_error(act: fake.Act, why: str) -> None:
    with fake.scripted(act) as server, pytest.raises(LLMConnectionError, match=why):
        ask(server_llm(server), QUESTION, Colour)


@pytest.mark.parametrize(
    "body",
    [
        [1],
        "x",
        None,
        {"choices": {"a": 1}},
        {"choices": ["x"]},
        {"choices": [{"delta": "x", "message": "x"}]},
        {"choices": [{"delta": {"content": 7}, "message": {"content": 7}}]},
        {"usage": "x"},
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_json_of_another_shape_is_no_reply(body: Any, streamed: bool) -> None:
    act = fake.streams(body) if streamed else fake.status(200, body)
    with fake.scripted(act) as server, pytest.raises(LLMConnectionError, match="not the OpenAI protocol"):
        ask(server_llm(server), QUESTION, Colour)


@pytest.mark.parametrize("body", [{"error": "no memory left"}, {"error": {"message": "no memory left"}}])
@pytest.mark.parametrize("streamed", [True, False])
def test_error_with_status_200_is_told_in_the_servers_words(body: Any, streamed: bool) -> None:
    act = fake.streams(body) if streamed else fake.status(200, body)
    with fake.scripted(act) as server:
        with pytest.raises(LLMConnectionError, match="failed while it answered: no memory left"):
            ask(server_llm(server), QUESTION, Colour)
        assert len(server.chats) == 1


def test_unknown_model_is_answered_with_those_that_are_there() -> None:
    listed = {"object": "list", "data": [{"id": "qwen3:4b", "object": "model"}]}
    with (
        fake.scripted(fake.error(404, "no model m"), **{"/v1/models": fake.status(200, listed)}) as server,
        pytest.raises(LLMSetupError, match=r"has no model m\. It has: qwen3:4b"),
    ):
        ask(server_llm(server), QUESTION, Colour)


def dripping_json(exchange: fake.Exchange) -> None:
    """JSON that never ends, a blank at a time."""
    exchange.head(200, "application/json")
    while True:
        exchange.wfile.write(b" ")
        exchange.wfile.flush()
        time.sleep(0.05)


def test_side_calls_have_a_time_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atelier.llm.faults.LIST_SECONDS", 0.5)
    monkeypatch.setattr("atelier.llm.ollama.NATIVE_SECONDS", 0.5)
    began = time.monotonic()

    def check() -> None:
        assert time.monotonic() - began < 10

    hooks = Hooks(check=check)
    listing = fake.scripted(fake.error(404, "no model m"), **{"/v1/models": dripping_json})
    with listing as server, pytest.raises(LLMSetupError, match="answers 404"):
        ask(server_llm(server, hooks=hooks), QUESTION, Colour)
    with fake.scripted(fake.says(GOOD), **{"/api/version": dripping_json}) as server:
        assert ask(server_llm(server, keep_alive=0, hooks=hooks), QUESTION, Colour).choice == "red"
