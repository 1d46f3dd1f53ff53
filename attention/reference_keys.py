"""What the keys and values of a reference depend on in the host's model, as keys of the reference cache."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from types import MethodType
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from .reference import latent_bytes

_SAMPLES = 256
"""Numbers of each weight that are looked at before a run."""


class Same:
    """Equal only for one and the same object, which it keeps alive, so that no other gets its address."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


class Unseen:
    """Hooks that change nothing of how references are read. `before` is the patch whose place they took, if any."""

    before: Any


def frozen(value: Any) -> Hashable:
    """Options of a run as a key: containers and plain values by content, patches by identity.

    Hooks of an `Unseen` count as what was there before them.
    """
    if isinstance(value, dict):
        parts = ((name, frozen(part)) for name, part in value.items())
        return tuple(sorted(((str(name), part) for name, part in parts if part not in ((), None)), key=lambda p: p[0]))
    if isinstance(value, list | tuple | set):
        return tuple(part for part in map(frozen, value) if part is not None)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value
    if isinstance(value, Tensor):
        return content_key({"": value})
    if isinstance(value, MethodType):
        if isinstance(value.__self__, Unseen):
            return frozen(value.__self__.before)
        return (Same(value.__self__), value.__func__)
    return Same(value)


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def content_key(values: Mapping[str, Any]) -> Hashable:
    """Tensors and plain values by content."""
    return tuple(
        (name, tuple(value.shape), digest(latent_bytes(value))) if isinstance(value, Tensor) else (name, repr(value))
        for name, value in sorted(values.items())
    )


def weights_key(model: comfy.model_patcher.ModelPatcher) -> Hashable:
    """What tells the loaded weights from all others: the model, its patches and their strengths, and a sample of
    each weight, for what was written into them without a patch.

    The host gives the patches a new id with each one that is added. Adapters that are injected into modules have
    no such id and count by identity.
    """
    samples: dict[torch.device, list[Tensor]] = {}
    for weight in model.model.diffusion_model.parameters():
        flat = weight.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // _SAMPLES)].float()
        samples.setdefault(picked.device, []).append(picked)
    content = b"".join(torch.cat(parts).cpu().numpy().tobytes() for parts in samples.values())
    return (Same(model.model), model.patches_uuid, digest(content), frozen(model.injections))
