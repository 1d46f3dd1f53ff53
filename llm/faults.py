"""What can go wrong between a language model server and us, as errors that tell the user what to do.

The client's own errors hold the request, and that holds the key; nothing of them is kept but the server's words, with
the key taken out.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from .backend import LLMAnswerError, LLMConnectionError, LLMError, LLMSetupError
from .transport import ReplyTooLarge

if TYPE_CHECKING:
    from openai import APIError, APIStatusError, AsyncOpenAI

    from .server import ServerLLM

LIST_SECONDS = 3.0
"""Time limit of asking a server which models it has, for an error message."""
SHORTEST_SECRET = 8
"""Characters of the shortest key that is taken out of what a server says. Servers without accounts are often given
"x" or "none" as a key, and answers hold these letters."""


@functools.cache
def expected_errors() -> tuple[type[Exception], ...]:
    """What a call over the network may raise. Anything else is a mistake of ours and goes up as it is."""
    import httpx2
    from openai import OpenAIError

    return OpenAIError, httpx2.HTTPError, OSError, asyncio.TimeoutError, ValueError, ReplyTooLarge


async def explain(error: Exception, client: AsyncOpenAI, llm: ServerLLM, url: str, key: str | None) -> LLMError:
    """What went wrong, as an error for the user."""
    from openai import APIError, APIStatusError, APITimeoutError

    if isinstance(error, ReplyTooLarge):
        return LLMAnswerError(f"{llm.name} sent far more than an answer; it was cut off at {error.limit}.")
    if isinstance(error, (asyncio.TimeoutError, TimeoutError, APITimeoutError)):
        return LLMConnectionError(
            f"{llm.name} did not finish within {llm.timeout:g} s. Raise timeout, or take a smaller model."
        )
    if isinstance(error, APIStatusError):
        return await _explain_status(error, client, llm, url, key)
    if isinstance(error, ValueError):
        return LLMConnectionError(
            f"What {url} sent is not the OpenAI protocol. Is base_url right? It often ends in /v1."
        )
    if type(error) is APIError:  # an error in the middle of a stream
        return LLMConnectionError(
            f"{llm.name} failed while it answered: {without_key(key, own_words(error))}. Look at the server's log."
        )
    why = " ".join(str(error.__cause__ or error).split())[:200]  # the system's words, or those of the encryption
    return LLMConnectionError(
        f"Nothing answers at {url}, or it broke off ({without_key(key, why)}). Start the server, or correct base_url."
    )


async def _explain_status(
    error: APIStatusError, client: AsyncOpenAI, llm: ServerLLM, url: str, key: str | None
) -> LLMError:
    status, said = error.status_code, without_key(key, own_words(error))
    if status in (401, 403):
        if key is None:
            return LLMSetupError(f"{url} wants a key ({status}). Name a profile that has one.")
        return LLMSetupError(
            f"{url} does not take the key of profile {llm.profile} ({status}): {said}. Renew the key, or check what it "
            "may do."
        )
    if status == 404:
        names = await _models(client)
        if names and llm.model not in names:
            listed = without_key(key, ", ".join(names[:20]))[:1000]
            return LLMSetupError(f"{url} has no model {llm.model}. It has: {listed}.")
        return LLMSetupError(f"{url} answers 404: {said}. Check base_url, which often ends in /v1, and model.")
    if 300 <= status < 400:
        return LLMSetupError(f"{url} redirects elsewhere, which is not followed. Write the final address as base_url.")
    if status == 429:
        return LLMConnectionError(f"{url} is busy, or your quota there is used up (429): {said}. Try again later.")
    if status >= 500:
        return LLMConnectionError(f"{url} fails ({status}): {said}. Look at the server's log, or try again.")
    return LLMSetupError(
        f"{url} refuses the question ({status}): {said}. If it is too long for the model, raise the context on the "
        "server, or lower max_tokens. If a picture goes with it, take a model that can see."
    )


async def _models(client: AsyncOpenAI) -> list[str]:
    """The models that the server lists; empty if it does not."""
    try:
        return [str(model.id) for model in (await asyncio.wait_for(client.models.list(), LIST_SECONDS)).data]
    except Exception:
        return []


def own_words(error: APIError) -> str:
    """The server's own words, shortened."""
    body = error.body
    said = body.get("message") or body.get("detail") or body if isinstance(body, dict) else body
    return " ".join(str(said or "no reason given").split())[:300]


def without_key(key: str | None, text: str) -> str:
    """The text without the key, should a server repeat it."""
    return text.replace(key, "[key]") if key and len(key) >= SHORTEST_SECRET else text
