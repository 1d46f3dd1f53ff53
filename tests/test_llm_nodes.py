"""The language model nodes over the API."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llm_servers as fake
import pytest
from comfy_api_client import GraphError, ServerError
from graphs import DEMO_CHECKPOINT
from llm_servers import KEY


def run_node(server: Any, node: str, inputs: dict[str, Any], **more: Any) -> str:
    """Queue one LLM node with a preview of what comes out of it; returns the preview's text."""
    graph = {
        "1": {"class_type": node, "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        **more,
    }
    return server.queue(graph)["outputs"]["2"]["text"][0]


SERVER_INPUTS = {
    "base_url": "http://127.0.0.1:9/v1",
    "model": "m",
    "profile": "",
    "temperature": 0.0,
    "seed": 0,
    "timeout": 5.0,
    "keep_alive": -1,
    "max_tokens": 100,
}
LOCAL_INPUTS = {"temperature": 0.0, "seed": 0, "max_tokens": 100}


def test_server_node_over_the_api(server: Any) -> None:
    assert "ServerLLM(base_url='http://127.0.0.1:9/v1', model='m'" in run_node(
        server, "AtelierLLMServer", SERVER_INPUTS
    )


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"base_url": "nowhere"}, "base_url is no address"),
        ({"model": " "}, "model is empty"),
        ({"profile": "missing"}, "no LLM profile missing"),
        ({"profile": "sk-pasted-by-mistake"}, "not a name"),
        ({"timeout": -1.0}, "smaller than min"),
        ({"max_tokens": 0}, "smaller than min"),
    ],
)
def test_server_node_refuses_bad_input(server: Any, inputs: dict[str, Any], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        run_node(server, "AtelierLLMServer", {**SERVER_INPUTS, **inputs})


@pytest.fixture
def profile(server: Any) -> Iterator[Callable[[str], None]]:
    """Writes the host's profile `secret` for an address."""
    folder = server.base / "user" / "__atelier"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "llm_profiles.json"

    def write(url: str) -> None:
        place.write_text(json.dumps({"secret": {"base_url": url, "key": KEY}}))

    yield write
    place.unlink(missing_ok=True)


def parse(server: Any, wish: str, llm: dict[str, Any], on_error: str = "stop", **more: Any) -> tuple[str, Any]:
    """Have a language model node read a wish; returns the prompt and the trace."""
    graph = {
        "1": llm,
        "2": {"class_type": "AtelierPromptParser", "inputs": {"wish": wish, "llm": ["1", 0], "on_error": on_error}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 3]}},
    }
    outputs = server.queue(graph, **more)["outputs"]
    return outputs["3"]["text"][0], json.loads(outputs["4"]["text"][0])


def server_node(model_server: fake.Scripted, **inputs: Any) -> dict[str, Any]:
    return {"class_type": "AtelierLLMServer", "inputs": {**SERVER_INPUTS, "base_url": model_server.url, **inputs}}


def wish_answer(prompt: str) -> str:
    keys = {"language": "en", "kind": "instruction", "prompt": prompt, "negative": ""}
    return json.dumps({**keys, "style_words": [], "edit_instruction": "", "english": ""})


def test_parser_asks_a_server_with_the_key_of_a_profile(server: Any, profile: Callable[[str], None]) -> None:
    steps = []
    slowly = fake.says(wish_answer("a red ⟦1⟧ star"), pieces=30, pause=0.02)
    with fake.scripted(slowly) as model:
        profile(model.url)
        node = server_node(model, profile="secret")
        prompt, trace = parse(server, "draw a red (big:1.2) star", node, on_progress=steps.append)
    assert prompt == "a red (big:1.2) star" and trace["asked"]["attempts"][0]["tokens_out"] == 7
    assert model.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert {step.node_id for step in steps} == {"2"} and 0 < steps[-1].value <= steps[-1].total == 100


def test_interrupt_of_the_host_ends_a_question(server: Any) -> None:
    interrupted: list[float] = []

    def interrupt() -> None:
        interrupted.append(time.monotonic())
        server.post("/interrupt", {})

    def hangs(exchange: fake.Exchange) -> None:
        threading.Timer(0.3, interrupt).start()
        exchange.wait_for_hang_up()

    with fake.scripted(hangs) as model:
        with pytest.raises(GraphError, match=r"node 2 \(AtelierPromptParser\) was interrupted"):
            parse(server, "draw a red star", server_node(model, timeout=60.0))
        assert time.monotonic() - interrupted[0] < 2
        assert model.hung_up.wait(2)


def test_key_is_in_nothing_that_the_host_writes_or_serves(server: Any, profile: Callable[[str], None]) -> None:
    with fake.scripted(fake.error(401, f"no such key: {KEY}")) as model:
        profile(model.url)
        shown = run_node(server, "AtelierLLMServer", server_node(model, profile="secret")["inputs"])
        with pytest.raises(GraphError, match=r"does not take the key of profile secret \(401\)") as caught:
            parse(server, "draw a red star", server_node(model, profile="secret"))
        prompt, trace = parse(server, "draw a red star", server_node(model, profile="secret"), "rules")
        assert model.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "profile='secret'" in shown and prompt == "a red star" and "(401)" in trace["trace"][0]
    written = {
        "preview": shown,
        "error": str(caught.value),
        "trace": json.dumps(trace),
        "history": json.dumps(server.get("/history")),
        "log": server.log(),
        "schemas": json.dumps(server.get("/object_info")),
    }
    assert [name for name, text in written.items() if KEY in text] == []
    assert "(401)" in written["log"], "the reason for falling back is in the log"
    for path in ("/userdata/__atelier/llm_profiles.json", "/userdata/..%2F__atelier%2Fllm_profiles.json"):
        with pytest.raises(ServerError):
            server.get(path)


def test_local_node_over_the_api(server: Any, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"No language model is installed.*models.LLM.*GGUF"):
        run_node(server, "AtelierLLMLocal", {"model": "none installed", **LOCAL_INPUTS})
    folder = server.base / "models" / "LLM"
    made_now = not folder.exists()
    shutil.copytree(fake.make_model(tmp_path / "tiny"), folder / "tiny-test-model")
    try:
        inputs = {"model": "tiny-test-model", **LOCAL_INPUTS}
        assert "LocalLLM(" in run_node(server, "AtelierLLMLocal", inputs)
        _, trace = parse(server, "draw a red star", {"class_type": "AtelierLLMLocal", "inputs": inputs}, "rules")
        assert [attempt["mode"] for attempt in trace["asked"]["attempts"]][:1] == ["grammar"]
        with pytest.raises(GraphError, match="not in list"):
            run_node(server, "AtelierLLMLocal", {"model": "other", **LOCAL_INPUTS})
    finally:
        shutil.rmtree(folder / "tiny-test-model" if not made_now else folder)
    assert server.get("/object_info/AtelierLLMLocal")  # also when the folder was there and is gone


def test_clip_node_over_the_api(server: Any) -> None:
    loader = {"3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": DEMO_CHECKPOINT}}}
    with pytest.raises(GraphError, match="only encodes"):
        run_node(server, "AtelierLLMFromClip", {"clip": ["3", 1], **LOCAL_INPUTS}, **loader)
