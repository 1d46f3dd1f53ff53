"""Trains the demo's Cross-Adapter by the pack's own node, over the API of a server that runs, and exports it.

    python demo/train_adapter.py --url http://127.0.0.1:8188 [--control]

The language model has to be there: `python demo/train.py t5`. With --control, the low-rank weights alone are trained
for as many steps on the same pictures, in this process, to compare with; they are not shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
OUT = REPO / "demo" / "models"
sys.path.append(str(REPO / "bench"))

NAME, CONTROL = "shapeworld", "shapeworld-no-adapter"
"""The names of both trainings; what is shipped is called so too."""


def graph(folder: Path, steps: int) -> dict[str, Any]:
    """The template's graph, with the settings of the demo's training."""
    from shapeworld.captioned import SEED
    from training.adapter import BATCH, ENTITY_WEIGHT, PEAK, RANK, TOKENS

    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "2": {"class_type": "AtelierLoadLLMEncoder", "inputs": {"encoder": "shapeworld-t5.safetensors"}},
        "3": {
            "class_type": "AtelierTrainCrossAdapter",
            "inputs": {
                "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "llm": ["2", 0], "dataset": str(folder),
                "name": NAME, "steps": steps, "batch_size": BATCH, "learning_rate": PEAK, "seed": SEED,
                "resolution": 128, "rank": RANK, "entity_weight": ENTITY_WEIGHT, "llm_tokens": TOKENS,
                "llm_prefix": "", "precision": "bf16",
            },
        },
    }  # fmt: skip


def train_by_node(url: str, folder: Path, output: Path, steps: int) -> None:
    """Queues the node, and writes what it made as the small files that the repository ships."""
    from assemble import in_8_bits
    from comfy_api_client import ComfyClient, ProgressLine
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from training.loop import draw_curve

    ComfyClient(url, timeout=24 * 3600).queue(graph(folder, steps), ProgressLine(NAME))
    file, lora = (output / kind / f"{NAME}.safetensors" for kind in ("cross_adapters", "loras"))
    with safe_open(file, "pt") as opened:
        about = dict(opened.metadata())
    save_file(in_8_bits(load_file(file)), OUT / "adapter.safetensors", about)
    save_file(in_8_bits(load_file(lora)), OUT / "adapter_lora.safetensors", {})
    log = json.loads((output / "atelier_training" / NAME / "log.json").read_text(encoding="utf-8"))
    curve = OUT / "curves" / "adapter.json"
    curve.write_text(json.dumps({"name": "adapter", "steps": steps, "log": log}, indent=1), encoding="utf-8")
    draw_curve(curve, curve.with_suffix(".png"))


def train_control(folder: Path, work: Path, loras: Path, steps: int) -> None:
    """Trains the low-rank weights without an adapter, in this process."""
    from _world import load_checkpoint, pack, start_host

    start_host()
    pack()
    from adapter import load_llm
    from atelier.training.captions import read_captions
    from atelier.training.host_adapter import AdapterRun, train_adapter
    from atelier.training.host_edit import Watch
    from atelier.training.loop import Plan
    from atelier.training.low_rank import lora_file
    from safetensors.torch import save_file
    from shapeworld.captioned import SEED
    from training.adapter import BATCH, PEAK, RANK, TOKENS

    base = load_checkpoint("base")
    run = AdapterRun(
        read_captions(folder, 128), Plan(steps, PEAK, SEED), BATCH, "bf16", work / CONTROL, TOKENS, "", rank=RANK,
        use_adapter=False,
    )  # fmt: skip

    def each_step(step: int, loss: float) -> None:
        if step % 20 == 0:
            print(f"{CONTROL}: {step}/{steps}  loss {loss:.4f}", flush=True)

    weights = train_adapter(base.model, base.clip, base.vae, load_llm(), run, Watch(print, each_step))[1]
    tensors = lora_file({name.removeprefix("unet."): value for name, value in weights.items()})
    save_file(tensors, loras / f"{CONTROL}.safetensors")


def main() -> None:
    home = Path(os.environ.get("ATELIER_HOME") or REPO / ".atelier")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="the server that trains")
    parser.add_argument("--base", type=Path, default=home / "base", help="the server's base directory")
    parser.add_argument(
        "--work", type=Path, default=home / "training", help="where pictures and unfinished training are"
    )
    parser.add_argument("--steps", type=int, help="train for this many steps instead of the demo's number")
    parser.add_argument("--control", action="store_true", help="train the comparison without an adapter")
    options = parser.parse_args()

    from shapeworld.captioned import make_folder
    from training.adapter import STEPS

    folder, steps = options.work.resolve() / "captions", options.steps or STEPS
    make_folder(folder)
    if options.control:
        train_control(folder, options.work, options.base / "models" / "loras", steps)
    else:
        train_by_node(options.url, folder, options.base / "output", steps)


if __name__ == "__main__":
    main()
