"""Keys of language model servers: where they go, and that they appear nowhere else."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm_servers as fake
import pytest
from atelier.llm.ask import answer_cache, ask
from atelier.llm.backend import Hooks, LLMError, LLMSetupError
from atelier.llm.profiles import resolve
from atelier.llm.server import ServerLLM
from llm_servers import GOOD, KEY, QUESTION, Colour, server_llm

pytestmark = pytest.mark.usefixtures("fresh_memory")


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A profile `work`; the test sets its address. The client's own variables are set to other secrets."""
    monkeypatch.setenv("ATELIER_LLM_KEY_WORK", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-other")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Account: other\nAuthorization: Bearer other")
    return monkeypatch


def test_key_goes_to_its_server_and_nothing_else_does(profile: pytest.MonkeyPatch) -> None:
    with fake.scripted(fake.says(GOOD)) as server:
        profile.setenv("ATELIER_LLM_URL_WORK", server.url)
        ask(server_llm(server, profile="work"), QUESTION, Colour)
        ask(server_llm(server), QUESTION, Colour)
        ask(ServerLLM("", "m", profile="work", seed=1), QUESTION, Colour)
    sent = [headers.get("Authorization") for headers in server.headers]
    assert sent == [f"Bearer {KEY}", None, f"Bearer {KEY}"]
    assert "other" not in json.dumps(server.headers)


def test_key_is_not_sent_to_an_address_from_a_workflow(profile: pytest.MonkeyPatch) -> None:
    profile.setenv("ATELIER_LLM_URL_WORK", "https://work.example/v1")
    with fake.scripted(fake.says(GOOD)) as thief:
        with pytest.raises(LLMSetupError, match="its key is sent nowhere else"):
            ask(server_llm(thief, profile="work"), QUESTION, Colour)
        with pytest.raises(LLMSetupError, match="its key is sent nowhere else"):
            ask(server_llm(thief, profile="openai"), QUESTION, Colour)
    assert thief.headers == []
    profile.delenv("ATELIER_LLM_URL_WORK")
    with pytest.raises(LLMSetupError, match="Set ATELIER_LLM_URL_WORK"):
        resolve("https://any.example/v1", "work", None)


def test_refused_key_is_told_with_its_profile(profile: pytest.MonkeyPatch) -> None:
    with fake.scripted(fake.error(401, "expired")) as server:
        profile.setenv("ATELIER_LLM_URL_WORK", server.url)
        with pytest.raises(LLMSetupError, match=r"does not take the key of profile work \(401\): expired\. Renew"):
            ask(server_llm(server, profile="work"), QUESTION, Colour)


@pytest.mark.parametrize("key", ["e", "none"])
def test_placeholder_for_a_key_does_not_spoil_answers(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers without accounts are often given any short word as a key."""
    with fake.scripted(fake.says(GOOD)) as server:
        monkeypatch.setenv("ATELIER_LLM_KEY_HOME", key)
        monkeypatch.setenv("ATELIER_LLM_URL_HOME", server.url)
        assert ask(server_llm(server, profile="home"), QUESTION, Colour).choice == "red"
        assert server.headers[0]["Authorization"] == f"Bearer {key}"


@pytest.mark.parametrize("package", ["openai", "httpx2"])
def test_client_that_is_missing_or_too_old_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai  # noqa: F401  # an old one can be imported without httpx2

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LLMSetupError, match=r'pip install "openai>=3"'):
        ServerLLM("http://127.0.0.1:9/v1", "m").check()


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirect_is_not_followed(code: int, profile: pytest.MonkeyPatch) -> None:
    with fake.scripted(fake.says(GOOD)) as thief:
        away = fake.status(code, {}, {"Location": f"{thief.url}/chat/completions"})
        with fake.scripted(away) as server:
            profile.setenv("ATELIER_LLM_URL_WORK", server.url)
            with pytest.raises(LLMSetupError, match="redirects elsewhere"):
                ask(server_llm(server, profile="work"), QUESTION, Colour)
    assert thief.headers == []


def test_profile_file_names_server_and_key(tmp_path: Path) -> None:
    place = tmp_path / "llm_profiles.json"
    place.write_text(json.dumps({"home": {"base_url": "https://h.example/v1/", "key": KEY}, "half": {"key": KEY}}))
    assert resolve("", "home", tmp_path) == ("https://h.example/v1", KEY)
    assert resolve("https://h.example/other", "home", tmp_path) == ("https://h.example/other", KEY)
    for name, why in (("half", "needs two texts"), ("none", "no LLM profile none")):
        with pytest.raises(LLMSetupError, match=why) as caught:
            resolve("", name, tmp_path)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_profile_file_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    entry = json.dumps({"home": {"base_url": "https://h.example/v1", "key": KEY}})
    (tmp_path / "llm_profiles.json").write_text(entry, encoding=encoding)
    assert resolve("", "home", tmp_path)[1] == KEY


@pytest.mark.parametrize(
    "content",
    [
        f'{{"home": {{"key": "{KEY}"'.encode(),
        f'["{KEY}"]'.encode(),
        f'{{"home": {{"base_url": "https://h.example/v1", "key": "{KEY}"}}}}'.encode("latin-1") + b"\xff",
        f'{{"home": {{"base_url": "https://h.example/v1", "key": "{KEY}"}}}}'.encode("utf-16"),
    ],
    ids=["cut", "list", "latin-1", "utf-16"],
)
def test_profile_file_that_cannot_be_read_is_named_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "llm_profiles.json").write_bytes(content)
    with pytest.raises(LLMSetupError, match=r"llm_profiles\.json cannot be read.*UTF-8") as caught:
        resolve("", "home", tmp_path)
    assert KEY not in everything_in(caught.value)


@pytest.mark.parametrize("pasted", [KEY, "hf_" + "a" * 34, "gsk_" + "b" * 52])
def test_key_in_the_place_of_a_profile_is_refused_and_not_repeated(pasted: str) -> None:
    with pytest.raises(LLMSetupError, match="not a name") as caught:
        resolve("http://127.0.0.1:1/v1", pasted, None)
    assert pasted not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:11434", "ftp://x/v1", "http://", "http://u:p@host/v1", "https://host/v1?key=x", "http://h:x/v1"],
)
def test_address_without_secrets_is_asked_for(url: str) -> None:
    with pytest.raises(LLMSetupError, match="base_url"):
        resolve(url, "", None)


def everything_in(error: BaseException, depth: int = 6) -> str:
    """All text that can be reached from an exception: chained ones, arguments, attributes, their attributes."""
    seen: dict[int, Any] = {}
    found: list[str] = []

    def walk(value: Any, left: int) -> None:
        if left == 0 or id(value) in seen:
            return
        seen[id(value)] = value
        if isinstance(value, (str, bytes)):
            found.append(str(value))
        elif isinstance(value, dict):
            for part in (*value.keys(), *value.values()):
                walk(part, left - 1)
        elif isinstance(value, (list, tuple, set)):
            for part in value:
                walk(part, left - 1)
        elif hasattr(value, "__dict__"):
            walk(vars(value), left - 1)
        if isinstance(value, BaseException):
            found.append(repr(value))
            for part in (value.args, value.__cause__, value.__context__):
                walk(part, left)

    walk(error, depth)
    return "\n".join(found)


@pytest.mark.parametrize(
    "act",
    [
        fake.error(401, f"Incorrect API key provided: {KEY}"),
        fake.error(400, f"bad header Bearer {KEY}"),
        fake.error(429, f"{KEY} has no quota", {"Retry-After": "3600"}),
        fake.error(500, f"crash with {KEY}", {"Retry-After": "0"}),
        fake.status(404, {"detail": f"{KEY}"}),
        fake.breaks_off,
        fake.streams(b"{not json"),
        fake.streams({"error": f"no such key: {KEY}"}),
        fake.status(200, {"choices": [KEY]}),
        fake.hangs,
        fake.says(f"your key is {KEY}"),
    ],
)
def test_key_is_in_no_exception_trace_log_or_repr(
    act: fake.Act, profile: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with fake.scripted(act) as server:
        profile.setenv("ATELIER_LLM_URL_WORK", server.url)
        llm = server_llm(server, profile="work", timeout=2.0, keep_alive=0)
        with pytest.raises(LLMError) as caught:
            ask(llm, QUESTION, Colour)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    shown = [everything_in(caught.value), repr(llm), str(pickle.dumps(dataclasses.replace(llm, hooks=Hooks())))]
    assert all(KEY not in text for text in (*shown, caplog.text, *map(str, answer_cache()._answers)))
    assert all(KEY not in json.dumps(body) for body in server.chats)
