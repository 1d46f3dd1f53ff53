"""Scorers: how often the demo's CLIP gives the true one of eight captions the highest score, and what scoring costs.

Pictures and captions are held out: their scenes come from seeds that training never uses. The cost is that of three
scorers on one encoder, as a multiple of the bare encoder's: the demo's encoder is so small that a real one's is lower.
With pictures of 1024 px it is mostly the change of floats into bytes, which open_clip gets as bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _figures import Figure, mean, save, share, show
from _world import pack, start_host

start_host()

from assemble import assemble_scorer  # noqa: E402
from shapeworld.trial import caption_choices  # noqa: E402

BATCH = 64
"""Pictures that are scored at once, to measure what it costs."""


def demo_clip() -> Any:
    """The demo's CLIP."""
    pack()
    from atelier.feedback.open_clip_model import open_model

    with tempfile.TemporaryDirectory() as models:
        return open_model(assemble_scorer(Path(models)), lambda model: lambda: model)


def found(count: int, near: bool) -> list[bool]:
    """For each held-out picture: does its own caption win?"""
    clip, hits = demo_clip(), []
    for picture, captions in caption_choices(count, near):
        seen = clip.encode_images(torch.from_numpy(np.array(picture, np.float32) / 255)[None])[0]
        hits.append(int((torch.stack([clip.encode_text(caption) for caption in captions]) @ seen).argmax()) == 0)
    return hits


def overhead(rounds: int, side: int = 128) -> list[float]:
    """The time of Promptist's relevance, an aesthetic head and diversity together, over the time of open_clip's own
    preparation and encoding of the same pictures of Pillow's, with this side in px, in turn."""
    clip = demo_clip()
    from atelier.feedback.aesthetic import Aesthetic, AestheticHead
    from atelier.feedback.combined import combine
    from atelier.feedback.reward import PromptistRelevance
    from atelier.feedback.scorers import Diversity

    pictures = [picture.resize((side, side)) for picture, _ in caption_choices(BATCH, False)]
    images = torch.from_numpy(np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures]))
    head = AestheticHead("random", "0", torch.randn(clip.encode_text("").shape), torch.tensor(0.0))
    scorer = combine((PromptistRelevance(clip), 1.0), (Aesthetic(clip, head), 1.0), (Diversity(clip), 1.0))

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, BATCH, 16):
            batch = torch.stack([clip.prepare(picture) for picture in pictures[start : start + 16]])
            clip.ready().encode_image(batch, normalize=True)

    def seconds(work: Any) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    turns = [(seconds(bare), seconds(lambda: scorer.score(images, "a red star"))) for _ in range(rounds + 2)]
    return [ours / theirs for theirs, ours in turns[2:]]  # the first two warm up


def measure(n: int) -> dict[str, Figure]:
    figures = {
        "right_of_8": share(found(n, False)),
        "right_of_8_near": share(found(n, True)),
        "scorer_overhead": mean(overhead(n // 4), "times"),
        "scorer_overhead_1024": mean(overhead(max(2, n // 40), 1024), "times"),
    }
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
