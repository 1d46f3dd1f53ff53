"""Draws how the reinforcement learning of a prompt policy goes: reward, KL divergence, length, and some candidates."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .curve import GRID, INK, LEFT, PAPER, QUIET, RIGHT, WIDTH, Rows
from .prompt_rl import Example

PANEL, GAP, TOP = 132, 40, 44
"""Height of a panel, distance between two, and margin above the first, in px."""
PANELS = {
    "reward": ("reward", "#1769d2"),
    "kl": ("KL divergence from the start, nats", "#b4541a"),
    "length": ("tokens written", "#0b8a4b"),
}
SHOWN, LETTERS = 5, 104
"""Candidates below the panels, and letters of each."""


def draw_policy(title: str, rows: Rows, examples: Sequence[Example] = ()) -> Image.Image:
    """An RGB picture with a panel for each column of the log, and the first candidates with their rewards below."""
    lines = [f"{one.reward:+.3f}   {one.prompt}  >  {one.text}" for one in examples[:SHOWN]]
    bottom = TOP + len(PANELS) * (PANEL + GAP)
    picture = Image.new("RGB", (WIDTH, bottom + 20 * len(lines)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    pen.text((LEFT, 12), title, fill=INK, font=ImageFont.load_default(18))
    for number, name in enumerate(PANELS):
        _panel(pen, TOP + number * (PANEL + GAP), name, rows)
    for number, line in enumerate(lines):
        text = line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"
        pen.text((16, bottom + 20 * number), " ".join(text.split("\n")), fill=INK, font=font)
    return picture


def _panel(pen: ImageDraw.ImageDraw, top: int, column: str, rows: Rows) -> None:
    name, colour = PANELS[column]
    font = ImageFont.load_default(14)
    values = [row[column] for row in rows]
    if not values:
        pen.text((LEFT, top), f"{name}: no step has been logged yet", fill=QUIET, font=font)
        return
    low, high = min(0.0, *values), max(0.0, *values)
    reach, last = (high - low) or 1.0, max(1.0, rows[-1]["step"])

    def y(value: float) -> float:
        return top + 20 + (PANEL - 20) * (high - value) / reach

    pen.text((LEFT, top - 4), f"{name}: {values[-1]:.3f}", fill=colour, font=font)
    for value in {low, 0.0, high}:
        pen.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value))], fill=GRID)
        pen.text((LEFT - 8, y(value)), f"{value:.3g}", fill=QUIET, font=font, anchor="rm")
    points = [(LEFT + (WIDTH - LEFT - RIGHT) * row["step"] / last, y(row[column])) for row in rows]
    pen.line(points, fill=colour, width=2)
    pen.text((WIDTH - RIGHT, top + PANEL + 2), f"{last:.0f} steps", fill=QUIET, font=font, anchor="ra")
