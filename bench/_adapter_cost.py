"""What the Cross-Adapter's tokens cost a run: full-size SD1.5 layout, random weights. To be imported after the host."""

from __future__ import annotations

import time
from collections.abc import Callable

import comfy.sample
import torch
from _fabric_cost import CFG, CHANNELS, COST_STEPS, REPEATS, SIDE, Patcher, sd15
from _figures import Figure, mean, single
from atelier.attention.cross_adapter import AdapterShape, read_adapter
from naive_adapter import random_state
from torch import Tensor

TEXT, LLM = (1, 77, 768), (1, 256, 2048)


def costs(quick: bool, note: Callable[[dict[str, Figure]], None]) -> None:
    """Whole runs with 77 tokens of text and with 256 of the adapter behind them, encoding excluded, in turn."""
    model = sd15(32 if quick else CHANNELS)
    adapter = read_adapter(random_state(AdapterShape(LLM[-1], TEXT[-1])))
    texts, features = ([torch.randn(shape) for _ in range(2)] for shape in (TEXT, LLM))
    fused = [adapter(text, llm) for text, llm in zip(texts, features, strict=True)]
    seconds(model, texts, 1)
    ratios = []
    for _ in range(1 if quick else REPEATS):
        plain = seconds(model, texts, COST_STEPS)
        ratios.append(seconds(model, fused, COST_STEPS) / plain)
    note({"cost": mean(ratios, "ratio"), "calls_per_step": single(calls(model, fused), "calls", 2)})


def seconds(model: Patcher, conds: list[Tensor], steps: int) -> float:
    """One whole run."""
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    positive, negative = ([[cond, {}]] for cond in conds)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    comfy.sample.sample(
        model, noise, steps, CFG, "euler", "normal", positive, negative, torch.zeros_like(noise), disable_pbar=True,
        seed=4,
    )  # fmt: skip
    return time.perf_counter() - start


def calls(model: Patcher, conds: list[Tensor]) -> float:
    """How often a step asks the model."""
    asked, apply = 0, model.model._apply_model

    def counted(*args: object, **more: object) -> Tensor:
        nonlocal asked
        asked += 1
        return apply(*args, **more)

    model.model._apply_model = counted
    try:
        seconds(model, conds, 2)
    finally:
        del model.model._apply_model
    return asked / 2
