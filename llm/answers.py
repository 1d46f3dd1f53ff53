"""Answers as pydantic models: their JSON schema, closed choices, and reading one out of a reply.

Reading is tolerant about what stands around the JSON and strict about the JSON itself: a missing, extra,
lowercase or translated key is an error that the model gets to see, never a guess.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from .backend import Reply

AnswerT = TypeVar("AnswerT", bound=BaseModel)

MAX_STARTS = 64
"""How many opening braces of a reply are tried. It bounds the time that a hostile reply can take."""
MAX_SHOWN = 600
"""Characters of an error or a reply that are shown to a model or a user."""

_TAGS = r"(think|thinking|thought|reasoning|analysis|seed:think)"
_REASONING = (
    re.compile(rf"<{_TAGS}>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE),
    re.compile(r"\[THINK\].*?(?:\[/THINK\]|\Z)", re.DOTALL),  # Mistral
    # Gemma 4 and gpt-oss name the channel inside their markers.
    re.compile(r"<\|channel>\s*thought.*?(?:<channel\|>|\Z)", re.DOTALL),
    re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b.*?(?=<\|channel\|>\s*final|\Z)", re.DOTALL),
)
_ORPHAN_END = re.compile(rf"\A.*(?:</{_TAGS}>|\[/THINK\])", re.DOTALL | re.IGNORECASE)
"""The end of reasoning whose beginning was part of the prompt."""


class BadAnswer(ValueError):
    """A reply that cannot be used. The text says why, in words that model and user understand."""


def one_of(options: Iterable[str]) -> Any:
    """The type of a field that takes exactly one of these strings: an enum in the JSON schema.

    Equal strings count once, in their first order. Unicode normal forms are the same string on the way in, since
    a model rarely repeats a decomposed file name; the option comes out as it was given.

    Raises:
        ValueError: there are no options.
    """
    unique = tuple(dict.fromkeys(options))
    if not unique:
        raise ValueError("A closed choice needs at least one option.")
    exact = {unicodedata.normalize("NFC", option): option for option in reversed(unique)}

    def as_given(value: object) -> object:
        if not isinstance(value, str) or value in unique:
            return value
        return exact.get(unicodedata.normalize("NFC", value), value)

    return Annotated[Literal[unique], BeforeValidator(as_given)]


def json_schema(answer: type[BaseModel]) -> dict[str, Any]:
    """The answer's JSON schema: every key required, no other key allowed, as strict servers want it."""
    return _closed(answer.model_json_schema(mode="serialization"))


def _closed(schema: Any) -> Any:
    """The schema with each object closed, and without what only documentation needs."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {}
    for key, part in schema.items():
        if key in ("properties", "$defs"):  # here the keys are names
            closed[key] = {name: _closed(value) for name, value in part.items()}
        elif key in ("enum", "const"):
            closed[key] = part
        elif key not in ("title", "default"):
            closed[key] = _closed(part)
    if "properties" in closed:
        closed |= {"additionalProperties": False, "required": list(closed["properties"])}
    return closed


def without_reasoning(text: str) -> str:
    """The text without reasoning in tags, also where it is not closed or was opened by the prompt."""
    for pattern in _REASONING:
        text = pattern.sub("", text)
    return _ORPHAN_END.sub("", text).strip()


def read_answer(reply: Reply, answer: type[AnswerT]) -> AnswerT:
    """The answer that is in a reply.

    Where several objects would do, the last one counts: a model that corrects itself does so at the end.

    Raises:
        BadAnswer: the reply is empty, cut off, withheld, only reasoning, or holds no valid answer.
    """
    text = without_reasoning(reply.text)
    if reply.ended == "withheld":
        raise BadAnswer("the provider withheld the reply")
    if not text:
        if reply.reasoned or reply.text.strip():
            raise BadAnswer("the reply holds only reasoning and no answer")
        raise BadAnswer("the reply is empty")
    why = "the reply holds no complete JSON object"
    valid: AnswerT | None = None
    for found in _objects(text):
        try:
            valid = _validated(found, answer)
        except BadAnswer as error:
            why = str(error)
    if valid is not None:
        return valid
    if reply.ended in ("limit", "cut"):
        raise BadAnswer("the reply was cut off before its end")
    raise BadAnswer(why)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, outermost ones only, in order."""
    decoder = json.JSONDecoder()
    position = 0
    for _ in range(MAX_STARTS):
        position = text.find("{", position)
        if position < 0:
            return
        try:
            found, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):  # RecursionError: a thousand braces in a row
            position += 1
        else:
            yield found


def _validated(found: dict[str, Any], answer: type[AnswerT]) -> AnswerT:
    """One JSON object as the answer. Raises BadAnswer."""
    missing = [key for key in answer.model_fields if key not in found]
    unknown = [key for key in found if key not in answer.model_fields]
    if missing or unknown:
        parts = [f"missing keys: {', '.join(missing)}"] if missing else []
        parts += [f"unknown keys: {', '.join(unknown)}"] if unknown else []
        raise BadAnswer("; ".join(parts)[:MAX_SHOWN])
    try:
        return answer.model_validate(found)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise BadAnswer("; ".join(problems)[:MAX_SHOWN]) from None
