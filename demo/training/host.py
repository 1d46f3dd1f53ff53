"""The host's own model classes, made ready for training."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[2]


def use_host() -> None:
    """Puts the ComfyUI checkout on the path. Raises FileNotFoundError when there is none."""
    path = Path(os.environ.get("ATELIER_COMFYUI") or REPO / ".atelier" / "ComfyUI")
    if not (path / "comfy").is_dir():
        raise FileNotFoundError(f"no ComfyUI in {path}: run 'python dev.py host' once, or set ATELIER_COMFYUI")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def use_pack() -> None:
    """Makes the node pack importable as `atelier`, and the host with it."""
    use_host()
    bench = str(REPO / "bench")
    if bench not in sys.path:
        sys.path.insert(0, bench)
    from _world import pack

    pack()


def initialise(module: torch.nn.Module) -> None:
    """Gives every layer torch's own initial weights; the host's layers skip that step."""
    for layer in module.modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding, torch.nn.LayerNorm, torch.nn.GroupNorm):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def has_bf16() -> bool:
    """Whether the device computes in bfloat16. A CPU that does not takes over twenty times as long in it."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))


def precision() -> str:
    """The fastest precision of the pack's training nodes here. Their own choice is fp32 on every CPU."""
    return "bf16" if has_bf16() else "fp32"


def autocast() -> torch.autocast:
    """Computes in bfloat16 inside, where the device can."""
    return torch.autocast(device().type, torch.bfloat16, enabled=has_bf16())
