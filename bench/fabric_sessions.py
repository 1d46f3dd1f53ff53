"""FABRIC on a checkpoint of yours: the paper's two protocols with your prompts or target pictures, and your scorer.

With --prompts, a text file with a prompt in each line: the scorer likes the picture that fits the prompt best. With
--targets, a folder of pictures, each beside a .txt file with its prompt: it likes the picture nearest to the target.
Three rounds of four pictures, one like and one dislike for each round, without feedback and in the arms of
`bench fabric`. The figures, a plot and all pictures go to the folder --out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _figures import show
from _world import CFG, STEPS, open_checkpoint, pack, start_host
from PIL import Image

start_host()
pack()

from _rounds import ARMS, PLAIN, Session, first_round, play  # noqa: E402
from _session_figures import likeness_figures, plot, score_figures  # noqa: E402
from _sessions import Kept  # noqa: E402
from _sheet import save_sheet  # noqa: E402
from atelier.feedback.open_clip_model import OpenClip, open_model  # noqa: E402
from atelier.feedback.scorers import ClipRelevance, TargetSimilarity  # noqa: E402

SEED = 900_001


def from_prompts(file: Path, encoder: OpenClip) -> Iterator[Session]:
    """A session for each line that is not empty."""
    prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    scorer = ClipRelevance(encoder)
    for number, prompt in enumerate(prompts):
        yield Session(number, prompt, lambda pictures, prompt=prompt: scorer.score(pictures, prompt), SEED)


def from_targets(folder: Path, encoder: OpenClip) -> Iterator[Session]:
    """A session for each picture that has a prompt beside it."""
    for number, text in enumerate(sorted(folder.glob("*.txt"))):
        picture = next(file for file in sorted(folder.glob(f"{text.stem}.*")) if file != text)
        pixels = np.asarray(Image.open(picture).convert("RGB"), np.float32) / 255
        scorer = TargetSimilarity(encoder, encoder.encode_images(torch.from_numpy(pixels)[None]))
        prompt = text.read_text(encoding="utf-8").strip()
        yield Session(number, prompt, lambda pictures, scorer=scorer: scorer.score(pictures, ""), SEED)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of the SD 1.x, 2.x or XL class")
    parser.add_argument("--scorer", type=Path, required=True, help="an open_clip model folder")
    wishes = parser.add_mutually_exclusive_group(required=True)
    wishes.add_argument("--prompts", type=Path, help="a text file, a prompt in each line")
    wishes.add_argument("--targets", type=Path, help="a folder of pictures, each with its prompt in a .txt file")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--size", type=int, default=512, help="side of a picture in px")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, default=CFG)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    checkpoint.size, checkpoint.steps, checkpoint.cfg = options.size, options.steps, options.cfg
    encoder = open_model(options.scorer, lambda model: lambda: model)
    protocol = "preference" if options.prompts else "target"
    sessions = list(
        from_prompts(options.prompts, encoder) if options.prompts else from_targets(options.targets, encoder)
    )
    if len(sessions) < 2:
        parser.error("give two prompts or targets or more")
    options.out.mkdir(parents=True, exist_ok=True)
    arms: dict[str, list[Kept]] = {arm.name: [] for arm in (PLAIN, *ARMS)}
    for session in sessions:
        first = first_round(checkpoint, session)
        for arm in (PLAIN, *ARMS):
            played = play(checkpoint, session, first, arm)
            save_sheet(torch.cat(played.pictures), options.out / f"{session.number}-{arm.name}.jpg", len(first))
            arms[arm.name].append(Kept.of(played))
        print(f"{session.number + 1} of {len(sessions)} sessions", flush=True)
    figures = score_figures(protocol, arms) | likeness_figures(protocol, arms, encoder.encode_images)
    show(figures)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot({protocol: arms}, options.out / "sessions.png")


if __name__ == "__main__":
    main()
