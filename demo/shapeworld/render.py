"""Draws a scene at any size, with anti-aliasing. The same scene gives the same picture, always."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .scene import BACKGROUNDS, COLOURS, STYLE_SURFACE, Scene, Thing

SUPERSAMPLING = 4


def outline(shape: str, angle: float = 0.0) -> np.ndarray:
    """Corners [N, 2] of a shape of radius 1 around the origin, y downwards, turned by `angle` degrees."""
    if shape == "circle":
        points = _ring(64, 1.0) * 0.9
    elif shape == "square":
        points = _ring(4, 1.0, 45) * 1.1
    elif shape == "triangle":
        points = _ring(3, 1.0, -90) * 1.1 + np.array([0.0, 0.15])
    elif shape == "star":
        points = np.empty((10, 2))
        points[0::2], points[1::2] = _ring(5, 1.1, -90), _ring(5, 0.46, -54)
    elif shape == "heart":
        t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        points = np.stack([x, y - 2.5], 1) / 16.0
    elif shape == "cross":
        a, b = 0.34, 1.0
        quarter = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
        points = np.array(quarter + [(-x, -y) for x, y in quarter])
    else:
        raise ValueError(f"unknown shape '{shape}'")
    turn = np.deg2rad(angle)
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _ring(corners: int, radius: float, start: float = 0.0) -> np.ndarray:
    angles = np.deg2rad(start) + np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The scene as an RGB picture of `size` x `size` pixels."""
    side = size * SUPERSAMPLING
    surface = STYLE_SURFACE.get(scene.style, BACKGROUNDS[scene.background])
    picture = Image.new("RGB", (side, side), surface)
    draw = {"chalk": _draw_chalk, "neon": _draw_neon, "sticker": _draw_sticker}.get(scene.style, _draw_flat)
    for thing in scene.things:
        draw(picture, thing, side)
    return picture.reduce(SUPERSAMPLING)


def _points(thing: Thing, side: int) -> list[tuple[float, float]]:
    centre = np.array([thing.x, thing.y])
    return [tuple(p) for p in (outline(thing.shape, thing.angle) * thing.radius + centre) * side]


def _mask(thing: Thing, side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).polygon(_points(thing, side), fill=255)
    return mask


def _tint(colour: tuple[int, int, int], towards: int, share: float) -> tuple[int, int, int]:
    return tuple(round(c + (towards - c) * share) for c in colour)


def _draw_flat(picture: Image.Image, thing: Thing, side: int) -> None:
    colour = COLOURS[thing.colour]
    mask = _mask(thing, side)
    picture.paste(colour, mask=mask)
    if thing.texture != "plain":
        tint, pattern = _texture(thing, side, colour)
        picture.paste(tint, mask=ImageChops.multiply(mask, pattern))


def _texture(thing: Thing, side: int, colour: tuple[int, int, int]) -> tuple[tuple[int, int, int], Image.Image]:
    """The second colour of a textured thing, and where it lies."""
    pattern = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(pattern)
    x, y, r = thing.x * side, thing.y * side, thing.radius * side
    if thing.texture == "striped":
        step = 0.44 * r
        for k in range(-3, 4):
            pen.rectangle([x - 1.3 * r, y + k * step - step / 4, x + 1.3 * r, y + k * step + step / 4], fill=255)
        return _tint(colour, 0, 0.45), pattern
    if thing.texture == "dotted":
        step, dot = 0.5 * r, 0.14 * r
        for i in range(-3, 4):
            for j in range(-3, 4):
                cx, cy = x + i * step, y + j * step
                pen.ellipse([cx - dot, cy - dot, cx + dot, cy + dot], fill=255)
        return _tint(colour, 255, 0.75), pattern
    shine = 0.42 * r
    cx, cy = x - 0.22 * r, y - 0.22 * r
    pen.ellipse([cx - shine, cy - shine, cx + shine, cy + shine], fill=230)
    return _tint(colour, 255, 0.9), pattern.filter(ImageFilter.GaussianBlur(0.18 * r))


def _draw_chalk(picture: Image.Image, thing: Thing, side: int) -> None:
    """Slanted strokes inside a firm line, in a pale colour."""
    colour = _tint(COLOURS[thing.colour], 255, 0.18)
    mask = _mask(thing, side)
    strokes = Image.new("L", (side, side), 70)
    pen = ImageDraw.Draw(strokes)
    step = side / 128 * 7
    for k in range(int(2 * side / step)):
        pen.line([(k * step, 0), (k * step - side, side)], fill=235, width=round(step * 0.55))
    picture.paste(colour, mask=ImageChops.multiply(mask, strokes))
    edge = Image.new("L", (side, side), 0)
    points = _points(thing, side)
    ImageDraw.Draw(edge).line([*points, *points[:2]], fill=255, width=round(side / 128 * 3), joint="curve")
    picture.paste(colour, mask=edge)


def _draw_neon(picture: Image.Image, thing: Thing, side: int) -> None:
    """A bright tube along the outline with a glow around it; the inside is dim."""
    colour = COLOURS[thing.colour]
    points = _points(thing, side)
    tube = Image.new("L", (side, side), 0)
    width = round(side * min(4.5 / 128, 0.24 * thing.radius))
    ImageDraw.Draw(tube).line([*points, *points[:2]], fill=255, width=width, joint="curve")
    glow = tube.filter(ImageFilter.GaussianBlur(side / 128 * 4)).point(lambda v: min(255, int(v * 1.1)))
    picture.paste(_tint(colour, 0, 0.55), mask=_mask(thing, side))
    picture.paste(_tint(colour, 0, 0.25), mask=glow)
    picture.paste(_tint(colour, 255, 0.12), mask=tube)


def _draw_sticker(picture: Image.Image, thing: Thing, side: int) -> None:
    """A flat thing with a broad white rim inside its outline."""
    _draw_flat(picture, thing, side)
    rim = Image.new("L", (side, side), 0)
    points = _points(thing, side)
    ImageDraw.Draw(rim).line([*points, *points[:2]], fill=255, width=round(side / 128 * 8), joint="curve")
    picture.paste((250, 250, 250), mask=ImageChops.multiply(_mask(thing, side), rim))
