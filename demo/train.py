"""Trains the demo models. `python dev.py train-demo` calls it; every stage can be cut off and goes on later."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
STAGES = ("all", "vae", "decoder", "unet", "scorer", "experts", "chalk", "neon", "sticker", "edit", "t5",
          "aesthetic", "policy")  # fmt: skip


def main() -> None:
    home = Path(os.environ.get("ATELIER_HOME") or REPO / ".atelier")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", choices=STAGES, default="all")
    parser.add_argument("--work", type=Path, default=home / "training", help="where unfinished training is kept")
    parser.add_argument("--out", type=Path, default=REPO / "demo" / "models", help="where the weights go")
    parser.add_argument("--steps", type=int, help="train for this many steps instead of the stage's own number")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.stage == "all":
        parser.error("--steps needs one stage: each has its own number")

    from training.export import run

    run(arguments.stage, arguments.work, arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
