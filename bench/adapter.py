"""LLM4GEN's Cross-Adapter: is it the paper's, what does it cost, and are dense prompts drawn as they say?

Three parts, each with figures of its own:

- parity: the module against an implementation written from the paper, for several widths, heads and layers.
- costs: whole runs of a full-size SD1.5 layout with random weights, with the adapter's tokens and without, in turn in
  one process; calls of the model for each step; the time of a prompt that was encoded before.
- binding: ShapeWorld. Dense prompts of 40 to 140 words and prompts of one thing, held out, drawn by the base, by the
  base with low-rank weights that were trained for as many steps on the same pictures without the adapter, and by the
  base with adapter and low-rank weights. The oracle says which things have their colour and their shape, and which
  colours are where the prompt wants them.

The weights without the adapter are not shipped: `python demo/train_by_node.py control` makes them.
With --part, the figures of the other parts stay in the result file as they are.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from _figures import RESULTS, Note, difference, mean, run_parts, share, single
from _world import HOME, REPO, Checkpoint, load_adapter, load_checkpoint, load_llm, pack, start_host

start_host()
pack()
sys.path.append(str(REPO / "tests"))

import comfy.sd  # noqa: E402
from _adapter_cost import costs  # noqa: E402
from _dense_drawing import drawn, with_lora  # noqa: E402
from _sheet import save_sheet  # noqa: E402
from assemble import ADAPTER_LORA  # noqa: E402
from atelier.attention.cross_adapter import AdapterShape, read_adapter  # noqa: E402
from atelier.attention.llm_features import LoadedAdapter, encode_pair  # noqa: E402
from naive_adapter import naive, random_state  # noqa: E402
from shapeworld.caption import Description  # noqa: E402
from shapeworld.dense_trial import long_prompts  # noqa: E402
from shapeworld.oracle import look  # noqa: E402
from shapeworld.scene import nearest_place  # noqa: E402
from shapeworld.trial import bound, largest, one_object_prompts  # noqa: E402
from torch import Tensor  # noqa: E402

DENSE, SINGLE = 200, 400
"""Prompts. Of 200 prompts of one thing, the difference of two models has a standard error of 2 points, as much as the
goal."""
SHAPES = (AdapterShape(24, 16), AdapterShape(12, 32, 4, layers=2), AdapterShape(40, 64, 8))
LORAS = HOME / "base" / "models" / "loras"
LORA, CONTROL = LORAS / f"{ADAPTER_LORA}.safetensors", LORAS / "shapeworld-no-adapter.safetensors"
Prompts = list[tuple[str, Description]]


def parity_part(quick: bool, note: Note) -> None:
    gaps = []
    for number, shape in enumerate(SHAPES):
        state = random_state(shape, number)
        generator = torch.Generator().manual_seed(number)
        text = torch.randn(2, 7, shape.text_width, generator=generator)
        llm = torch.randn(2, 5, shape.llm_width, generator=generator)
        found, wanted = read_adapter(state, shape.heads)(text, llm), naive(text, llm, state, shape)
        gaps.append(float((found - wanted).abs().max() / wanted.abs().max()))
    note({"parity_max": single(max(gaps), "relative", len(gaps))})


def costs_part(quick: bool, note: Note) -> None:
    costs(quick, note)
    checkpoint, llm, adapter = load_checkpoint("base"), load_llm(), load_adapter()
    prompt, taken = long_prompts(1)[0][0], []
    encode_pair(checkpoint.clip, llm, adapter, (prompt, ""))
    for _ in range(20 if quick else 200):
        began = time.perf_counter()
        encode_pair(checkpoint.clip.clone(), llm.clone(), adapter, (prompt, ""))
        taken.append((time.perf_counter() - began) * 1000)
    note({"cached_encode_ms": mean(taken, "ms")})


def things_bound(pictures: list[Tensor], prompts: Prompts) -> list[list[bool]]:
    return [bound(to_bytes(picture), description) for picture, (_, description) in zip(pictures, prompts, strict=True)]


def colours_placed(pictures: list[Tensor], prompts: Prompts) -> list[bool]:
    """For each described thing: is there one of its colour, whatever its shape, at its place?"""
    hits = []
    for picture, (_, description) in zip(pictures, prompts, strict=True):
        seen = {(thing.colour, nearest_place(thing.x, thing.y)) for thing in look(to_bytes(picture)).things}
        hits += [(thing.colour, thing.place) in seen for thing in description.things]
    return hits


def single_right(pictures: list[Tensor], prompts: Prompts) -> list[bool]:
    hits = []
    for picture, (_, description) in zip(pictures, prompts, strict=True):
        seen, wanted = largest(to_bytes(picture)), description.things[0]
        hits.append((seen.shape, seen.colour) == (wanted.shape, wanted.colour))
    return hits


def to_bytes(picture: Tensor) -> np.ndarray:
    return (picture * 255).round().clamp(0, 255).byte().numpy()


def judged(
    checkpoint: Checkpoint, adapter: LoadedAdapter | None, llm: comfy.sd.CLIP, dense: Prompts, single_things: Prompts
) -> tuple[list[Tensor], list[list[bool]], list[bool]]:
    """The pictures of the dense prompts, which of their things are bound, and which prompts of one thing are right."""
    pictures = drawn(checkpoint, [text for text, _ in dense], adapter, llm)
    shown = drawn(checkpoint, [text for text, _ in single_things], adapter, llm)
    return pictures, things_bound(pictures, dense), single_right(shown, single_things)


def binding_part(quick: bool, note: Note) -> None:
    llm, adapter, base = load_llm(), load_adapter(), load_checkpoint("base")
    arms = {"base": (base, None), "adapter": (with_lora(base, LORA), adapter)}
    if CONTROL.is_file():
        arms["finetuned"] = (with_lora(base, CONTROL), None)
    dense, single_things = long_prompts(8 if quick else DENSE), one_object_prompts(8 if quick else SINGLE)
    bindings, ones, sheets = {}, {}, {}
    for name, (checkpoint, module) in arms.items():
        pictures, bindings[name], ones[name] = judged(checkpoint, module, llm, dense, single_things)
        sheets[name] = pictures[:8]
        note({f"binding_{name}": share([hit for hits in bindings[name] for hit in hits])})
        note({f"colour_at_place_{name}": share(colours_placed(pictures, dense))})
        note({f"one_object_{name}": share(ones[name])})
    means = {name: [100 * float(np.mean(hits)) for hits in found] for name, found in bindings.items()}
    note({"binding_gain_base": difference(means["adapter"], means["base"], "points")})
    if "finetuned" in means:
        note({"binding_gain_finetuned": difference(means["adapter"], means["finetuned"], "points")})
    percent = {name: [100.0 * hit for hit in hits] for name, hits in ones.items()}
    note({"one_object_change": difference(percent["adapter"], percent["base"], "points")})
    if not quick:
        order = [name for name in ("base", "finetuned", "adapter") if name in sheets]
        save_sheet(torch.stack([one for name in order for one in sheets[name]]), RESULTS / "adapter_dense.jpg")


PARTS = {"parity": parity_part, "costs": costs_part, "binding": binding_part}


@torch.inference_mode()
def main() -> None:
    run_parts("adapter", __doc__, PARTS)


if __name__ == "__main__":
    main()
