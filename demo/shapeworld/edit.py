"""Edit instructions: a change of a scene, the sentence that asks for it, and the sentence read back.

recolour    turn the red star blue
reshape     turn the red star into a heart
retexture   make the red star striped
add         add a blue circle on the left
remove      remove the red star
background  make the background night | make it night
style       redraw it in chalk
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from .caption import STYLE_SUFFIX, Words, compose_thing, read_thing, write_thing
from .scene import BACKGROUNDS, COLOURS, PLACES, SHAPES, STYLE_SURFACE, STYLES, TEXTURES, Scene, Thing

KINDS = ("recolour", "reshape", "retexture", "add", "remove", "background", "style")
REDRAW = {style: f"redraw it {suffix}" for style, suffix in STYLE_SUFFIX.items()} | {
    "flat": "redraw it as a flat drawing",
    "chalk": "redraw it in chalk",
}


@dataclass(frozen=True)
class Edit:
    """One change. `target` names the thing that changes; `value` is the new attribute, or the new thing for `add`."""

    kind: str
    target: Words | None = None
    value: str | Words | None = None


def write_edit(edit: Edit) -> str:
    """The instruction that asks for the edit."""
    target = "the " + write_thing(edit.target).split(" ", 1)[1] if edit.target else ""
    if edit.kind in ("recolour", "retexture"):
        return f"{'turn' if edit.kind == 'recolour' else 'make'} {target} {edit.value}"
    if edit.kind == "reshape":
        return f"turn {target} into a {edit.value}"
    if edit.kind == "add":
        return f"add {write_thing(edit.value)}"
    if edit.kind == "remove":
        return f"remove {target}"
    if edit.kind == "background":
        return "make it night" if edit.value == "night" else f"make the background {edit.value}"
    return REDRAW[edit.value]


def read_edit(instruction: str) -> Edit:
    """The edit that an instruction asks for. Raises ValueError when it is not in the grammar."""
    text = instruction.strip().rstrip(".").lower()
    for style, sentence in REDRAW.items():
        if text == sentence:
            return Edit("style", value=style)
    if match := re.fullmatch(r"make (?:it|the background) (\w+)", text):
        if match[1] in BACKGROUNDS:
            return Edit("background", value=match[1])
    elif match := re.fullmatch(r"turn the (.+) into an? (\w+)", text):
        if match[2] in SHAPES:
            return Edit("reshape", read_thing(match[1], instruction), match[2])
    elif match := re.fullmatch(r"(?:turn|make) the (.+) (\w+)", text):
        if match[2] in COLOURS:
            return Edit("recolour", read_thing(match[1], instruction), match[2])
        if match[2] in TEXTURES:
            return Edit("retexture", read_thing(match[1], instruction), match[2])
    elif match := re.fullmatch(r"add (an? .+)", text):
        return Edit("add", value=read_thing(match[1], instruction))
    elif match := re.fullmatch(r"remove the (.+)", text):
        return Edit("remove", read_thing(match[1], instruction))
    raise ValueError(f"cannot read the instruction '{instruction}'")


def find(scene: Scene, words: Words) -> int:
    """The index of the one thing that the words name. Raises ValueError when there is none, or more than one."""
    hits = [i for i, thing in enumerate(scene.things) if matches(thing, words)]
    if len(hits) != 1:
        raise ValueError(f"'{write_thing(words)}' names {len(hits)} things")
    return hits[0]


def matches(thing: Thing, words: Words) -> bool:
    """Whether everything that the words say holds for the thing."""
    return all(
        said in (None, getattr(thing, name))
        for name, said in (
            ("shape", words.shape),
            ("colour", words.colour),
            ("size", words.size),
            ("texture", words.texture),
            ("place", words.place),
        )
    )


def apply_edit(scene: Scene, edit: Edit, rng: np.random.Generator) -> Scene:
    """The scene after the edit; all else stays. Raises ValueError when the edit does not fit the scene."""
    if edit.kind == "background":
        return replace(scene, background=edit.value)
    if edit.kind == "style":
        return replace(scene, style=edit.value)
    if edit.kind == "add":
        new = compose_thing(edit.value, list(scene.things), len(scene.things) + 1, rng)
        return replace(scene, things=(*scene.things, new))
    index = find(scene, edit.target)
    if edit.kind == "remove":
        return replace(scene, things=scene.things[:index] + scene.things[index + 1 :])
    field = {"recolour": "colour", "reshape": "shape", "retexture": "texture"}[edit.kind]
    return scene.with_thing(index, **{field: edit.value})


def random_edit(scene: Scene, rng: np.random.Generator) -> Edit:
    """An edit that fits the scene and changes what is seen."""
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    target = Words(thing.shape, thing.colour)
    unique = sum(matches(other, target) for other in scene.things) == 1
    kinds = ["add", "style"]
    if scene.style not in STYLE_SURFACE:
        kinds.append("background")
    if unique:
        kinds += ["recolour", "reshape"]
        kinds += ["retexture"] if scene.style in ("flat", "sticker") else []
        kinds += ["remove"] if len(scene.things) > 1 else []
    kind = str(rng.choice(kinds))

    def other(words: tuple[str, ...] | dict[str, object], now: str) -> str:
        return str(rng.choice([word for word in words if word != now]))

    if kind == "add":
        return Edit(
            "add",
            value=Words(
                str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), "small", None, str(rng.choice(list(PLACES)))
            ),
        )
    if kind == "style":
        return Edit("style", value=other(STYLES, scene.style))
    if kind == "background":
        return Edit("background", value=other(BACKGROUNDS, scene.background))
    if kind == "remove":
        return Edit("remove", target)
    values = {
        "recolour": (COLOURS, thing.colour),
        "reshape": (SHAPES, thing.shape),
        "retexture": (TEXTURES, thing.texture),
    }
    return Edit(kind, target, other(*values[kind]))
