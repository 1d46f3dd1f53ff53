"""Keeps the loaded checkpoint from one queue to the next although the router runs late.

The router loads through nodes that exist only while a prompt runs. The host's default cache gives back, after each
node, what it does not need, and the results of such nodes count as not needed until the router has made them again:
if another node runs before the router, as the parser does when the wish changes, the checkpoint is gone by then. A
stock loader's result stays, because the loader stands in the prompt.

This gives the router's loaders the same standing, through the host's own interface for caches. Between queues it keeps
no model alive that the host has let go of. When a prompt begins in which a router will run, it takes hold of that
router's models; it lets go when the router has looked for them, or when the prompt ends.
"""

from __future__ import annotations

import weakref
from typing import Any

from comfy_api.latest import Caching

ROUTER = "AtelierModelTreeRouter"
LOADERS = ("atelier_checkpoint", "atelier_lora")
"""Ids, in an expansion, of the nodes whose results are kept."""


class _Remembered:
    """The outputs of one node, for as long as something else holds the last of them, a checkpoint's VAE.

    A router with a LoRA hands on the checkpoint's VAE but not its model. So a weak reference to the model would not
    do: the model is kept as long as the VAE lives.
    """

    def __init__(self, outputs: list[list[Any]]) -> None:
        self._outputs: list[list[Any]] | None = outputs[:-1]
        self._last = [weakref.ref(value, self._forget) for value in outputs[-1]]

    def _forget(self, _: object) -> None:
        self._outputs = None

    def outputs(self) -> list[list[Any]] | None:
        last = [reference() for reference in self._last]
        if self._outputs is None or any(value is None for value in last):
            return None
        return [*self._outputs, last]


class KeepRoutedModels(Caching.CacheProvider):
    """What the routers' loaders gave, by router and cache key."""

    def __init__(self) -> None:
        self._remembered: dict[str, dict[str, _Remembered]] = {}
        self._held: dict[str, dict[str, list[list[Any]]]] = {}

    def should_cache(self, context: Caching.CacheContext, value: Caching.CacheValue | None = None) -> bool:
        """Called for each node that has no result yet, those of the prompt before any of them runs; and with its
        value when it has run. The value is taken here: the host may end the prompt before it calls `on_store`."""
        if context.class_type == ROUTER and value is None:
            self._hold(context.node_id)
        if not context.node_id.endswith(LOADERS):
            return False
        if value is not None:
            self._remember(context, value)
        return value is None

    async def on_lookup(self, context: Caching.CacheContext) -> Caching.CacheValue | None:
        """The loader's result, if it is the one of the last queue. If not, that one's memory is free for the new."""
        held = self._held.get(_router(context.node_id), {})
        outputs = held.get(context.cache_key_hash)
        if outputs is None:
            held.clear()
            return None
        return Caching.CacheValue(outputs=outputs)

    async def on_store(self, context: Caching.CacheContext, value: Caching.CacheValue) -> None:
        """Never called: `should_cache` has taken the value."""

    def on_prompt_end(self, prompt_id: str) -> None:
        self._held.clear()

    def _remember(self, context: Caching.CacheContext, value: Caching.CacheValue) -> None:
        """Keep in mind what a loader gave; of one router, only what its last loaders gave."""
        router, outputs = _router(context.node_id), [list(output) for output in value.outputs]
        known = self._remembered.setdefault(router, {})
        if context.node_id.endswith(LOADERS[0]):
            known.clear()
        if outputs and all(hasattr(last, "__weakref__") for last in outputs[-1]):
            known[context.cache_key_hash] = _Remembered(outputs)

    def _hold(self, router: str) -> None:
        remembered = self._remembered.get(router, {})
        alive = {key: outputs for key, known in remembered.items() if (outputs := known.outputs()) is not None}
        self._remembered[router] = {key: remembered[key] for key in alive}
        self._held.setdefault(router, alive)


def _router(node_id: str) -> str:
    """The router whose expansion a node belongs to: `7.0.0.atelier_checkpoint` → `7`."""
    return node_id.rsplit(".", 3)[0]
