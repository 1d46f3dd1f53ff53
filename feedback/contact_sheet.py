"""Draws a session as a contact sheet: a row for each round, each picture with its rating and its scores."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from .records import PEOPLE, Rating, StoredImage

if TYPE_CHECKING:
    from .rounds import Judged, Round

CELL, GAP, MARGIN, FRAME = 168, 16, 28, 7
"""Side of a picture, space between two, space around all, and the frame of a rating of full strength, in px."""
COLUMNS, FEWEST, MOST = 8, 4, 24
"""Pictures in a line, the fewest that the width has room for, and the most of one round."""
HEAD, CAPTION, LABEL = 64, 52, 28
"""Heights of the sheet's head, of a round's caption and of the line under a picture, in px."""
PAPER, INK, QUIET, LINE, BLANK = "#ffffff", "#2b2f36", "#7d8590", "#e3e6ea", "#f1f3f5"
LIKED, DISLIKED = "#12944f", "#d03b3b"

Load = Callable[[StoredImage], Image.Image | None]


def draw_sheet(session: str, rounds: Sequence[Round], load: Load) -> Image.Image:
    """An RGB picture of the rounds, oldest first. `load` gives a picture, None when its file is gone."""
    scorers = list(dict.fromkeys(name for r in rounds for one in r.pictures for name in one.scores))
    columns = max([FEWEST, *(min(COLUMNS, len(r.pictures)) for r in rounds)])
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    heights = [CAPTION + _lines(r) * (CELL + LABEL + GAP) + GAP for r in rounds]
    legend = 20 * len(scorers) if len(scorers) > 1 else 0
    top = MARGIN + HEAD + legend
    sheet = Image.new("RGB", (width, top + sum(heights) + (MARGIN if rounds else 0)), PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_head(pen, session, rounds, scorers, width - 2 * MARGIN)
    for one, height in zip(rounds, heights, strict=True):
        _draw_round(sheet, pen, one, scorers, top, width - 2 * MARGIN, load)
        top += height
    return sheet


def _lines(one: Round) -> int:
    return -(-min(len(one.pictures), MOST) // COLUMNS)


def _draw_head(
    pen: ImageDraw.ImageDraw, session: str, rounds: Sequence[Round], scorers: Sequence[str], width: int
) -> None:
    pen.text((MARGIN, MARGIN), _fit(pen, f"Session {session}", _font(22), width), fill=INK, font=_font(22))
    if not rounds:
        pen.text((MARGIN, MARGIN + 32), "There are no pictures in this session yet.", fill=QUIET, font=_font(14))
        return
    values = [one.rating.value for r in rounds for one in r.pictures if one.rating]
    said = [
        f"rounds {rounds[0].number} to {rounds[-1].number}" if len(rounds) > 1 else f"round {rounds[0].number}",
        f"{sum(len(r.pictures) for r in rounds)} pictures",
        f"{values.count(1)} liked",
        f"{values.count(-1)} disliked",
    ]
    if len(scorers) == 1:
        said.append(f"score: {scorers[0]}")
    pen.text((MARGIN, MARGIN + 32), _fit(pen, ", ".join(said), _font(14), width), fill=QUIET, font=_font(14))
    for i, name in enumerate(scorers if len(scorers) > 1 else ()):
        text = _fit(pen, f"{_letter(i)}: {name}", _font(14), width)
        pen.text((MARGIN, MARGIN + 52 + 20 * i), text, fill=QUIET, font=_font(14))


def _draw_round(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    one: Round,
    scorers: Sequence[str],
    top: int,
    width: int,
    load: Load,
) -> None:
    pen.line((MARGIN, top, MARGIN + width, top), fill=LINE, width=1)
    name, means = f"Round {one.number}", _means(one, scorers)
    pen.text((MARGIN, top + 14), name, fill=INK, font=_font(16))
    left = MARGIN + pen.textlength(name, _font(16)) + 14
    right = MARGIN + width - pen.textlength(means, _font(14))
    pen.text((right, top + 16), means, fill=QUIET, font=_font(14))
    prompts = list(dict.fromkeys(picture.image.prompt for picture in one.pictures))
    text = " / ".join(filter(None, prompts)) or "no prompt is known"
    pen.text((left, top + 16), _fit(pen, text, _font(14), right - 20 - left), fill=QUIET, font=_font(14))
    hidden = len(one.pictures) - MOST
    for i, picture in enumerate(one.pictures[:MOST]):
        x = MARGIN + i % COLUMNS * (CELL + GAP)
        y = top + CAPTION + i // COLUMNS * (CELL + LABEL + GAP)
        _draw_picture(sheet, pen, picture, (x, y), load)
        label = f"… and {hidden} more" if hidden > 0 and i + 1 == MOST else _score_text(picture, scorers)
        pen.text((x, y + CELL + 10), _fit(pen, label, _font(13), CELL), fill=INK, font=_font(13))
        if picture.rating:
            _draw_rating(pen, picture.rating, (x, y), CELL - pen.textlength(label, _font(13)) - 8)


def _draw_picture(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Judged, place: tuple[int, int], load: Load
) -> None:
    """The picture in the middle of its square, or a crossed square that says that it is gone."""
    x, y = place
    square = (x, y, x + CELL - 1, y + CELL - 1)
    pen.rectangle(square, fill=BLANK)
    found = load(picture.image)
    if found is None:
        pen.line((x, y, x + CELL - 1, y + CELL - 1), fill=LINE, width=2)
        pen.line((x, y + CELL - 1, x + CELL - 1, y), fill=LINE, width=2)
        pen.text((x + CELL / 2, y + CELL / 2), "file is gone", fill=QUIET, font=_font(14), anchor="mm")
        return
    scale = CELL / max(found.size)
    size = tuple(max(1, round(side * scale)) for side in found.size)
    small = found.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (CELL - size[0]) // 2, y + (CELL - size[1]) // 2))


def _draw_rating(pen: ImageDraw.ImageDraw, rating: Rating, place: tuple[int, int], room: float) -> None:
    """A frame as thick as the rating is strong, a sign in the corner, and who gave it."""
    x, y = place
    colour = LIKED if rating.value > 0 else DISLIKED
    thick = max(2, round(FRAME * rating.strength))
    pen.rectangle((x - thick, y - thick, x + CELL - 1 + thick, y + CELL - 1 + thick), outline=colour, width=thick)
    pen.ellipse((x + 6, y + 6, x + 30, y + 30), fill=colour)
    up = 1 if rating.value > 0 else -1
    middle = (x + 18, y + 18)
    pen.line((middle[0], middle[1] + 6, middle[0], middle[1] - 6), fill=PAPER, width=3)
    tip = middle[1] - 7 * up
    pen.polygon(((middle[0] - 6, tip + 6 * up), (middle[0] + 6, tip + 6 * up), (middle[0], tip)), fill=PAPER)
    by = "" if rating.source in PEOPLE else rating.source.partition("/")[0]
    strength = "" if rating.strength == 1 else f"{rating.strength:.2g}"
    text = _fit(pen, " ".join(filter(None, (by, strength))), _font(13), room)
    pen.text((x + CELL - 1, y + CELL + 10), text, fill=colour, font=_font(13), anchor="ra")


def _score_text(picture: Judged, scorers: Sequence[str]) -> str:
    """The scores, with the letter of the scorer where there are several."""
    named = [(_letter(i) if len(scorers) > 1 else "", name) for i, name in enumerate(scorers)]
    return "  ".join(f"{letter} {picture.scores[name]:.3f}".strip() for letter, name in named if name in picture.scores)


def _means(one: Round, scorers: Sequence[str]) -> str:
    """The mean score of the round by each scorer."""
    said = []
    for i, name in enumerate(scorers):
        values = [picture.scores[name] for picture in one.pictures if name in picture.scores]
        if values:
            said.append(f"mean {_letter(i)} {fmean(values):.3f}" if len(scorers) > 1 else f"mean {fmean(values):.3f}")
    return "  ".join(said)


def _letter(number: int) -> str:
    return ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)


def _font(size: int) -> FreeTypeFont:
    return ImageFont.load_default(size)


def _fit(pen: ImageDraw.ImageDraw, text: str, font: FreeTypeFont, width: float) -> str:
    """The text on one line, cut to a width in px. Pillow's font has no accents, so they are taken off."""
    bare = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    line = " ".join("".join(c if c.isprintable() else " " for c in bare).split())[:400]
    if pen.textlength(line, font) <= width:
        return line
    while line and pen.textlength(line + "…", font) > width:
        line = line[:-1]
    return line.rstrip() + "…" if line else ""
