"""The demo checkpoints inside this process: the host's loaders and its own KSampler, without the server."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPO = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("ATELIER_HOME") or REPO / ".atelier")
STEPS, CFG, BATCH = 20, 4.0, 20


def start_host() -> None:
    """Makes the host and the demo importable. Raises FileNotFoundError when the host is not there."""
    sys.path.insert(0, str(REPO / "demo"))
    from training.host import use_host

    use_host()
    from extension.tiny_sd import register

    register()


def pack() -> Any:
    """The node pack as the package `atelier`; the repository's root never goes on the path."""
    if "atelier" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "atelier", REPO / "__init__.py", submodule_search_locations=[str(REPO)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["atelier"] = module
        spec.loader.exec_module(module)
    return sys.modules["atelier"]


def rendered(scene: Any) -> torch.Tensor:
    """A ShapeWorld scene as a picture [128, 128, 3] in 0..1."""
    from shapeworld.render import render

    return torch.from_numpy(np.array(render(scene))).float() / 255


@dataclass
class Checkpoint:
    """What the stock checkpoint loader gives, and how its pictures are drawn: `size` is their side in px."""

    model: Any
    clip: Any
    vae: Any
    steps: int = STEPS
    cfg: float = CFG
    size: int = 128

    def draw(self, prompts: list[str], seed: int, model: Any = None, numbers: list[int] | None = None) -> torch.Tensor:
        """Pictures [N, size, size, 3] in 0..1, one for each prompt, by the host's KSampler, euler, normal.

        With `numbers`, a picture's noise depends on the seed and its number alone, whatever is drawn along with it.
        """
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        pictures = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            noise = (seed + start, None) if numbers is None else (seed, numbers[part])
            pictures.append(self._draw(prompts[part], *noise, model or self.model))
        return torch.cat(pictures)

    def encode(self, texts: list[str]) -> list[Any]:
        """The prompts as one conditioning, a row for each."""
        import nodes

        encoded = [nodes.CLIPTextEncode().encode(self.clip, text)[0][0] for text in texts]
        pooled = {"pooled_output": torch.cat([e[1]["pooled_output"] for e in encoded])}
        return [[torch.cat([e[0] for e in encoded]), pooled]]

    def _draw(self, prompts: list[str], seed: int, numbers: list[int] | None, model: Any) -> torch.Tensor:
        import nodes

        latent = {"samples": torch.zeros(len(prompts), 4, self.size // 8, self.size // 8)}
        if numbers is not None:
            latent["batch_index"] = numbers
        negative = self.encode([""] * len(prompts))
        sampled = nodes.KSampler().sample(
            model, seed, self.steps, self.cfg, "euler", "normal", self.encode(prompts), negative, latent
        )[0]
        return self.vae.decode(sampled["samples"])


def load_checkpoint(name: str) -> Checkpoint:
    """A demo checkpoint, base or an expert. "chalk+base" is the mean of two models."""
    first, *others = name.split("+")
    file = HOME / "base" / "models" / "checkpoints" / f"shapeworld-{first}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run 'python dev.py demo' once")
    loaded = open_checkpoint(file)
    for other in others:
        weights = load_checkpoint(other).model.get_key_patches("diffusion_model.")
        loaded.model.add_patches(weights, 0.5, 0.5)
    return loaded


def open_checkpoint(file: Path) -> Checkpoint:
    """A checkpoint file through the host's own loader."""
    import comfy.sd

    return Checkpoint(*comfy.sd.load_checkpoint_guess_config(str(file))[:3])


def load_llm() -> Any:
    """The demo's small language model, as a CLIP. Call `pack` first."""
    from assemble import LLM
    from atelier.attention.t5_encoder import load_t5

    return load_t5([HOME / "base" / "models" / "text_encoders" / f"{LLM}.safetensors"])


def load_adapter() -> Any:
    """The demo's Cross-Adapter, as Load Cross-Adapter gives it. Call `pack` first."""
    from assemble import ADAPTER
    from atelier.nodes.cross_adapter import open_adapter

    return open_adapter(HOME / "base" / "models" / "cross_adapters" / f"{ADAPTER}.safetensors")
