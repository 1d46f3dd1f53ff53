"""Scenes as data, and the random scenes that the models are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 75),
    "cyan": (60, 200, 215),
    "blue": (45, 85, 210),
    "purple": (135, 60, 175),
    "pink": (245, 130, 185),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.13, 0.16), "medium": (0.20, 0.24), "large": (0.29, 0.36)}
SIZES_OF_COUNT = {1: ("small", "medium", "large", "large"), 2: ("small", "medium", "medium"), 3: ("small", "medium")}
"""Sizes in a random scene, by the number of its things; a larger number has small ones alone."""
TEXTURES = ("plain", "striped", "dotted", "shiny")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 242),
    "gray": (150, 150, 150),
    "black": (22, 22, 24),
    "sky": (190, 218, 242),
    "sand": (228, 208, 165),
    "night": (20, 26, 66),
}
STYLES = ("flat", "chalk", "neon", "sticker")
STYLE_SURFACE: dict[str, tuple[int, int, int]] = {
    "chalk": (40, 54, 48),
    "neon": (40, 14, 56),
    "sticker": (172, 130, 92),
}
"""Styles that bring a surface of their own; the scene's background does not show in them."""

PLACES: dict[str, tuple[float, float]] = {
    "in the middle": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the top left": (0.25, 0.25),
    "in the top right": (0.75, 0.25),
    "in the bottom left": (0.25, 0.75),
    "in the bottom right": (0.75, 0.75),
}
RELATIONS = ("above", "below", "left of", "right of")
MARGIN = 0.03
"""Smallest gap between two objects and to the border, as a share of the picture's side."""


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` (centre) and `radius` are shares of the picture's side; `angle` is in degrees."""

    shape: str
    colour: str
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2
    angle: float = 0.0

    @property
    def size(self) -> str:
        """The size word whose range lies nearest to the radius."""
        return min(SIZES, key=lambda word: abs(self.radius - sum(SIZES[word]) / 2))

    @property
    def place(self) -> str:
        """The place word whose point lies nearest to the centre."""
        return nearest_place(self.x, self.y)


@dataclass(frozen=True)
class Scene:
    """What is in a picture."""

    things: tuple[Thing, ...]
    background: str = "white"
    style: str = "flat"

    def with_thing(self, index: int, **changes: object) -> Scene:
        """The same scene with the thing at `index` changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)
        return replace(self, things=tuple(things))


def nearest_place(x: float, y: float) -> str:
    """The place word for a point given as shares of the picture's side."""
    return min(PLACES, key=lambda word: (PLACES[word][0] - x) ** 2 + (PLACES[word][1] - y) ** 2)


def relation(a: Thing, b: Thing) -> str:
    """How `a` lies to `b`, by the larger of the two distances."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dy) >= abs(dx):
        return "above" if dy < 0 else "below"
    return "left of" if dx < 0 else "right of"


def fits(thing: Thing, others: list[Thing]) -> bool:
    """Whether `thing` lies inside the picture and apart from `others`."""
    edge = thing.radius + MARGIN
    if not (edge <= thing.x <= 1 - edge and edge <= thing.y <= 1 - edge):
        return False
    return all((thing.x - o.x) ** 2 + (thing.y - o.y) ** 2 >= (thing.radius + o.radius + MARGIN) ** 2 for o in others)


def random_place(rng: np.random.Generator, radius: float, others: list[Thing], tries: int = 200) -> tuple[float, float]:
    """A free centre for a thing of this radius. Raises ValueError when there is none."""
    edge = radius + MARGIN
    for _ in range(tries):
        x, y = rng.uniform(edge, 1 - edge, 2)
        if fits(Thing("circle", "red", x=x, y=y, radius=radius), others):
            return float(x), float(y)
    raise ValueError(f"no room for a thing of radius {radius:.2f} beside {len(others)} others")


def random_thing(rng: np.random.Generator, others: list[Thing], sizes: tuple[str, ...]) -> Thing:
    """A thing with random attributes at a free place."""
    low, high = SIZES[str(rng.choice(sizes))]
    radius = float(rng.uniform(low, high))
    x, y = random_place(rng, radius, others)
    texture = "plain" if rng.random() < 0.55 else str(rng.choice(TEXTURES[1:]))
    return Thing(
        str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), texture, x, y, radius, float(rng.uniform(-10, 10))
    )


def random_scene(
    rng: np.random.Generator,
    count: int | None = None,
    style_share: dict[str, float] | None = None,
    sizes: tuple[str, ...] | None = None,
) -> Scene:
    """A random scene of one to five things.

    `style_share` gives each style's probability (default: equal), `sizes` the sizes to choose from (default: the
    smaller, the more things there are).
    """
    if count is None:
        count = int(rng.choice([1, 2, 3, 4, 5], p=[0.45, 0.25, 0.15, 0.1, 0.05]))
    if sizes is None:
        sizes = SIZES_OF_COUNT.get(count, ("small",))
    things: list[Thing] = []
    while len(things) < count:
        try:
            things.append(random_thing(rng, things, sizes))
        except ValueError:
            things.clear()
    shares = style_share or {style: 1 / len(STYLES) for style in STYLES}
    style = str(rng.choice(list(shares), p=list(shares.values())))
    return Scene(tuple(things), str(rng.choice(list(BACKGROUNDS))), style)
