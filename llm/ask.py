"""One function asks: a question goes in, a validated answer comes out, or an error that says what to do.

`ask(llm, question, Answer)` has the model answer as the pydantic model `Answer`. The backend makes the answer valid
by construction where it can (JSON schema, grammar); whatever it returns is read tolerantly and validated, and a
reply that cannot be used is sent back with its error a few times.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from .answers import MAX_SHOWN, AnswerT, BadAnswer, json_schema, read_answer, without_reasoning
from .backend import LLM, LLMAnswerError, LLMError, Message, Mode, Picture, Reply, Request
from .prompts import Question, fragment, neutralise

CACHED_ANSWERS = 1024
MAX_QUOTED = 2000
"""Characters of a bad reply that are sent back to the model."""


@dataclass(frozen=True)
class Attempt:
    """One call. `error` says why its reply could not be used, None if it was the answer."""

    mode: Mode
    seconds: float
    tokens_in: int | None
    tokens_out: int | None
    error: str | None


@dataclass(frozen=True)
class Trace:
    """How an answer came about: which model, which calls, or that it was remembered. JSON by `asdict`.

    `attempts` are the calls that brought a reply, usable or not; one that failed is told by its error alone.
    """

    llm: str
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False

    @property
    def calls(self) -> int:
        """Calls that this answer cost now: none if it was remembered."""
        return 0 if self.cached else len(self.attempts)


@dataclass
class AnswerCache:
    """The last answers by all that they depend on. Safe to use from several threads."""

    size: int = CACHED_ANSWERS
    _answers: OrderedDict[str, tuple[str, Trace]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> tuple[str, Trace] | None:
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: str, answer: str, trace: Trace) -> None:
        with self._lock:
            self._answers[key] = (answer, trace)
            self._answers.move_to_end(key)
            while len(self._answers) > self.size:
                self._answers.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._answers.clear()


@functools.cache
def answer_cache() -> AnswerCache:
    """The cache of this process."""
    return AnswerCache()


def ask(llm: LLM, question: Question, answer: type[AnswerT], retries: int = 2) -> AnswerT:
    """Ask and return the validated answer. See `ask_traced`."""
    return ask_traced(llm, question, answer, retries)[0]


def ask_traced(llm: LLM, question: Question, answer: type[AnswerT], retries: int = 2) -> tuple[AnswerT, Trace]:
    """Ask and return the validated answer and how it came about.

    The same model, question, answer type, seed and temperature are asked once; then the answer is remembered.

    Args:
        llm: the model to ask. `dataclasses.replace(llm, seed=…)` is another voice of it.
        question: what to ask; user text in it stands in slots (`prompts.question`).
        answer: pydantic model of the answer. Its field names, types, enums and descriptions form the schema.
        retries: how often a reply that cannot be used is sent back with its error.

    Raises:
        LLMError: there is no answer; `trace` on it says what was tried.
        BaseException: what the host raises to interrupt comes through unchanged.
    """
    request = _request(question, answer)
    key = _key(llm, request)
    remembered = answer_cache().get(key)
    if remembered is not None:
        return answer.model_validate_json(remembered[0]), replace(remembered[1], cached=True)
    attempts: list[Attempt] = []
    for _ in range(retries + 1):
        llm.hooks.check()
        began = time.monotonic()
        try:
            reply = llm.complete(request)
        except LLMError as error:
            error.trace = Trace(llm.name, tuple(attempts))
            raise
        seconds = round(time.monotonic() - began, 3)
        attempt = Attempt(reply.mode, seconds, reply.tokens_in, reply.tokens_out, None)
        try:
            found = read_answer(reply, answer)
        except BadAnswer as why:
            attempts.append(replace(attempt, error=str(why)))
            request = _again(request, reply, str(why))
            continue
        trace = Trace(llm.name, (*attempts, attempt))
        answer_cache().put(key, found.model_dump_json(), trace)
        return found, trace
    failure = LLMAnswerError(_sentence(llm, attempts))
    failure.trace = Trace(llm.name, tuple(attempts))
    raise failure


def calls_of(error: LLMError) -> int:
    """The calls that a failed question cost; one at least, because a model that cannot be reached was called too."""
    return max(1, getattr(error.trace, "calls", 0))


def _request(question: Question, answer: type[AnswerT]) -> Request:
    """The first call. Chat markers are taken apart everywhere: model names and tags may hold them as well."""
    schema = json_schema(answer)
    form = fragment("answer", schema=json.dumps(schema, ensure_ascii=False))
    system = Message("system", f"{neutralise(question.system)}\n\n{form}")
    return Request((system, Message("user", neutralise(question.user), question.picture)), schema)


def _key(llm: LLM, request: Request) -> str:
    """A digest of all that an answer depends on."""
    turns = [(message.role, message.content, _digest(message.picture)) for message in request.messages]
    data = [type(llm).__name__, *llm.identity(), llm.seed, llm.temperature, turns, request.schema]
    return hashlib.sha256(json.dumps(data, ensure_ascii=True, default=str).encode()).hexdigest()


def _digest(picture: Picture | None) -> str:
    return hashlib.sha256(picture.jpeg).hexdigest() if picture else ""


def _again(request: Request, reply: Reply, why: str) -> Request:
    """The next call, with the bad reply and its error. A turn is never empty: chat templates refuse that."""
    said = neutralise(without_reasoning(reply.text))[:MAX_QUOTED] or "(nothing)"
    correction = neutralise(fragment("retry", error=why))
    turns = (Message("assistant", said), Message("user", correction))
    return Request((*request.messages, *turns), request.schema)


def _sentence(llm: LLM, attempts: list[Attempt]) -> str:
    why = (attempts[-1].error or "")[:MAX_SHOWN]
    advice = "Try a larger model, another seed, or ask in other words."
    if "cut off" in why or "only reasoning" in why:
        advice = "Raise max_tokens, or turn the model's thinking off."
    times = "once" if len(attempts) == 1 else f"{len(attempts)} times"
    return f"{llm.name} was asked {times} and gave no usable answer: {why}. {advice}"
