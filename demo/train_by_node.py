"""Trains demo models by the pack's own nodes, over the API of a server that runs, and exports them.

    python demo/train_by_node.py adapter --url http://127.0.0.1:8188
    python demo/train_by_node.py policy --url http://127.0.0.1:8188
    python demo/train_by_node.py control

- adapter: the Cross-Adapter with its LoRA. The language model has to be there: `python demo/train.py t5`.
- policy: reinforcement of the prompt policy, which has to be there: `python demo/train.py policy`.
- control: the LoRA alone, for as many steps on the same pictures, in this process, to compare with; it is not shipped.

The adapter and the control are trained in stages; a stage whose weights are there is not trained again.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
OUT = REPO / "demo" / "models"
sys.path.append(str(REPO / "bench"))

NAME, CONTROL = "demo-adapter", "shapeworld-no-adapter"
"""The names of the adapter's two trainings. No name of what is shipped: a node writes over no model of others."""
POLICY, LEARNT = "shapeworld", "demo-policy-rl"
"""The policy to start from, and the name of the training."""


def stage_name(name: str, stage: int) -> str:
    """The last stage has the name, the ones before it have a number."""
    from training.adapter import STAGES

    return name if stage == len(STAGES) - 1 else f"{name}-{stage + 1}"


def adapter_graph(folder: Path, stage: int) -> dict[str, Any]:
    """The template's graph, with the settings of a stage of the demo's training."""
    from shapeworld.captioned import SEED
    from training.adapter import BATCH, ENTITY_WEIGHT, RANK, STAGES, TOKENS
    from training.host import precision

    graph: dict[str, Any] = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "2": {"class_type": "AtelierLoadLLMEncoder", "inputs": {"encoder": "shapeworld-t5.safetensors"}},
        "3": {
            "class_type": "AtelierTrainCrossAdapter",
            "inputs": {
                "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "llm": ["2", 0], "dataset": str(folder),
                "name": stage_name(NAME, stage), "batch_size": BATCH, "seed": SEED, "resolution": 128, "rank": RANK,
                "entity_weight": ENTITY_WEIGHT, "llm_tokens": TOKENS, "llm_prefix": "", "precision": precision(),
                **asdict(STAGES[stage]),
            },
        },
    }  # fmt: skip
    if stage:
        before = f"{stage_name(NAME, stage - 1)}.safetensors"
        graph["4"] = {"class_type": "AtelierLoadCrossAdapter", "inputs": {"adapter": before}}
        graph["3"]["inputs"] |= {"start": ["4", 0], "start_lora": before}
    return graph


def policy_graph(steps: int) -> dict[str, Any]:
    """The template's graph, with the settings of the demo's training."""
    from shapeworld.taste import training_inputs

    from training import policy_rl as plan

    clip = {"clip_model": "shapeworld"}
    fits = {"scorer": "relevance, as Promptist rewards it", "enough": plan.ENOUGH, **clip}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "2": {"class_type": "AtelierLoadPromptPolicy", "inputs": {"policy": POLICY}},
        "3": {
            "class_type": "AtelierLoadScorer",
            "inputs": {"scorer": "aesthetic", "aesthetic_head": "shapeworld.safetensors", **clip},
        },
        "4": {"class_type": "AtelierLoadScorer", "inputs": fits},
        "5": {
            "class_type": "AtelierTrainPromptOptimizer",
            "inputs": {
                "policy": ["2", 0], "prompts": "\n".join(training_inputs(plan.PROMPTS)), "name": LEARNT,
                "stage": "reinforcement", "steps": steps, "seed": plan.SEED, "model": ["1", 0], "clip": ["1", 1],
                "vae": ["1", 2], "scorer": ["3", 0], "relevance": ["4", 0], "size": plan.SIDE,
                "pictures": plan.PICTURES, "sampler_steps": plan.SAMPLER_STEPS, "cfg": plan.CFG,
                "sampler_name": "euler", "scheduler": "normal", "method": plan.METHOD,
                "prompts_per_step": plan.AT_ONCE, "candidates": plan.CANDIDATES,
                "learning_rate": plan.LEARNING_RATE, "kl_weight": plan.KL_WEIGHT, "kl_limit": plan.KL_LIMIT,
            },
        },
    }  # fmt: skip


def queue(url: str, graph: dict[str, Any], name: str) -> None:
    from comfy_api_client import ComfyClient, ProgressLine

    ComfyClient(url, timeout=24 * 3600).queue(graph, ProgressLine(name))


def copy_log(training: Path, name: str, steps: int) -> Path:
    """The log of a node's training among the curves that are shipped; returns its file."""
    log = json.loads((training / "log.json").read_text(encoding="utf-8"))
    curve = OUT / "curves" / f"{name}.json"
    curve.write_text(json.dumps({"name": name, "steps": steps, "log": log}, indent=1), encoding="utf-8")
    return curve


def train_policy(url: str, output: Path, steps: int) -> None:
    """Queues the node, and writes what it made as the small files that the repository ships."""
    from assemble import in_8_bits
    from safetensors.torch import load_file, save_file
    from training.host import use_pack

    use_pack()
    from atelier.training.policy_curve import draw_policy

    queue(url, policy_graph(steps), LEARNT)
    learnt = load_file(output / "prompt_optimizers" / LEARNT / "model.safetensors")
    save_file(in_8_bits(learnt), OUT / "policy_rl.safetensors", {})
    curve = copy_log(output / "atelier_training" / LEARNT / "reinforcement", "policy_rl", steps)
    log = json.loads(curve.read_text(encoding="utf-8"))["log"]
    draw_policy("policy_rl", log).save(curve.with_suffix(".png"))


def train_adapter(url: str, folder: Path, output: Path) -> None:
    """Queues the node for each stage whose weights are not there yet, and writes what the last one made as the small
    files that the repository ships."""
    from assemble import in_8_bits
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
    from training.adapter import STAGES

    from training.loop import draw_curve

    for number, stage in enumerate(STAGES):
        name = stage_name(NAME, number)
        file, lora = (output / kind / f"{name}.safetensors" for kind in ("cross_adapters", "loras"))
        if not (file.is_file() and lora.is_file()):
            queue(url, adapter_graph(folder, number), name)
            curve = copy_log(output / "atelier_training" / name, stage_name("adapter", number), stage.steps)
            draw_curve(curve, curve.with_suffix(".png"))
    with safe_open(file, "pt") as opened:
        about = dict(opened.metadata())
    save_file(in_8_bits(load_file(file)), OUT / "adapter.safetensors", about)
    save_file(in_8_bits(load_file(lora)), OUT / "adapter_lora.safetensors", {})


def train_control(folder: Path, work: Path, loras: Path) -> None:
    """Trains the low-rank weights without an adapter, in this process, in the same stages."""
    from _world import load_checkpoint, load_llm, pack, start_host

    start_host()
    pack()
    from atelier.training.captions import read_captions
    from atelier.training.host_adapter import AdapterRun, train_adapter
    from atelier.training.host_edit import Watch
    from atelier.training.loop import Plan, replace_file
    from atelier.training.low_rank import lora_file
    from safetensors.torch import load_file, save_file
    from shapeworld.captioned import SEED
    from training.adapter import BATCH, RANK, STAGES, TOKENS
    from training.host import precision

    base, start = load_checkpoint("base"), None
    for number, stage in enumerate(STAGES):
        name = stage_name(CONTROL, number)
        file = loras / f"{name}.safetensors"
        if not file.is_file():
            run = AdapterRun(
                read_captions(folder, 128), Plan(stage.steps, stage.learning_rate, SEED), BATCH, precision(),
                work / name, TOKENS, "", rank=RANK, keep_words=stage.keep_words, use_adapter=False, start_lora=start,
            )  # fmt: skip
            watch = Watch(print, functools.partial(_print_step, name, stage.steps))
            weights = train_adapter(base.model, base.clip, base.vae, load_llm(), run, watch)[1]
            tensors = lora_file({key.removeprefix("unet."): value for key, value in weights.items()})
            replace_file(file, functools.partial(save_file, tensors))
        start = load_file(file)


def _print_step(name: str, steps: int, step: int, loss: float) -> None:
    if step % 20 == 0:
        print(f"{name}: {step}/{steps}  loss {loss:.4f}", flush=True)


def main() -> None:
    home = Path(os.environ.get("ATELIER_HOME") or REPO / ".atelier")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("adapter", "policy", "control"))
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="the server that trains")
    parser.add_argument("--base", type=Path, default=home / "base", help="the server's base directory")
    parser.add_argument(
        "--work", type=Path, default=home / "training", help="where pictures and unfinished training are"
    )
    parser.add_argument("--steps", type=int, help="policy: train for this many steps instead of the demo's number")
    options = parser.parse_args()

    from shapeworld.captioned import make_folder

    from training import policy_rl

    if options.what == "policy":
        train_policy(options.url, options.base / "output", options.steps or policy_rl.STEPS)
        return
    folder = options.work.resolve() / "captions"
    make_folder(folder)
    if options.what == "control":
        train_control(folder, options.work, options.base / "models" / "loras")
    else:
        train_adapter(options.url, folder, options.base / "output")


if __name__ == "__main__":
    main()
