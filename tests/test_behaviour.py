"""What the pack does to pictures, measured in ShapeWorld over the API of the real host."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from graphs import DEMO_CFG, DEMO_CHECKPOINT, DEMO_SIZE, for_demo, load, node_of
from PIL import Image
from scipy.stats import binomtest
from shapeworld.trial import largest

PICTURES = 48
PROMPT = "a large circle"


def draw(server: Any, seed: int) -> list[Image.Image]:
    """Round 1: plain sampling."""
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": DEMO_CHECKPOINT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": PROMPT, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
        "4": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": DEMO_SIZE, "height": DEMO_SIZE, "batch_size": PICTURES},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
                "seed": seed, "steps": 20, "cfg": DEMO_CFG, "denoise": 1.0,
                "sampler_name": "euler", "scheduler": "normal",
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }  # fmt: skip
    return server.images(server.queue(graph))


def draw_with_feedback(
    server: Any, seed: int, liked: Image.Image, disliked: Image.Image, count: int
) -> list[Image.Image]:
    """Round 2: the FABRIC template."""
    graph = for_demo(load("fabric_feedback"), seed=seed, text=PROMPT, batch_size=count)
    graph[node_of(graph, "Negative")]["inputs"]["text"] = ""
    graph[node_of(graph, "Liked")]["inputs"]["image"] = server.upload(liked)
    graph[node_of(graph, "Disliked")]["inputs"]["image"] = server.upload(disliked)
    return server.images(server.queue(graph))


@pytest.fixture(scope="module")
def first_round(server: Any) -> list[Image.Image]:
    return draw(server, seed=11)


def colours(pictures: list[Image.Image]) -> list[str | None]:
    return [largest(picture).colour for picture in pictures]


def test_liked_colour_comes_more_often(server: Any, first_round: list[Image.Image]) -> None:
    """The prompt names no colour. Each of the four commonest colours is liked in turn, the next one disliked, by the
    first picture that shows it. Exact binomial test, one-sided, against the share of these colours in round 1."""
    came = colours(first_round)
    tried = [colour for colour, _ in Counter(colour for colour in came if colour).most_common(4)]
    count, before, after = PICTURES // len(tried), sum(came.count(colour) for colour in tried), 0
    for k, liked in enumerate(tried):
        disliked = tried[(k + 1) % len(tried)]
        picks = first_round[came.index(liked)], first_round[came.index(disliked)]
        hits = colours(draw_with_feedback(server, 23 + k, *picks, count)).count(liked)
        print(f"{liked}: {came.count(liked)} of {PICTURES} before, {hits} of {count} after")
        after += hits
    share = before / len(tried) / PICTURES
    chance = binomtest(after, count * len(tried), share, "greater").pvalue
    assert chance < 0.01, f"liked colour: {share:.2f} before, {after} of {count * len(tried)} after (p = {chance:.3f})"


def test_most_circles_are_circles(first_round: list[Image.Image]) -> None:
    assert sum(largest(picture).shape == "circle" for picture in first_round) >= 0.85 * PICTURES
