"""Draws how a training went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .loop import LOG

WIDTH, HEIGHT = 768, 432
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 48, 44
"""Margins around the lines, in px."""
PAPER, INK, QUIET, GRID = "#ffffff", "#2b2f36", "#7d8590", "#e3e6ea"
COLOURS = {"loss": "#1769d2", "told_and_shown": "#0b8a4b", "entities": "#b4541a"}
"""The columns of the log that are drawn."""
NAMES = {
    "loss": "loss",
    "told_and_shown": "error with instruction and picture, unweighted",
    "entities": "how far entities and attributes look apart",
}

Rows = Sequence[Mapping[str, float]]


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's log, oldest first; none if there is no log yet."""
    file = folder / LOG
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def draw_curve(title: str, rows: Rows) -> Image.Image:
    """An RGB picture of the losses over the steps, each row a mean; the axis begins at 0."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    pen.text((LEFT, 12), title, fill=INK, font=ImageFont.load_default(18))
    if not rows:
        pen.text((LEFT, HEIGHT // 2), "No step has been logged yet.", fill=QUIET, font=font)
        return picture
    names = [name for name in COLOURS if name in rows[0]]
    top = max(row[name] for row in rows for name in names) or 1.0
    last = max(1.0, rows[-1]["step"])
    for quarter in range(5):
        y = _y(top * quarter / 4, top)
        pen.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        pen.text((LEFT - 8, y), f"{top * quarter / 4:.3g}", fill=QUIET, font=font, anchor="rm")
        x = LEFT + (WIDTH - LEFT - RIGHT) * quarter / 4
        pen.text((x, HEIGHT - BOTTOM + 8), f"{last * quarter / 4:.0f}", fill=QUIET, font=font, anchor="ma")
    for number, name in enumerate(names):
        points = [(LEFT + (WIDTH - LEFT - RIGHT) * row["step"] / last, _y(row[name], top)) for row in rows]
        pen.line(points, fill=COLOURS[name], width=2)
        x, y = points[-1]
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=COLOURS[name])
        label = f"{NAMES[name]}: {rows[-1][name]:.4f}"
        pen.text((WIDTH - RIGHT, 8 + 18 * number), label, fill=COLOURS[name], font=font, anchor="ra")
    pen.text((WIDTH - RIGHT, HEIGHT - 6), "steps", fill=QUIET, font=font, anchor="rs")
    return picture


def draw_sheet(pictures: Mapping[str, np.ndarray], rows: Rows) -> Image.Image:
    """Pictures, uint8 [H, W, 3] by their captions, each with the start of its own under it, and the curve below."""
    width = WIDTH // len(pictures) // 8
    return draw_progress("", {caption[:width]: pixels for caption, pixels in pictures.items()}, rows)


def draw_progress(instruction: str, pictures: Mapping[str, np.ndarray], rows: Rows) -> Image.Image:
    """The pictures, uint8 [H, W, 3] by what they are, with the instruction above and the curve below them."""
    font, side = ImageFont.load_default(14), WIDTH // len(pictures)
    sheet = Image.new("RGB", (WIDTH, side + 56 + HEIGHT), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 6), instruction[:90], fill=INK, font=font)
    for number, (name, pixels) in enumerate(pictures.items()):
        picture = ImageOps.pad(Image.fromarray(pixels), (side - 8, side - 8), color=PAPER)
        sheet.paste(picture, (number * side + 4, 32))
        pen.text((number * side + side // 2, 32 + side), name, fill=QUIET, font=font, anchor="ma")
    sheet.paste(draw_curve("", rows), (0, side + 56))
    return sheet


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top
