"""How far one like or one dislike moves the next round, where the prompt leaves something open.

To be imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from _figures import Figure, ratio, share
from _rounds import listening
from _world import Checkpoint, pack, rendered
from shapeworld.oracle import look
from shapeworld.scene import COLOURS, STYLES, Scene, Thing
from shapeworld.trial import HELD_OUT, largest
from torch import Tensor

PROMPT = "a large circle"
EACH = 32
"""Pictures for each colour or style."""

Name = Callable[[Tensor], str | None]


def colour_of(picture: Tensor) -> str | None:
    return largest(picture.numpy()).colour


def style_of(picture: Tensor) -> str | None:
    return look(picture.numpy()).style


def rendered_circle(colour: str, style: str = "flat", radius: float = 0.3) -> Tensor:
    """A picture [128, 128, 3] of what the prompt asks for, in this colour and style."""
    return rendered(Scene((Thing("circle", colour, radius=radius),), style=style))


def steering(checkpoint: Checkpoint, each: int, progress: Callable[[dict[str, Figure]], None]) -> Tensor:
    """Shares with a colour or a style, before and after one picture of it is liked or disliked.

    A sheet of pictures is the result: for each row the rated picture and the round after it.
    """
    sheet = []
    before = {name: _names(checkpoint.draw([PROMPT] * each, _seed(at)), colour_of) for at, name in enumerate(COLOURS)}
    came = [colour == name for name, colours in before.items() for colour in colours]
    for what in ("like", "dislike"):
        after: list[bool] = []
        for at, colour in enumerate(COLOURS):
            drawn = _after(checkpoint, what, rendered_circle(colour), each, _seed(at))
            after += [found == colour for found in _names(drawn, colour_of)]
            sheet.append(torch.cat([rendered_circle(colour)[None], drawn[:7]]))
        key = "like_lift" if what == "like" else "dislike_ratio"
        progress({f"{what}_before": share(came), f"{what}_after": share(after), key: ratio(after, came)})
    merged: list[bool] = []
    for at, colour in enumerate(COLOURS):
        model = _merging(checkpoint, rendered_circle(colour))
        merged += [found == colour for found in _names(checkpoint.draw([PROMPT] * each, _seed(at), model), colour_of)]
    progress({"like_merged_after": share(merged), "like_merged_lift": ratio(merged, came)})
    plain = _names(checkpoint.draw([PROMPT] * each, _seed(0)), style_of)
    styles: list[bool] = []
    for at, style in enumerate(STYLES[1:]):
        drawn = _after(checkpoint, "like", rendered_circle("yellow", style), each, _seed(at))
        styles += [found == style for found in _names(drawn, style_of)]
        sheet.append(torch.cat([rendered_circle("yellow", style)[None], drawn[:7]]))
    came = [found == style for style in STYLES[1:] for found in plain]
    progress({"like_style_before": share(came), "like_style_after": share(styles)})
    return torch.cat(sheet)


def _merging(checkpoint: Checkpoint, liked: Tensor) -> Any:
    """The model with the node's defaults and one liked picture, whose tokens are merged in the layers of full
    resolution. They have 256 tokens here, fewer than those in which the node would merge."""
    pack()
    from atelier.attention.patches import apply_fabric, encode_pictures, encode_text
    from atelier.attention.schedule import FabricSchedule

    latents = encode_pictures(checkpoint.vae, [liked], "liked")
    schedule = FabricSchedule(0.8, 0.0, 0.5, 0.0, 0.5, merge_above=64)
    return apply_fabric(checkpoint.model, latents, [], encode_text(checkpoint.clip, ""), schedule, True)


def _after(checkpoint: Checkpoint, what: str, picture: Tensor, each: int, seed: int) -> Tensor:
    liked, disliked = ([picture], []) if what == "like" else ([], [picture])
    return checkpoint.draw([PROMPT] * each, seed, listening(checkpoint, liked, disliked))


def _names(pictures: Tensor, name: Name) -> Sequence[str | None]:
    return [name(picture) for picture in pictures]


def _seed(at: int) -> int:
    return HELD_OUT + 1000 * (at + 1)
