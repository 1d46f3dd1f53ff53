"""Draws the edits of a guidance grid with their scales."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .as_image import as_image

GAP = 8
PAPER, INK, QUIET = "#ffffff", "#2b2f36", "#7d8590"


def draw_grid(edits: Tensor, columns: Sequence[float], rows: Sequence[float], title: str) -> Tensor:
    """A picture [1, h, w, 3] of edits [rows x columns, H, W, 3] in 0..1, text scales across, image scales down."""
    height, width = edits.shape[1:3]
    size = max(12, min(width, height) // 10)
    font, line = ImageFont.load_default(size), round(size * 1.6)
    left, top = round(size * 5.6), 2 * line + GAP
    sheet = Image.new("RGB", (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP // 2), _fitting(title, font, sheet.width - 2 * GAP), fill=INK, font=font)
    for at, scale in enumerate(columns):
        centre = left + at * (width + GAP) + width / 2
        pen.text((centre, line + GAP), f"text {scale:g}", fill=QUIET, font=font, anchor="ma")
    for at, scale in enumerate(rows):
        middle = top + at * (height + GAP) + height / 2
        pen.text((left - GAP, middle), f"image {scale:g}", fill=QUIET, font=font, anchor="rm")
        for column in range(len(columns)):
            pixels = (edits[at * len(columns) + column, ..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()
            sheet.paste(Image.fromarray(pixels), (left + column * (width + GAP), top + at * (height + GAP)))
    return as_image(sheet)


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of the text as goes on a line."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
    return text
