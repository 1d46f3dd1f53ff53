"""A small client for ComfyUI's HTTP API: upload a picture, queue a graph, follow it, fetch what came out.

The demo, the benchmarks and the tests use it. It needs nothing but what ComfyUI itself installs.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from PIL import Image

Graph = dict[str, dict[str, Any]]
"""A workflow in API format: node id -> {"class_type", "inputs"}."""


class GraphError(RuntimeError):
    """The host refused a graph or a node failed. The text names node id, class and reason."""

    def __init__(self, message: str, node_id: str | None = None, node_type: str | None = None) -> None:
        super().__init__(message)
        self.node_id = node_id
        self.node_type = node_type


class ServerError(RuntimeError):
    """The server could not be reached, or it answered something other than what was asked for."""


@dataclass(frozen=True)
class Progress:
    """One step of one node, e.g. one sampling step."""

    node_id: str
    node_type: str
    value: int
    total: int


class ProgressLine:
    """Prints one line that is rewritten at each step; on a pipe, one line for each node."""

    def __init__(self, label: str = "") -> None:
        self.label = f"{label}: " if label else ""
        self.rewrites = sys.stdout.isatty()

    def __call__(self, step: Progress) -> None:
        text = f"{self.label}{step.node_type} {step.value}/{step.total}"
        last = step.value >= step.total
        if self.rewrites:
            print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
        elif last:
            print(text, flush=True)


class ComfyClient:
    """Speaks to one server. Calls are blocking; `queue` returns when the graph has run.

    Args:
        url: address of the server, e.g. `http://127.0.0.1:8188`.
        timeout: seconds that one graph may take before `queue` gives up and cancels it.
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout

    def get(self, path: str) -> Any:
        """GET a path; JSON is decoded, anything else comes back as bytes."""
        return asyncio.run(self._once("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """POST a JSON body; the answer is decoded as in `get`."""
        return asyncio.run(self._once("POST", path, json=body))

    def upload(self, image: Image.Image | bytes | str | Path, name: str | None = None) -> str:
        """Store a picture in the host's input folder. Returns the name that `LoadImage` takes."""
        if isinstance(image, (str, Path)):
            name, data = name or Path(image).name, Path(image).read_bytes()
        elif isinstance(image, bytes):
            data = image
        else:
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            data = buffer.getvalue()
        form = aiohttp.FormData()
        form.add_field("image", data, filename=name or f"{uuid.uuid4().hex}.png", content_type="image/png")
        answer = asyncio.run(self._once("POST", "/upload/image", data=form))
        return answer["name"]

    def queue(self, graph: Graph, on_progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        """Run a graph and return its history entry (`outputs`, `status`, ...).

        Raises:
            GraphError: the graph is invalid, or a node raised.
            ServerError: the server is gone, or the graph took longer than `timeout`.
        """
        return asyncio.run(self._queue(graph, on_progress))

    def images(self, entry: dict[str, Any], node_id: str | None = None) -> list[Image.Image]:
        """The pictures of a history entry, in order; of one node, or of all."""
        nodes = [node_id] if node_id is not None else list(entry["outputs"])
        files = [file for node in nodes for file in entry["outputs"].get(node, {}).get("images", [])]
        return [self.image(file) for file in files]

    def image(self, file: dict[str, str]) -> Image.Image:
        """Fetch one `{"filename", "subfolder", "type"}` of a history entry."""
        query = urlencode({key: file.get(key, "") for key in ("filename", "subfolder", "type")})
        picture = Image.open(io.BytesIO(self.get(f"/view?{query}")))
        picture.load()
        return picture

    async def _once(self, method: str, path: str, **request: Any) -> Any:
        async with aiohttp.ClientSession(self.url) as session:
            return await self._answer(session, method, path, **request)

    async def _answer(self, session: aiohttp.ClientSession, method: str, path: str, **request: Any) -> Any:
        try:
            async with session.request(method, path, **request) as response:
                data = await response.read()
                is_json = response.content_type == "application/json"
                answer = json.loads(data) if is_json and data else data
                if response.status == 400 and isinstance(answer, dict) and "node_errors" in answer:
                    raise refusal(answer, request.get("json", {}).get("prompt", {}))
                if response.status >= 400:
                    text = data.decode("utf-8", "replace").strip()[:500]
                    raise ServerError(f"{method} {self.url}{path} answered {response.status}: {text}")
                return answer
        except aiohttp.ClientConnectionError as error:
            raise ServerError(f"No ComfyUI server answers at {self.url} ({error}).") from error

    async def _queue(self, graph: Graph, on_progress: Callable[[Progress], None] | None) -> dict[str, Any]:
        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession(self.url) as session:
            try:
                socket = await session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0)
            except aiohttp.ClientError as error:
                raise ServerError(f"No ComfyUI server answers at {self.url} ({error}).") from error
            async with socket:
                body = {"prompt": graph, "client_id": client_id}
                accepted = await self._answer(session, "POST", "/prompt", json=body)
                prompt_id = accepted["prompt_id"]
                try:
                    await asyncio.wait_for(_follow(socket, graph, prompt_id, on_progress), self.timeout)
                except asyncio.TimeoutError:  # not the builtin one before Python 3.11
                    await self._answer(session, "POST", f"/api/jobs/{prompt_id}/cancel")
                    raise ServerError(f"The graph was cancelled after {self.timeout:g} s.") from None
            entry = (await self._answer(session, "GET", f"/history/{prompt_id}")).get(prompt_id)
        if entry is None:
            raise ServerError(f"The server closed the connection before the graph {prompt_id} was done.")
        if accepted.get("node_errors"):
            raise refusal(accepted, graph)
        raise_failure(entry)
        return entry


async def _follow(
    socket: aiohttp.ClientWebSocketResponse,
    graph: Graph,
    prompt_id: str,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Read progress messages until the host says that this graph is done."""
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue  # previews
        event = json.loads(message.data)
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        if event["type"] == "executing" and data.get("node") is None:
            return
        if event["type"] == "progress" and on_progress is not None:
            node_id = str(data["node"])
            # A node made by graph expansion is called "<parent>.<...>": report its parent's class.
            node = graph.get(node_id) or graph.get(node_id.split(".")[0], {})
            step = Progress(node_id, node.get("class_type", "node"), int(data["value"]), int(data["max"]))
            on_progress(step)


def refusal(answer: dict[str, Any], graph: Graph) -> GraphError:
    """One readable error from what `/prompt` says about an invalid graph."""
    lines: list[str] = []
    first: tuple[str | None, str | None] = (None, None)
    for node_id, report in answer["node_errors"].items():
        node_type = report.get("class_type") or graph.get(node_id, {}).get("class_type", "?")
        first = first if first[0] else (node_id, node_type)
        for error in report["errors"]:
            lines.append(f"node {node_id} ({node_type}): {error['message']}: {error['details']}")
    if not lines:
        error = answer["error"]
        if isinstance(error, str):
            lines.append(error)
        else:
            lines.append(f"{error['message']} {error.get('details') or ''}".strip())
            extra = error.get("extra_info") or {}
            first = (extra.get("node_id"), extra.get("class_type"))
    return GraphError("The host refused the graph: " + "; ".join(lines), *first)


def raise_failure(entry: dict[str, Any]) -> None:
    """Raise what stopped the graph of a history entry, if something did."""
    for kind, data in entry["status"]["messages"]:
        where = f"node {data.get('node_id')} ({data.get('node_type')})"
        if kind == "execution_error":
            reason = f"{data['exception_type']}: {data['exception_message'].strip()}"
            raise GraphError(f"{where} failed: {reason}", data["node_id"], data["node_type"])
        if kind == "execution_interrupted":
            raise GraphError(f"{where} was interrupted.", data["node_id"], data["node_type"])
