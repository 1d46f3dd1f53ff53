"""The one thing that Ollama's OpenAI-compatible interface cannot do: say how long a model stays loaded.

That interface ignores `keep_alive` (ollama/ollama issue 11458) and does not change what was set before. A call of
the native interface without a prompt sets it for the model that is loaded: 0 unloads it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import AsyncOpenAI

NATIVE_SECONDS = 5.0
"""Time limit of both native calls together. They carry no work."""


@functools.cache
def known_servers() -> dict[str, bool]:
    """Whether the server at an address is Ollama, for those that were asked."""
    return {}


async def keep_loaded(client: AsyncOpenAI, url: str, model: str, seconds: int) -> None:
    """Keep a model loaded for some seconds from now, or unload it with 0. Does nothing unless it is Ollama.

    The answer is there already, so a failure is only logged.
    """
    root = url.removesuffix("/v1")
    try:
        await asyncio.wait_for(_keep_loaded(client, url, root, model, seconds), NATIVE_SECONDS)
    except Exception as error:  # its text may hold the request
        logging.warning("Atelier: %s did not take keep_alive (%s).", root, type(error).__name__)


async def _keep_loaded(client: AsyncOpenAI, url: str, root: str, model: str, seconds: int) -> None:
    if url not in known_servers():
        known_servers()[url] = await _is_ollama(client, root)
    if known_servers()[url]:
        await client.post(f"{root}/api/generate", cast_to=object, body={"model": model, "keep_alive": seconds})


async def _is_ollama(client: AsyncOpenAI, root: str) -> bool:
    from openai import APIStatusError

    try:
        answer = await client.get(f"{root}/api/version", cast_to=object)
    except APIStatusError:
        return False
    return isinstance(answer, dict) and "version" in answer
