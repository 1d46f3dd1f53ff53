"""Draws some pairs of an edit data set, each with its instruction, as one picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .edit_shards import EditSample

PAIRS, COLUMNS = 12, 3
"""Pairs on a sheet, and pairs in a row."""
SIDE, GAP, LABEL = 192, 12, 44
"""Side of a picture, space around a pair, and height of the two lines under it, in px."""
PAPER, INK, QUIET = "#ffffff", "#2b2f36", "#7d8590"


def one_of_each(samples: Iterable[EditSample]) -> list[EditSample]:
    """The first sample of each triplet, of `PAIRS` triplets at the most."""
    seen: set[str] = set()

    def new(sample: EditSample) -> bool:
        triplet = sample.key.partition("-")[0]
        return triplet not in seen and not seen.add(triplet)

    return list(islice(filter(new, samples), PAIRS))


def draw_edit_sheet(samples: Sequence[EditSample]) -> Image.Image:
    """An RGB picture: before and after side by side, under them the instruction and the similarities."""
    columns = min(COLUMNS, max(1, len(samples)))
    wide, high = 2 * SIDE + GAP, SIDE + LABEL + GAP
    rows = max(1, -(-len(samples) // columns))
    sheet = Image.new("RGB", (columns * wide + GAP, rows * high + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    if not samples:
        pen.text((GAP, GAP), "No pair was kept; the report says why.", fill=INK, font=ImageFont.load_default(16))
    for place, sample in enumerate(samples):
        x, y = GAP + place % columns * wide, GAP + place // columns * high
        for number, pixels in enumerate((sample.before, sample.after)):
            picture = ImageOps.contain(Image.fromarray(pixels), (SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(picture, (x + number * SIDE, y))
        pen.text((x, y + SIDE + 4), _fit(pen, sample.instruction, 15, 2 * SIDE), INK, ImageFont.load_default(15))
        figures = [f"share {sample.share:.2f}"]
        if sample.similarities:
            figures += [f"direction {sample.similarities['directional']:.2f}"]
            figures += [f"pictures {sample.similarities['image_image']:.2f}"]
        pen.text((x, y + SIDE + 24), "  ".join(figures), QUIET, ImageFont.load_default(12))
    return sheet


def _fit(pen: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """The text on one line, cut to a width in px."""
    font = ImageFont.load_default(size)
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
