"""ShapeWorld itself: words and scenes agree, and the oracle can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from shapeworld.caption import Description, Words, compose, describe, full_description, read, write
from shapeworld.edit import apply_edit, find, random_edit, read_edit, write_edit
from shapeworld.oracle import assign, look, score
from shapeworld.render import render
from shapeworld.scene import COLOURS, SHAPES, STYLE_SURFACE, STYLES, Scene, Thing, fits, random_scene, relation
from shapeworld.trial import oracle_hits

SCENES = 150


def scene_of(seed: int, **settings: object) -> tuple[Scene, np.random.Generator]:
    rng = np.random.default_rng([77, seed])
    return random_scene(rng, **settings), rng


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float64)


# --- scenes ------------------------------------------------------------------------------------------------


def test_things_never_touch_and_stay_inside() -> None:
    for seed in range(SCENES):
        things = list(scene_of(seed)[0].things)
        for i, thing in enumerate(things):
            assert fits(thing, things[:i])


def test_seed_decides_scene() -> None:
    assert scene_of(3)[0] == scene_of(3)[0]
    assert scene_of(3)[0] != scene_of(4)[0]


# --- renderer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["flat", "chalk", "neon", "sticker"])
def test_any_size_shows_the_same_picture(style: str) -> None:
    scene, _ = scene_of(5, count=2, style_share={style: 1.0})
    small, large = render(scene, 96), render(scene, 384)
    assert small.size == (96, 96) and large.size == (384, 384)
    difference = pixels(large.reduce(4)) - pixels(small)
    assert np.abs(difference).mean() < 6


def test_edges_are_smooth() -> None:
    scene = Scene((Thing("circle", "red", radius=0.3),), "white")
    values = np.unique(pixels(render(scene)).reshape(-1, 3), axis=0)
    assert len(values) > 10, "only the two plain colours: no anti-aliasing"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_fills_its_radius_and_no_more(shape: str) -> None:
    scene = Scene((Thing(shape, "red", radius=0.3),), "white")
    ys, xs = np.nonzero(np.abs(pixels(render(scene)) - 245).sum(-1) > 60)
    half = max(np.ptp(ys), np.ptp(xs)) / 2 / 128
    assert 0.22 < half <= 0.3 * 1.11


# --- words -------------------------------------------------------------------------------------------------


def test_caption_reads_back_as_it_was_meant() -> None:
    for seed in range(SCENES * 4):
        scene, rng = scene_of(seed)
        description = describe(scene, rng)
        caption = write(description, rng)
        assert read(caption) == description, caption


def test_dense_captions_name_every_thing() -> None:
    for seed in range(SCENES):
        scene, rng = scene_of(seed, count=3 + seed % 3)
        words = full_description(scene, rng).things
        assert sorted((w.shape, w.colour) for w in words) == sorted((t.shape, t.colour) for t in scene.things)


def test_composed_scene_agrees_with_its_caption() -> None:
    for seed in range(SCENES):
        scene, rng = scene_of(seed)
        description = describe(scene, rng)
        made = compose(description, rng)
        for i, rel, j in description.relations:
            assert relation(made.things[i], made.things[j]) == rel
        for thing, words in zip(made.things, description.things, strict=True):
            assert words.colour in (None, thing.colour) and words.place in (None, thing.place)


@pytest.mark.parametrize("text", ["a red dragon", "a red blue star", "", "a star above a heart above a cross"])
def test_unknown_caption_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        description = read(text)
        assert description.things == (Words(),), description
        raise ValueError("an empty caption says nothing")


def test_impossible_description_is_refused() -> None:
    words = Words("circle", "red", "large", None, "in the middle")
    with pytest.raises(ValueError, match="no scene agrees"):
        compose(Description((words, words)), np.random.default_rng(0), tries=20)


# --- edits -------------------------------------------------------------------------------------------------


def test_instruction_reads_back_and_changes_what_it_names() -> None:
    kinds = set()
    for seed in range(SCENES * 3):
        scene, rng = scene_of(seed)
        edit = random_edit(scene, rng)
        assert read_edit(write_edit(edit)) == edit, write_edit(edit)
        try:
            after = apply_edit(scene, edit, rng)
        except ValueError as error:
            assert edit.kind == "add", error
            continue
        kinds.add(edit.kind)
        assert not np.array_equal(pixels(render(scene)), pixels(render(after))), write_edit(edit)
        if edit.kind in ("recolour", "reshape", "retexture"):
            index = find(scene, edit.target)
            assert scene.things[:index] == after.things[:index]
            assert scene.things[index + 1 :] == after.things[index + 1 :]
    assert kinds == {"recolour", "reshape", "retexture", "add", "remove", "background", "style"}


# --- oracle ------------------------------------------------------------------------------------------------


def test_oracle_is_right_on_clean_pictures() -> None:
    assert np.mean(oracle_hits(SCENES, noisy=False)) >= 0.98


def test_oracle_is_right_on_mildly_noisy_pictures() -> None:
    assert np.mean(oracle_hits(SCENES, noisy=True)) >= 0.95


def test_oracle_tells_styles_and_backgrounds_apart() -> None:
    for style in STYLES:
        sights = []
        for seed in range(40):
            scene, _ = scene_of(seed, style_share={style: 1.0})
            sight = look(render(scene))
            shown = style in STYLE_SURFACE or sight.background == scene.background
            sights.append(sight.style == style and shown)
        assert np.mean(sights) >= 0.95, style


def test_oracle_sees_nothing_on_an_empty_ground() -> None:
    assert look(render(Scene((), "sand"))).things == ()


def test_oracle_parts_two_things_that_touch() -> None:
    picture = Image.new("RGB", (128, 128), (245, 245, 242))
    pen = ImageDraw.Draw(picture)
    pen.ellipse([10, 40, 62, 92], fill=COLOURS["blue"])
    pen.rectangle([61, 40, 111, 90], fill=COLOURS["orange"])
    seen = {(thing.shape, thing.colour) for thing in look(picture).things}
    assert seen == {("circle", "blue"), ("square", "orange")}


def test_oracle_takes_a_square_of_two_hues_as_one_thing() -> None:
    picture = Image.new("RGB", (128, 128), (245, 245, 242))
    pen = ImageDraw.Draw(picture)
    for k in range(8):
        pen.rectangle([34, 30 + 8 * k, 97, 37 + 8 * k], fill=COLOURS["orange" if k % 3 else "pink"])
    assert [(thing.shape, thing.colour) for thing in look(picture).things] == [("square", "orange")]


@pytest.mark.parametrize("shape", ["circle", "square", "star", "cross"])
def test_oracle_knows_a_stretched_shape(shape: str) -> None:
    picture = render(Scene((Thing(shape, "green", radius=0.3),)))
    stretched = picture.resize((128, 154)).crop((0, 13, 128, 141))
    (seen,) = look(stretched).things
    assert seen.shape == shape and seen.fit > 0.85


def test_score_counts_what_is_wrong() -> None:
    scene = Scene(
        (Thing("star", "red", x=0.5, y=0.25, radius=0.15), Thing("square", "blue", x=0.5, y=0.7, radius=0.15))
    )
    sight = look(render(scene))
    assert score(sight, read("a red star above a blue square")) == 1
    assert score(sight, read("a red star below a blue square")) == 0.75
    assert score(sight, read("a blue star above a red square")) == 0.25
    assert assign(sight, read("a pink heart")) == [None]


def test_colours_of_the_palette_are_told_apart() -> None:
    for colour in COLOURS:
        for background in ("white", "black", "gray"):
            seen = look(render(Scene((Thing("circle", colour, radius=0.2),), background))).things
            assert [s.colour for s in seen] == [colour], (colour, background)
