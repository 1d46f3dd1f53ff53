"""Draws a model tree from left to right, with the path that a wish took: thick, with the votes or scores beside it.

A library of thousands still gives a picture that can be read: a branch that was not opened shows its first lines and
how many more there are.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

from .tree import UNCLASSIFIED, ModelTree, TreeError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from PIL.ImageFont import FreeTypeFont

COLUMNS = (20, 160, 460, 760)
"""Left edges of root, subjects, styles and models, in px."""
WIDTH, ROW, MARGIN = 1040, 26, 24
MOST_ROWS = 120
SHORT = 3
"""Lines of a branch that was not opened, where there are more than MOST_ROWS lines in all."""

PAPER, INK, QUIET, PATH, CHOSEN = "#ffffff", "#2b2f36", "#a9b0ba", "#1769d2", "#0b8a4b"


@dataclass
class Box:
    """A branch or a model in the picture. `note` stands after the name. `row` is its line, counted from 0."""

    name: str
    children: list[Box] = field(default_factory=list)
    opened: bool = False
    chosen: bool = False
    note: str = ""
    row: float = 0.0


def draw_tree(tree: ModelTree, trace: str = "") -> Image.Image:
    """An RGB picture of the tree; `trace` is the router's, empty to draw no path.

    Raises:
        TreeError: the trace is no trace of the router.
    """
    from PIL import Image, ImageDraw, ImageFont

    root = _boxes(tree, _read(trace))
    _shorten(root)
    rows = _place(root, 0)
    picture = Image.new("RGB", (WIDTH, max(1, rows) * ROW + 2 * MARGIN), PAPER)
    _draw(ImageDraw.Draw(picture), ImageFont.load_default(14), root, 0)
    return picture


def _read(trace: str) -> Mapping[str, Any]:
    if not trace.strip():
        return {}
    try:
        found = json.loads(trace)
        steps = {step["at"]: (step["opened"], step["scores"], step.get("votes", [])) for step in found["path"]}
        return {"chosen": str(found["chosen"]), "steps": steps}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TreeError("The trace is not one of the Model Tree Router. Link its output trace, or nothing.") from None


def _boxes(tree: ModelTree, seen: Mapping[str, Any]) -> Box:
    """The tree as boxes, with what the trace says of each."""
    steps, chosen = seen.get("steps", {}), seen.get("chosen")
    root = Box("models", opened=bool(seen))
    for subject in tree.subjects:
        branch = Box(subject.name)
        for style in subject.styles:
            branch.children.append(Box(style.name, [_leaf(key, chosen) for key in style.models]))
        root.children.append(branch)
    if tree.unclassified:
        root.children.append(Box(UNCLASSIFIED, [_leaf(key, chosen) for key in tree.unclassified]))
    if seen:
        _mark(root, steps)
        for branch in root.children:
            if branch.opened and branch.name != UNCLASSIFIED:
                _mark(branch, steps)
        _choose_on_path(root)
    return root


def _choose_on_path(root: Box) -> None:
    """A model may stand in many leaves. If it was chosen in an opened one, it is not marked in the others."""
    found = [(leaf, leaf.opened) for branch in root.children for leaf in branch.children]
    found += [(branch, branch.opened) for branch in root.children]
    if any(model.chosen for leaf, opened in found if opened for model in leaf.children):
        for model in (model for leaf, opened in found if not opened for model in leaf.children):
            model.chosen = False


def _leaf(key: str, chosen: str | None) -> Box:
    name = PureWindowsPath(key.rpartition(":")[2]).stem
    return Box(f"{name} (LoRA)" if key.startswith("lora:") else name, chosen=key == chosen)


def _mark(branch: Box, steps: Mapping[str, Any]) -> None:
    """Mark the children that were opened. A level without a choice has no step: all of it is open."""
    opened, scores, votes = steps.get(branch.name, ([child.name for child in branch.children], {}, []))
    for child in branch.children:
        child.opened = child.name in opened
        got = sum(vote.get("choice") == child.name for vote in votes)
        if votes:
            child.note = f"{got} of {len(votes)} votes" if got else ""
        elif child.name in scores:
            child.note = f"{scores[child.name]:.2f}"


def _shorten(root: Box) -> None:
    """Cut branches that were not opened, and then long leaves, until the picture has a size that can be shown."""
    if _rows(root) <= MOST_ROWS:
        return
    for branch in root.children:
        if not branch.opened:
            for leaf in branch.children:
                leaf.children = []
            branch.children = _cut(branch.children, SHORT)
        for leaf in branch.children:
            leaf.children = _cut(leaf.children, 12 if leaf.opened else 0)
    root.children = _cut(root.children, MOST_ROWS // 3)


def _cut(boxes: list[Box], most: int) -> list[Box]:
    """The first boxes, and what was opened or chosen, and a line that says how many more there are."""
    kept = [box for number, box in enumerate(boxes) if number < most or box.chosen or box.opened]
    left = len(boxes) - len(kept)
    return [*kept, Box(f"… {left} more")] if left else kept


def _rows(box: Box) -> int:
    return sum(_rows(child) for child in box.children) or 1


def _place(box: Box, row: int) -> int:
    """Give each box its line, in the middle of its children; return the first free one."""
    if not box.children:
        box.row = row
        return row + 1
    for child in box.children:
        row = _place(child, row)
    box.row = (box.children[0].row + box.children[-1].row) / 2
    return row


def _draw(canvas: ImageDraw.ImageDraw, font: FreeTypeFont, box: Box, level: int) -> None:
    """A box, the lines to its children, and the children."""
    left, y = COLUMNS[level], _y(box)
    colour = CHOSEN if box.chosen else PATH if box.opened else INK
    if box.chosen or (box.opened and level):
        canvas.ellipse((left - 12, y - 4, left - 4, y + 4), fill=colour)
    name = _fitting(canvas, font, box.name, 250 if level else 120)
    canvas.text((left, y), name, fill=colour, font=font, anchor="lm")
    right = left + canvas.textlength(name, font) + 8
    if box.note:
        canvas.text((right, y), box.note, fill=QUIET, font=font, anchor="lm")
        right += canvas.textlength(box.note, font) + 8
    for child in box.children:
        taken = box.opened and (child.opened or child.chosen)
        end = COLUMNS[level + 1] - 16
        _curve(canvas, (min(right, end - 40), y), (end, _y(child)), PATH if taken else QUIET, 3 if taken else 1)
        _draw(canvas, font, child, level + 1)


def _curve(
    canvas: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: str, width: int
) -> None:
    """A line that leaves and arrives level: x runs evenly, y eases in and out."""
    shares = [step / 16 for step in range(17)]
    points = [
        (start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * (3 * t**2 - 2 * t**3)) for t in shares
    ]
    canvas.line(points, fill=colour, width=width, joint="curve")


def _y(box: Box) -> float:
    return MARGIN + (box.row + 0.5) * ROW


def _fitting(canvas: ImageDraw.ImageDraw, font: FreeTypeFont, name: str, width: int) -> str:
    """The name on one line, without what cannot be drawn, cut to a width in px."""
    line = " ".join("".join(c for c in unicodedata.normalize("NFC", name) if c.isprintable()).split())[:200] or "?"
    while canvas.textlength(line, font) > width:
        line = line[:-2].rstrip("…") + "…"
    return line
