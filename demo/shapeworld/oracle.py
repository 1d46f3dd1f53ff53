"""The oracle: reads a picture by plain image analysis and says what is where. No model, no knowledge of the prompt."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.color import rgb2lab

from .caption import Description, Words
from .render import outline
from .scene import BACKGROUNDS, COLOURS, SHAPES, STYLE_SURFACE, Thing, relation

SIDE = 128
"""Pictures are read at this size; others are resized first."""
FOREGROUND = 17.0
"""Lab distance from the background above which a pixel belongs to a thing."""
CHROMA = 16.0
"""Pixels paler than this say nothing about a thing's colour."""
SMALLEST = 60
"""Components of fewer pixels are dust."""
SURE = 0.6
"""Overlap with a shape's template below which the shape counts as unclear."""
UNCLEAR = 0.3
"""What a thing of unclear shape takes from a reading, where the overlap of a clear one adds to it."""
TEMPLATE = 48
"""Side in pixels of a shape's template."""
STRETCH = 1.25
"""A shape may be so much longer in one direction than it should be."""
TUBE, SMALL = 0.24, 22.0
"""Width of a neon tube in radii, for things of at most so many pixels from centre to edge; others have thin tubes."""
GROUNDS = BACKGROUNDS | STYLE_SURFACE


@dataclass(frozen=True)
class Seen:
    """A thing in a picture. `shape` is None when no template fits; `fit` is the overlap with the best one."""

    shape: str | None
    colour: str | None
    x: float
    y: float
    radius: float
    fit: float


@dataclass(frozen=True)
class Sight:
    """What the oracle sees. `things` are sorted from large to small."""

    things: tuple[Seen, ...]
    background: str
    style: str


def look(picture: Image.Image | np.ndarray) -> Sight:
    """Reads an RGB picture (a PIL image, or an array [H, W, 3] of uint8 or of floats in 0..1)."""
    if isinstance(picture, np.ndarray) and picture.dtype != np.uint8:
        picture = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    rgb = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255
    lab = rgb2lab(ndimage.median_filter(rgb, size=(3, 3, 1)))
    ring = np.concatenate(
        [lab[:3].reshape(-1, 3), lab[-3:].reshape(-1, 3), lab[:, :3].reshape(-1, 3), lab[:, -3:].reshape(-1, 3)]
    )
    surface = np.median(ring, 0)
    contrast = np.linalg.norm(lab - surface, axis=-1)
    ground = _nearest(surface, GROUNDS)
    pieces = _pieces(contrast > FOREGROUND)
    things = [thing for piece in pieces for thing in _best_reading(piece, contrast, lab, ground == "neon")]
    things.sort(key=lambda seen: -seen.radius)
    return Sight(tuple(things), _nearest(surface, BACKGROUNDS), ground if ground in STYLE_SURFACE else "flat")


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, without dust."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    return [labels == index for index in range(1, len(sizes)) if sizes[index] >= SMALLEST // 2]


def _best_reading(piece: np.ndarray, contrast: np.ndarray, lab: np.ndarray, tubes: bool) -> list[Seen]:
    """The things in a connected piece: taken as a whole, or cut by colour where that fits the templates better. Things
    of two colours may touch; a shine or a stripe is no thing of its own. `tubes`: they may have bright lines around."""
    best: tuple[float, list[Seen]] = (-np.inf, [])
    for parts, lines in itertools.product(([piece], _by_colour(piece, lab)), (False, True) if tubes else (False,)):
        masks = [mask for part in parts for mask in (_within_lines(part, contrast) if lines else _solids(part))]
        seen = [_identify(mask, contrast, lab, lines) for mask in masks]
        clear = sum(-UNCLEAR if thing.shape is None else thing.fit for thing in seen)
        if seen and clear > best[0]:
            best = clear, seen
    return best[1]


def _by_colour(part: np.ndarray, lab: np.ndarray) -> list[np.ndarray]:
    """The part as it is, or one piece for each colour where things of several colours touch."""
    names = np.where(np.hypot(lab[..., 1], lab[..., 2]) > CHROMA, _hue_names(lab), len(COLOURS))
    sizes = np.bincount(names[part], minlength=len(COLOURS) + 1)[: len(COLOURS)]
    several = [c for c in np.argsort(-sizes) if sizes[c] >= max(SMALLEST, 0.22 * part.sum())]
    if len(several) < 2:
        return [part]
    pieces = [_pieces(ndimage.binary_opening(part & (names == c))) for c in several]
    return [max(found, key=np.sum) for found in pieces if found]


def _solids(part: np.ndarray) -> list[np.ndarray]:
    """The part with its holes filled, cut where only a thin bridge joins two things."""
    return [mask for mask in _apart(ndimage.binary_fill_holes(part)) if mask.sum() >= SMALLEST]


def _within_lines(part: np.ndarray, contrast: np.ndarray) -> list[np.ndarray]:
    """What the bright lines of a part enclose, with the lines. A glow joins neighbours; its bright half does not."""
    bright = part & (contrast > 0.55 * np.percentile(contrast[part], 98))
    return [mask for mask in _pieces(ndimage.binary_fill_holes(bright)) if mask.sum() >= SMALLEST]


def _apart(mask: np.ndarray) -> list[np.ndarray]:
    """The mask cut where only a thin bridge joins things of one colour; each pixel goes to the nearest thing."""
    cores = [core for core in _pieces(ndimage.binary_opening(mask, iterations=2)) if core.sum() >= SMALLEST]
    if len(cores) < 2:
        return [mask]
    distance = [ndimage.distance_transform_edt(~core) for core in cores]
    nearest = np.argmin(distance, 0)
    return [mask & (nearest == index) for index in range(len(cores))]


@cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Lab colours [C, 3] and their hue angles [C]."""
    lab = rgb2lab(np.array(list(COLOURS.values()), np.float64)[None] / 255)[0]
    return lab, np.arctan2(lab[:, 2], lab[:, 1])


def _hue_names(lab: np.ndarray) -> np.ndarray:
    """The index of the colour with the nearest hue, for each pixel [H, W]."""
    hue = np.arctan2(lab[..., 2], lab[..., 1])
    distance = np.abs(np.angle(np.exp(1j * (hue[..., None] - _palette()[1]))))
    return distance.argmin(-1)


def _nearest(colour: np.ndarray, named: dict[str, tuple[int, int, int]]) -> str:
    lab = rgb2lab(np.array(list(named.values()), np.float64)[None] / 255)[0]
    return list(named)[int(np.linalg.norm(lab - colour, axis=-1).argmin())]


def _identify(mask: np.ndarray, contrast: np.ndarray, lab: np.ndarray, is_tube: bool) -> Seen:
    """Names the shape by its templates and the colour by a vote of its pixels, weighted by chroma."""
    ys, xs = np.nonzero(mask)
    centre_y, centre_x = (ys.min() + ys.max()) / 2, (xs.min() + xs.max()) / 2
    half_y, half_x = np.ptp(ys) / 2 + 0.5, np.ptp(xs) / 2 + 0.5
    half = max(half_y, half_x)
    grid = (np.arange(TEMPLATE) + 0.5) / TEMPLATE * 2 - 1
    names, templates = _templates(TUBE if is_tube and half < SMALL else 0.0)
    coverage, overlaps = _coverage(mask, contrast), []
    for least in (half, half / STRETCH):
        where = np.meshgrid(centre_y + grid * max(half_y, least), centre_x + grid * max(half_x, least), indexing="ij")
        patch = ndimage.map_coordinates(coverage, where, order=1)
        overlaps.append(np.minimum(patch, templates).sum((1, 2)) / np.maximum(patch, templates).sum((1, 2)))
    overlap = np.max(overlaps, 0)
    best = int(overlap.argmax())
    shape = names[best] if overlap[best] >= SURE else None
    weight = np.hypot(lab[..., 1], lab[..., 2]) * mask
    weight[weight < CHROMA] = 0
    votes = np.bincount(_hue_names(lab).ravel(), weight.ravel(), len(COLOURS))
    colour = list(COLOURS)[int(votes.argmax())] if votes.sum() > CHROMA * 10 else None
    return Seen(shape, colour, centre_x / SIDE, centre_y / SIDE, half / SIDE, float(overlap[best]))


def _coverage(mask: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """How much of each pixel the thing covers, in 0..1: its inside counts in full, its rim by its contrast."""
    inside = ndimage.binary_erosion(mask, iterations=3)
    full = max(FOREGROUND, np.median(contrast[inside if inside.any() else mask]))
    return np.where(inside, 1.0, (contrast / full).clip(0, 1) * mask)


@cache
def _templates(tube: float = 0.0) -> tuple[list[str], np.ndarray]:
    """Shape names [T] and coverages [T, 48, 48] of every shape at several angles, fitted to their bounding boxes.

    `tube` is the width of a line around each shape, in radii.
    """
    names, masks, fine = [], [], 4 * TEMPLATE
    for shape in SHAPES:
        for angle in (0,) if shape == "circle" else range(-12, 13, 4):
            points = outline(shape, angle)
            low, high = points.min(0), points.max(0)
            scale = fine / ((high - low).max() + tube)
            corners = [tuple(p) for p in (points - (low + high) / 2) * scale + fine / 2]
            image = Image.new("L", (fine, fine))
            ImageDraw.Draw(image).polygon(corners, fill=255)
            if tube:
                line = [*corners, *corners[:2]]
                ImageDraw.Draw(image).line(line, fill=255, width=round(tube * scale), joint="curve")
            names.append(shape)
            masks.append(np.asarray(image.reduce(4), np.float64) / 255)
    return names, np.stack(masks)


def agrees(seen: Seen, words: Words) -> bool:
    """Whether the colour and the shape that the words name are what is seen."""
    return words.colour in (None, seen.colour) and words.shape in (None, seen.shape)


def assign(sight: Sight, description: Description) -> list[Seen | None]:
    """For each described thing a seen one that agrees with it, each seen thing used once; None where there is none."""
    from scipy.optimize import linear_sum_assignment

    if not sight.things:
        return [None] * len(description.things)
    good = np.array([[agrees(seen, words) for seen in sight.things] for words in description.things])
    rows, columns = linear_sum_assignment(~good)
    found: list[Seen | None] = [None] * len(description.things)
    for row, column in zip(rows, columns, strict=True):
        if good[row, column]:
            found[row] = sight.things[column]
    return found


def score(sight: Sight, description: Description) -> float:
    """The share of what the description says that the picture shows: things (colour and shape bound), their
    relations, the background, the style, and the number of things."""
    found = assign(sight, description)
    points = [float(seen is not None) for seen in found]
    for i, rel, j in description.relations:
        a, b = found[i], found[j]
        points.append(float(a is not None and b is not None and _relation(a, b) == rel))
    if description.style is not None:
        points.append(float(sight.style == description.style))
    if description.background is not None:
        points.append(float(sight.background == description.background))
    points.append(float(len(sight.things) == len(description.things)))
    return float(np.mean(points))


def _relation(a: Seen, b: Seen) -> str:
    return relation(Thing("circle", "red", x=a.x, y=a.y), Thing("circle", "red", x=b.x, y=b.y))
