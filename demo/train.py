"""Trains the demo models. `python dev.py train-demo` calls it; every stage can be cut off and goes on later."""

from __future__ import annotations

import argparse
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", choices=["vae", "unet", "experts", "all"], default="all")
    parser.add_argument("--work", type=Path, default=REPO / ".atelier" / "training", help="where checkpoints are kept")
    arguments = parser.parse_args()

    from training.unet import train_unet
    from training.vae import train_vae

    if arguments.stage in ("vae", "all"):
        train_vae(arguments.work)
    if arguments.stage in ("unet", "all"):
        train_unet(arguments.work)


if __name__ == "__main__":
    main()
