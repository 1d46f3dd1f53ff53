"""Language model servers and models for tests: a scripted HTTP server, and tiny models made on the spot."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from atelier.llm.answers import one_of
from atelier.llm.ask import answer_cache
from atelier.llm.ollama import known_servers
from atelier.llm.prompts import Question, slot
from atelier.llm.server import ServerLLM, known_dialects
from pydantic import BaseModel, create_model


def choice_of(options: list[str]) -> type[BaseModel]:
    """An answer type with one closed choice."""
    return create_model("Choice", choice=(one_of(options), ...))


class Scene(BaseModel):
    """An answer with capitals in its keys and an open text."""

    Kind: Literal["prompt", "instruction"]
    Text: str


QUESTION = Question("Pick the colour.", slot("wish", "a red star"))
Colour = choice_of(["red", "blue"])
GOOD = '{"choice": "red"}'
SCENE = '{"Kind": "prompt", "Text": "a star"}'
KEY = "sk-verysecret-0123456789abcdef"

Act = Callable[["Exchange"], None]
"""What the scripted server does with one request."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Exchange(BaseHTTPRequestHandler):
    """One request, with what it takes to misbehave."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        scripted: Scripted = self.server.scripted
        act = scripted.take(self.path, dict(self.headers), body)
        try:
            act(self)
        except (BrokenPipeError, ConnectionResetError):
            scripted.hung_up.set()
        self.close_connection = True

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def head(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, data: Any) -> None:
        self.wfile.write(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")
        self.wfile.flush()

    def wait_for_hang_up(self, seconds: float = 30) -> None:
        """Say nothing until the client goes away."""
        self.connection.settimeout(seconds)
        with contextlib.suppress(OSError):
            if self.rfile.read(1) == b"":
                self.server.scripted.hung_up.set()


@dataclass
class Scripted:
    """A server that acts on chat requests one after another as told; the last act is repeated.

    Other paths are answered by `paths`, else 404.
    """

    acts: list[Act] = field(default_factory=list)
    paths: dict[str, Act] = field(default_factory=dict)
    chats: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the chat requests."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Headers of all requests."""
    others: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Path and body of the other requests."""
    hung_up: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    """Bytes that `flood` got rid of."""
    url: str = ""

    def take(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Act:
        self.headers.append(headers)
        if path.endswith("/chat/completions"):
            self.chats.append(body)
            return self.acts[min(len(self.chats), len(self.acts)) - 1]
        self.others.append((path, body))
        return self.paths.get(path, status(404, {"error": {"message": "no such path"}}))


@contextlib.contextmanager
def scripted(*acts: Act, **paths: Act) -> Iterator[Scripted]:
    """A running scripted server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
    server.daemon_threads = True
    server.scripted = Scripted(list(acts), paths, url=f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.scripted
    finally:
        server.shutdown()
        server.server_close()


def forget() -> None:
    """Drop what the process remembers of answers and servers."""
    answer_cache().clear()
    known_dialects().clear()
    known_servers().clear()


def server_llm(server: Scripted, **changes: Any) -> ServerLLM:
    """The scripted server as an LLM."""
    return ServerLLM(**{"base_url": server.url, "model": "m", "timeout": 20.0, **changes})


def chunk(content: str = "", finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """One piece of a streamed reply."""
    part = {**delta, **({"content": content} if content else {})}
    choice = {"index": 0, "delta": part, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


def says(text: str, finish: str = "stop", pieces: int = 3, pause: float = 0, **delta: Any) -> Act:
    """A well-behaved streamed reply, with `pause` seconds after each piece."""

    def act(exchange: Exchange) -> None:
        exchange.head(200, "text/event-stream")
        if delta:
            exchange.event(chunk(**delta))
        size = max(1, len(text) // pieces)
        for start in range(0, len(text), size):
            exchange.event(chunk(text[start : start + size]))
            time.sleep(pause)
        exchange.event(chunk(finish=finish))
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        exchange.event({**chunk(), "choices": [], "usage": usage})
        exchange.event(b"[DONE]")

    return act


def whole(text: str) -> Act:
    """A reply in one JSON, by a server that does not stream."""

    def act(exchange: Exchange) -> None:
        message = {"role": "assistant", "content": text}
        body = {"id": "1", "object": "chat.completion", "choices": [{"message": message, "finish_reason": "stop"}]}
        exchange.head(200, "application/json")
        exchange.wfile.write(json.dumps(body).encode())

    return act


def status(code: int, body: Any = None, headers: dict[str, str] | None = None) -> Act:
    """An HTTP error, or any other plain answer."""

    def act(exchange: Exchange) -> None:
        kind = "text/html" if isinstance(body, str) else "application/json"
        exchange.head(code, kind, headers)
        exchange.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

    return act


def error(code: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Act:
    """An HTTP error as OpenAI words it."""
    return status(code, {"error": {"message": message, **more}}, headers)


def hangs(exchange: Exchange) -> None:
    """Takes the request and says nothing."""
    exchange.wait_for_hang_up()


def starts_and_hangs(exchange: Exchange) -> None:
    """Begins an answer and stops in the middle."""
    exchange.head(200, "text/event-stream")
    exchange.event(chunk('{"cho'))
    exchange.wait_for_hang_up()


def drips(exchange: Exchange) -> None:
    """One letter now and then, for ever."""
    exchange.head(200, "text/event-stream")
    while True:
        exchange.event(chunk("x"))
        time.sleep(0.05)


def breaks_off(exchange: Exchange) -> None:
    """Promises more than it sends."""
    exchange.head(200, "text/event-stream", {"Content-Length": "100000"})
    exchange.event(chunk('{"choice": "re'))


def streams(data: Any) -> Act:
    """A stream of one event: bytes as they are, anything else as JSON."""

    def act(exchange: Exchange) -> None:
        exchange.head(200, "text/event-stream")
        exchange.event(data)
        exchange.event(b"[DONE]")

    return act


def floods(code: int, kind: str, before: bytes, between: bytes = b"") -> Act:
    """50 MB in pieces, after `before` and with `between` after each piece."""

    def act(exchange: Exchange) -> None:
        exchange.head(code, kind, {"Retry-After": "0"})
        exchange.wfile.write(before)
        piece = b"x" * 50_000
        for _ in range(1000):
            exchange.wfile.write(piece + between)
            exchange.server.scripted.sent += len(piece)

    return act


def make_model(folder: Path, answer: str | None = None) -> Path:
    """A tiny Mistral with its tokenizer: of random weights, or trained to give one answer to every question.

    It sees only its last few tokens, so a few dozen steps on short contexts teach it the answer after any prompt.
    """
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(["user assistant system choice red blue reason"], trainer)
    bpe.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = MistralForCausalLM(config)
    if answer is not None:
        teach(model, tokenizer, answer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def teach(model: Any, tokenizer: Any, answer: str) -> None:
    """Train until the answer is certain after any eight tokens that end an assistant's opening."""
    import torch

    opening = tokenizer("<|im_end|>\n<|im_start|>assistant\n").input_ids
    target = tokenizer(f"{answer}<|im_end|>").input_ids
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(300):
        before = torch.randint(0, len(tokenizer), (8, 12))
        rest = torch.tensor([opening + target]).expand(8, -1)
        tokens = torch.cat([before, rest], 1)
        labels = tokens.clone()
        labels[:, : -len(target)] = -100
        loss = model(tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 5e-3:
            return
    raise AssertionError(f"the tiny model did not learn its answer (loss {loss.item():.3f})")
