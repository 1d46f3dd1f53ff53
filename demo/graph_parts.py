"""What the templates are made of: nodes with a place on the canvas."""

from __future__ import annotations

from typing import Any

NOTE = "MarkdownNote"

Graph = dict[str, dict[str, Any]]


def node(kind: str, title: str, place: tuple[int, int], **inputs: Any) -> dict[str, Any]:
    """A node; an input `[id, slot]` is a link."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}, "place": place}


def note(text: str, place: tuple[int, int]) -> dict[str, Any]:
    """A text on the canvas; the API form has none."""
    return node(NOTE, "How to use", place, text=text)
