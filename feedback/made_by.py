"""What made a picture, as far as the queued graph says: checkpoint, prompt, negative prompt and seed.

Only what stands in a widget can be seen. What a node finds out while it runs, as the router does, must be linked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Graph = dict[str, dict[str, Any]]
"""A queued graph: node id -> {"class_type", "inputs"}; a link is [node id, output]."""

_LOADERS = (("ckpt_name", "{}"), ("lora_name", "lora:{}"), ("unet_name", "{}"))
"""Widgets of loaders, and what the router calls the file."""


@dataclass(frozen=True)
class MadeBy:
    """Empty, or None for the seed, where the graph does not say."""

    prompt: str = ""
    negative: str = ""
    checkpoint: str = ""
    seed: int | None = None


def made_by(graph: Graph, node: str, name: str) -> MadeBy:
    """What made the pictures that are linked into the input `name` of a node. The nearest value counts."""
    sampler = next((n for n in _upstream(graph, node, name) if _is_link(_inputs(graph, n).get("positive"))), None)
    if sampler is None:
        return MadeBy()
    return MadeBy(
        prompt=_nearest(graph, sampler, "positive", "text", str) or "",
        negative=_nearest(graph, sampler, "negative", "text", str) or "",
        checkpoint=_model(graph, sampler),
        seed=_seed(graph, node, name),
    )


def _upstream(graph: Graph, node: str, name: str | None = None) -> Iterator[str]:
    """The nodes that lead into an input of a node, or into all of them, nearest first."""
    inputs = _inputs(graph, node)
    links = [inputs.get(name)] if name else list(inputs.values())
    waiting = [link[0] for link in links if _is_link(link)]
    seen = set()
    while waiting:
        node = waiting.pop(0)
        if node in seen or node not in graph:
            continue
        seen.add(node)
        yield node
        waiting += [value[0] for value in _inputs(graph, node).values() if _is_link(value)]


def _nearest(graph: Graph, node: str, name: str, widget: str, kind: type) -> Any:
    values = (_inputs(graph, n).get(widget) for n in _upstream(graph, node, name))
    return next((value for value in values if isinstance(value, kind)), None)


def _model(graph: Graph, sampler: str) -> str:
    """The router's name of the LoRA or checkpoint nearest to the sampler."""
    name = next((n for n in ("model", "guider") if _is_link(_inputs(graph, sampler).get(n))), None)
    for n in [sampler, *_upstream(graph, sampler, name)]:
        for widget, key in _LOADERS:
            value = _inputs(graph, n).get(widget)
            if isinstance(value, str):
                return key.format(value)
    return ""


def _seed(graph: Graph, node: str, name: str) -> int | None:
    for n in _upstream(graph, node, name):
        for widget in ("seed", "noise_seed"):
            value = _inputs(graph, n).get(widget)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
                return value
    return None


def _inputs(graph: Graph, node: str) -> dict[str, Any]:
    return graph.get(node, {}).get("inputs", {})


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
