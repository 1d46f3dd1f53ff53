"""Scorers: how often the demo's CLIP gives the true one of eight captions the highest score.

Pictures and captions are held out: their scenes come from seeds that training never uses.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, save, share, show
from _world import pack, start_host

start_host()

from assemble import assemble_scorer  # noqa: E402
from shapeworld.trial import caption_choices  # noqa: E402


def found(count: int, near: bool) -> list[bool]:
    """For each held-out picture: does its own caption win?"""
    pack()
    from atelier.feedback.open_clip_model import open_model

    with tempfile.TemporaryDirectory() as models:
        clip = open_model(assemble_scorer(Path(models)), lambda model: lambda: model)
    hits = []
    for picture, captions in caption_choices(count, near):
        seen = clip.encode_images(torch.from_numpy(np.array(picture, np.float32) / 255)[None])[0]
        hits.append(int((torch.stack([clip.encode_text(caption) for caption in captions]) @ seen).argmax()) == 0)
    return hits


def measure(n: int) -> dict[str, Figure]:
    figures = {"right_of_8": share(found(n, False)), "right_of_8_near": share(found(n, True))}
    show(figures)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample; writes nothing")
    quick = parser.parse_args().quick
    figures = measure(50 if quick else 400)
    if not quick:
        print(f"wrote {save('scorer', figures)}")


if __name__ == "__main__":
    main()
