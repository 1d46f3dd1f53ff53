"""The demo: wishes become pictures, the oracle plays a person who likes one and dislikes one, FABRIC listens.

Everything is queued over the API of a running host, from the templates that users get. Writes the pictures of each
wish and one contact sheet.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from comfy_api_client import ComfyClient, ProgressLine
from graphs import for_demo, load, node_of
from PIL import Image, ImageDraw
from shapeworld.caption import read
from shapeworld.oracle import look, score


@dataclass(frozen=True)
class Wish:
    """What is typed, and what the person really has in mind: a caption that the prompt need not contain."""

    text: str
    taste: str


WISHES = (
    Wish(
        "I want a picture of a shiny red star above a blue square, drawn in chalk",
        "a red star above a blue square, drawn in chalk",
    ),
    Wish("Please show me a large heart, as a neon sign", "a large pink heart, as a neon sign"),
    Wish("Draw me a large circle on a white background", "a large red circle, on a white background"),
)


@dataclass(frozen=True)
class Story:
    """What happened to one wish."""

    wish: Wish
    reason: str
    first: list[Image.Image]
    liked: int
    disliked: int
    second: list[Image.Image]


def marks(pictures: list[Image.Image], taste: str) -> list[float]:
    """How well each picture fits the taste, in 0..1; a clear shape breaks ties."""
    marks = []
    for picture in pictures:
        sight = look(picture)
        clear = np.mean([seen.fit for seen in sight.things]) if sight.things else 0.0
        marks.append(score(sight, read(taste)) + 0.01 * clear)
    return marks


def tell(client: ComfyClient, wish: Wish, seed: int) -> Story:
    """Both rounds of a wish."""
    graph = for_demo(load("wish_to_picture"), wish=wish.text, seed=seed)
    entry = client.queue(graph, ProgressLine("  round 1"))
    first = client.images(entry, node_of(graph, "Pictures"))
    reason = entry["outputs"][node_of(graph, "Why this checkpoint")]["text"][0]
    given = marks(first, wish.taste)
    liked, disliked = int(np.argmax(given)), int(np.argmin(given))
    graph = for_demo(load("wish_with_feedback"), wish=wish.text, seed=seed + 1)
    for title, pick in (("Liked", liked), ("Disliked", disliked)):
        graph[node_of(graph, title)]["inputs"]["image"] = client.upload(first[pick])
    second = client.images(client.queue(graph, ProgressLine("  round 2")), node_of(graph, "Pictures"))
    return Story(wish, reason, first, liked, disliked, second)


def contact_sheet(stories: list[Story]) -> Image.Image:
    """One row for each wish: its words, the route taken, round 1 with the picks, round 2."""
    cell, gap, words, top = 128, 8, 300, 34
    row = cell + 3 * gap
    sheet = Image.new("RGB", (words + 8 * (cell + gap) + 4 * gap, top + row * len(stories)), "white")
    pen = ImageDraw.Draw(sheet)
    second = words + 4 * (cell + gap) + 2 * gap
    pen.text((gap, gap), "Wish and route", fill="black", font_size=16)
    pen.text((words, gap), "Round 1 (green: liked, red: disliked)", fill="black", font_size=16)
    pen.text((second, gap), "Round 2", fill="black", font_size=16)
    for i, story in enumerate(stories):
        y = top + i * row
        text = f"“{story.wish.text}”\n\nlikes: {story.wish.taste}\n\n{story.reason}"
        pen.multiline_text((gap, y), wrap(text, 44), fill="black", font_size=12)
        for x0, pictures in ((words, story.first), (second, story.second)):
            for k, picture in enumerate(pictures):
                sheet.paste(picture.resize((cell, cell)), (x0 + k * (cell + gap), y))
        for pick, colour in ((story.liked, (20, 160, 60)), (story.disliked, (210, 40, 40))):
            x = words + pick * (cell + gap)
            pen.rectangle([x - 3, y - 3, x + cell + 2, y + cell + 2], outline=colour, width=4)
    return sheet


def wrap(text: str, width: int, lines: int = 9) -> str:
    """The text in lines of `width` characters, cut after `lines` lines."""
    import textwrap

    out = [line for part in text.split("\n") for line in (textwrap.wrap(part, width) or [""])]
    return "\n".join(out if len(out) <= lines else [*out[: lines - 1], out[lines - 1][: width - 1] + "…"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="address of a running ComfyUI with the pack")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    client, stories = ComfyClient(arguments.url), []
    for i, wish in enumerate(WISHES, 1):
        began = time.time()
        print(f"Wish {i} of {len(WISHES)}: {wish.text}", flush=True)
        stories.append(tell(client, wish, arguments.seed + 100 * i))
        print(f"  {stories[-1].reason}\n  {time.time() - began:.1f} s", flush=True)
        for number, pictures in ((1, stories[-1].first), (2, stories[-1].second)):
            for k, picture in enumerate(pictures, 1):
                picture.save(arguments.output / f"wish{i}-round{number}-{k}.png")
    sheet = arguments.output / "contact_sheet.png"
    contact_sheet(stories).save(sheet)
    print(f"Contact sheet: {sheet}")


if __name__ == "__main__":
    main()
