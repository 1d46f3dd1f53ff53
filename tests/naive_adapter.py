"""The Cross-Adapter with lists and loops, from the paper's equations (arXiv 2407.00737) and the released names."""

from __future__ import annotations

import math

import torch
from atelier.attention.cross_adapter import AdapterShape
from torch import Tensor

NAMES = ("llm_proj", "q_proj", "k_proj", "v_proj", "out_proj", "q_norm", "kv_norm", "norm", "FFN.0", "FFN.2")


def random_state(shape: AdapterShape, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the released layout, none of them zero."""
    generator, width = torch.Generator().manual_seed(seed), shape.text_width
    sizes = {"llm_proj": (width, shape.llm_width), "FFN.0": (4 * width, width), "FFN.2": (width, 4 * width)}
    state = {}
    for layer in range(shape.layers):
        for name in NAMES:
            size = (width,) if "norm" in name else sizes.get(name, (width, width))
            scale = 1 / math.sqrt(size[-1])
            state[f"CrossFusionModule.{layer}.{name}.weight"] = torch.randn(size, generator=generator) * scale
            state[f"CrossFusionModule.{layer}.{name}.bias"] = torch.randn(size[0], generator=generator) * scale
    return state


def norm(x: list[float], weight: list[float], bias: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
    return [(v - mean) / spread * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def linear(x: list[float], weight: list[list[float]], bias: list[float]) -> list[float]:
    return [sum(v * w for v, w in zip(x, row, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def naive_layer(text: list[list[float]], llm: list[list[float]], state: dict[str, Tensor], heads: int) -> list:
    """The fused tokens of one prompt, with lists and loops, from the paper's equations and the released names."""

    def get(name: str) -> tuple[list, list]:
        return state[f"{name}.weight"].double().tolist(), state[f"{name}.bias"].double().tolist()

    llm = [linear(token, *get("llm_proj")) for token in llm]
    seen = [norm(token, *get("q_norm")) for token in text]
    asked = [linear(norm(token, *get("kv_norm")), *get("q_proj")) for token in llm]
    keys, values = ([linear(token, *get(name)) for token in seen] for name in ("k_proj", "v_proj"))
    size, out = len(asked[0]) // heads, []
    for token, query in zip(llm, asked, strict=True):
        gathered = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [sum(a * b for a, b in zip(query[part], key[part], strict=True)) / math.sqrt(size) for key in keys]
            top = max(scores)
            weights = [math.exp(score - top) for score in scores]
            for channel in range(size):
                column = [value[part][channel] for value in values]
                gathered.append(sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights))
        token = [a + b for a, b in zip(token, linear(gathered, *get("out_proj")), strict=True)]
        inner = [v / (1 + math.exp(-1.702 * v)) for v in linear(norm(token, *get("norm")), *get("FFN.0"))]
        out.append([a + b for a, b in zip(token, linear(inner, *get("FFN.2")), strict=True)])
    return out


def naive(text: Tensor, llm: Tensor, state: dict[str, Tensor], shape: AdapterShape) -> Tensor:
    rows = []
    for one, features in zip(text.double().tolist(), llm.double().tolist(), strict=True):
        for layer in range(shape.layers):
            own = {
                name.removeprefix(f"CrossFusionModule.{layer}."): value
                for name, value in state.items()
                if name.startswith(f"CrossFusionModule.{layer}.")
            }
            one = one + naive_layer(one, features, own, shape.heads)
        rows.append(one)
    return torch.tensor(rows)
