"""One training loop for all demo models: seeded, resumable, logged."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

SAVE_EVERY = 200
LOG_EVERY = 20


def cosine(step: int, steps: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning rate: a linear warm-up, then half a cosine down to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


class Average:
    """Exponential moving average of a module's weights. The decay grows with the step up to `decay`.

    Whole numbers, such as a count of batches, are left out.
    """

    def __init__(self, module: torch.nn.Module, decay: float = 0.999):
        self.decay = decay
        state = module.state_dict()
        self.weights = {k: v.detach().clone() for k, v in state.items() if v.is_floating_point()}

    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        now = module.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [now[k] for k in self.weights], 1 - decay)


def train(
    name: str,
    module: torch.nn.Module,
    loss_at: Callable[[int, np.random.Generator], dict[str, torch.Tensor]],
    *,
    steps: int,
    peak: float,
    work: Path,
    seed: int,
    weight_decay: float = 0.01,
    average: float = 0.999,
) -> dict[str, torch.Tensor]:
    """Trains `module` and returns the averaged weights.

    `loss_at(step, rng)` returns named scalars, of which `loss` is minimised. Its generator depends only on the seed
    and the step, so a run that was cut off goes on as if it had not been. State is kept in `work/NAME.pt`.
    """
    work.mkdir(parents=True, exist_ok=True)
    state_file, log_file = work / f"{name}.pt", work / f"{name}.json"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True)
    mean = Average(module, average)
    start, log, spent = 0, [], 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        mean.weights = state["mean"]
        start, spent = state["step"], state["seconds"]
        log = [row for row in json.loads(log_file.read_text())["log"] if row["step"] < start]
        print(f"{name}: resumed at step {start} of {steps}", flush=True)
    began, window = time.time(), {}
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, peak)
        torch.manual_seed(seed * 1_000_003 + step)
        values = loss_at(step, np.random.default_rng([seed, step]))
        optimizer.zero_grad(set_to_none=True)
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean.update(module, step)
        for key, value in values.items():
            window.setdefault(key, []).append(float(value.detach()))
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            seconds = spent + time.time() - began
            log.append(
                {"step": step + 1, "seconds": round(seconds, 1), **{k: float(np.mean(v)) for k, v in window.items()}}
            )
            window = {}
            row = "  ".join(f"{k} {v:.4f}" for k, v in log[-1].items() if k not in ("step", "seconds"))
            left = (steps - step - 1) * (seconds / (step + 1))
            print(f"{name}: {step + 1}/{steps}  {row}  {left / 60:.0f} min left", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "mean": mean.weights,
                "step": step + 1,
                "seconds": spent + time.time() - began,
            }
            torch.save(save, state_file.with_suffix(".part"))
            state_file.with_suffix(".part").replace(state_file)
            log_file.write_text(json.dumps({"name": name, "seed": seed, "steps": steps, "log": log}, indent=1))
    return mean.weights


def draw_curve(log_file: Path, picture: Path) -> None:
    """Draws the columns of a training log over the step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = json.loads(log_file.read_text())
    columns = [k for k in data["log"][0] if k not in ("step", "seconds")]
    figure, axes = plt.subplots(1, len(columns), figsize=(4 * len(columns), 3), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.plot([row["step"] for row in data["log"]], [row[column] for row in data["log"]], linewidth=1)
        axis.set(title=f"{data['name']}: {column}", xlabel="step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=80)
    plt.close(figure)
