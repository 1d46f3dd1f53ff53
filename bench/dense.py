"""Dense prompts on a checkpoint of yours, with an adapter and without: CLIP relevance, a table and the pictures.

Prompts of 40 to 140 words are written by a seeded grammar, or read from a file with one prompt in each line; the text
files of T2I-CompBench work as they are. On ShapeWorld, where an oracle can see what is bound to what, `bench adapter`
does the same with the demo models. The table and the pictures go to the folder --out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from _dense_prompts import dense_prompts, read_prompts
from _figures import Figure, difference, mean, show
from _world import CFG, STEPS, open_checkpoint, pack, start_host

start_host()
pack()

from _dense_drawing import drawn, with_lora  # noqa: E402
from _sheet import save_sheet  # noqa: E402
from atelier.attention.t5_encoder import load_t5  # noqa: E402
from atelier.feedback.open_clip_model import OpenClip, open_model  # noqa: E402
from atelier.feedback.scorers import ClipRelevance  # noqa: E402
from atelier.nodes.cross_adapter import open_adapter  # noqa: E402
from torch import Tensor  # noqa: E402

SHOWN = 8


def relevance(encoder: OpenClip, pictures: list[Tensor], prompts: list[str]) -> list[float]:
    """The cosine of each picture and its prompt; CLIP reads the first 77 tokens of it."""
    scorer = ClipRelevance(encoder)
    return [scorer.score(picture[None], text)[0] for picture, text in zip(pictures, prompts, strict=True)]


def table(figures: dict[str, Figure], count: int) -> str:
    lines = [f"# Dense prompts: {count}", "", "| | CLIP relevance | 95 % |", "|---|---|---|"]
    for key, figure in figures.items():
        lines.append(f"| {key} | {figure['value']} | {figure['low']} to {figure['high']} |")
    return "\n".join([*lines, "", "![One row for each way, a column for each prompt](pictures.jpg)", ""])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of the SD 1.x or XL class")
    parser.add_argument("--scorer", type=Path, required=True, help="an open_clip model folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument("--adapter", type=Path, help="a Cross-Adapter; needs --llm")
    parser.add_argument("--llm", type=Path, help="the T5 file that it was trained with")
    parser.add_argument("--lora", type=Path, help="the LoRA that was trained along with it")
    parser.add_argument("--prompts", type=Path, help="a text file, a prompt in each line")
    parser.add_argument("--count", type=int, default=50, help="how many prompts")
    parser.add_argument("--size", type=int, default=512, help="side of a picture in px")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, default=CFG)
    options = parser.parse_args()
    if (options.adapter is None) != (options.llm is None):
        parser.error("--adapter and --llm go together")
    prompts = read_prompts(options.prompts)[: options.count] if options.prompts else dense_prompts(options.count)
    if len(prompts) < 2:
        parser.error("give two prompts or more")
    base = open_checkpoint(options.checkpoint)
    base.size, base.steps, base.cfg = options.size, options.steps, options.cfg
    encoder = open_model(options.scorer, lambda model: lambda: model)
    arms = {"checkpoint": drawn(base, prompts, None, None)}
    if options.adapter:
        changed = with_lora(base, options.lora) if options.lora else base
        arms["with adapter"] = drawn(changed, prompts, open_adapter(options.adapter), load_t5([options.llm]))
    scores = {name: relevance(encoder, pictures, prompts) for name, pictures in arms.items()}
    figures = {name: mean(found, "cosine") for name, found in scores.items()}
    if options.adapter:
        figures["difference"] = difference(scores["with adapter"], scores["checkpoint"], "cosine")
    show(figures)
    options.out.mkdir(parents=True, exist_ok=True)
    shown = min(SHOWN, len(prompts))
    sheet = torch.stack([picture for pictures in arms.values() for picture in pictures[:shown]])
    save_sheet(sheet, options.out / "pictures.jpg", shown)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (options.out / "report.md").write_text(table(figures, len(prompts)))
    print(f"wrote {options.out / 'report.md'}")


if __name__ == "__main__":
    main()
