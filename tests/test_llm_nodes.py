"""The language model nodes over the API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import llm_servers as fake
import pytest
from comfy_api_client import GraphError, ServerError
from llm_servers import KEY


@pytest.fixture(autouse=True)
def fresh_memory() -> None:
    """Nothing is remembered from another test."""
    fake.forget()


# --- the nodes ---------------------------------------------------------------------------------------------


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


def test_key_is_in_nothing_that_the_host_writes_or_serves(server: Any) -> None:
    folder = server.base / "user" / "__atelier"
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "llm_profiles.json"
    place.write_text(json.dumps({"secret": {"base_url": "http://127.0.0.1:9/v1", "key": KEY}}))
    try:
        shown = run_node(server, "AtelierLLMServer", {**SERVER_INPUTS, "profile": "secret"})
        assert "profile='secret'" in shown
        served = {
            "preview": shown,
            "history": json.dumps(server.get("/history")),
            "log": server.log(),
            "schemas": json.dumps(server.get("/object_info")),
        }
        assert [name for name, text in served.items() if KEY in text] == []
        for path in ("/userdata/__atelier/llm_profiles.json", "/userdata/..%2F__atelier%2Fllm_profiles.json"):
            with pytest.raises(ServerError):
                server.get(path)
    finally:
        place.unlink()


def test_local_node_over_the_api(server: Any, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"No language model is installed.*models.LLM"):
        run_node(server, "AtelierLLMLocal", {"model": "none installed", **LOCAL_INPUTS})
    folder = server.base / "models" / "LLM"
    made_now = not folder.exists()
    shutil.copytree(fake.make_model(tmp_path / "tiny"), folder / "tiny-test-model")
    try:
        assert "LocalLLM(" in run_node(server, "AtelierLLMLocal", {"model": "tiny-test-model", **LOCAL_INPUTS})
        with pytest.raises(GraphError, match="not in list"):
            run_node(server, "AtelierLLMLocal", {"model": "other", **LOCAL_INPUTS})
    finally:
        shutil.rmtree(folder / "tiny-test-model" if not made_now else folder)
    assert server.get("/object_info/AtelierLLMLocal")  # also when the folder was there and is gone


LOCAL_INPUTS = {"temperature": 0.0, "seed": 0, "max_tokens": 100}


def test_clip_node_over_the_api(server: Any) -> None:
    name = server.get("/models/checkpoints")[0]
    loader = {"3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}}
    with pytest.raises(GraphError, match="only encodes"):
        run_node(server, "AtelierLLMFromClip", {"clip": ["3", 1], **LOCAL_INPUTS}, **loader)
