"""The training loop that all methods share: seeded, resumable, with averaged weights and gradient accumulation."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOG_EVERY = 20
"""Steps whose losses are averaged into one row of the log."""

STATE, LOG = "state.pt", "log.json"
"""The files of a training in its folder."""

LossAt = Callable[[np.random.Generator], Mapping[str, Tensor]]
"""Named scalars of one random batch, of which `loss` is minimised."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Takes the number of steps done and the last row of the log. What it raises stops the training without loss."""

EachStep = Callable[[int, float], None]
"""Takes the number of steps done and the loss of the last one. It may raise as `Progress` may."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train. One step is `accumulate` batches.

    The learning rate rises for `warmup` steps and falls as half a cosine to a fiftieth. `average` is the decay of the
    averaged weights, which are the result; it starts lower.
    """

    steps: int
    learning_rate: float
    seed: int = 0
    accumulate: int = 1
    average: float = 0.999
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 200

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError("A training needs 1 step and 1 batch for each step, or more.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"The learning rate must be above 0, not {self.learning_rate}.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class Average:
    """Exponential moving average of a module's trained weights. The decay grows with the step up to `decay`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in _trained(module).items()}

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        now = _trained(module)
        torch._foreach_lerp_(list(self.weights.values()), [now[name].detach() for name in self.weights], 1 - decay)


def train(
    module: nn.Module,
    loss_at: LossAt,
    plan: Plan,
    folder: Path,
    about: str = "",
    progress: Progress | None = None,
    each_step: EachStep | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """Train what requires a gradient in `module`, and return the averaged weights by parameter name.

    The generator that `loss_at` gets depends on the seed and the step alone, so a training that was cut off goes on as
    if it had not been. `folder/state.pt` holds its state and `folder/log.json` its losses; both are replaced at once,
    never half. They are written every `save_every` steps, at the end, and when anything stops the training.

    Args:
        about: what else the training depends on, such as its data and its start. A state of other data, or of another
            plan but for the number of steps, is refused.
        scaler: For losses in fp16, whose small gradients would else be lost (arXiv 1710.03740, section 3.2). A step
            whose scaled gradients overflow changes no weight.

    Raises:
        ValueError: The folder holds another training, or a loss or a gradient is not a finite number.
        OSError: The state cannot be written. The one that was there stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = list(_trained(module).values())
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99), fused=True
    )
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    run = _Run(module, optimizer, scaler, Average(module, plan.average), folder, _identity(plan, about))
    run.resume()
    saved = run.step
    try:
        while run.step < plan.steps:
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(run.step)
            row = run.advance(loss_at, plan)
            if each_step is not None:
                each_step(run.step, run.loss)
            if row is not None and progress is not None:
                progress(run.step, row)
            if run.step % plan.save_every == 0:
                run.save()
                saved = run.step
    finally:
        if run.step > saved:
            run.save()
    return run.mean.weights


class _Run:
    """A training in progress: all that changes from step to step."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        mean: Average,
        folder: Path,
        identity: str,
    ) -> None:
        self.module, self.optimizer, self.scaler, self.mean, self.identity = module, optimizer, scaler, mean, identity
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        self.log: list[dict[str, float]] = []
        self._folder = folder
        self._window: dict[str, list[float]] = {}

    def advance(self, loss_at: LossAt, plan: Plan) -> dict[str, float] | None:
        """One step; the log's new row if there is one."""
        began = time.perf_counter()
        torch.manual_seed(plan.seed * 1_000_003 + self.step)
        rng = np.random.default_rng([plan.seed, self.step])
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(plan.accumulate):
            values = loss_at(rng)
            self.scaler.scale(values["loss"] / plan.accumulate).backward()
            for name, value in values.items():
                self._window.setdefault(name, []).append(float(value.detach()))
        self.loss = float(np.mean(self._window["loss"][-plan.accumulate :]))
        self._check("loss", self.loss)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(list(_trained(self.module).values()), plan.clip)
        if not self.scaler.is_enabled():
            self._check("gradient", float(norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.mean.update(self.module, self.step)
        self.step += 1
        self.seconds += time.perf_counter() - began
        if self.step % LOG_EVERY and self.step != plan.steps:
            return None
        row = {name: float(np.mean(window)) for name, window in self._window.items()}
        self.log.append({"step": self.step, "seconds": round(self.seconds, 1), **row})
        self._window = {}
        return self.log[-1]

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"The {what} of step {self.step + 1} is not a finite number. Use a lower learning rate. The state "
                "before this step is kept."
            )

    def save(self) -> None:
        state: dict[str, Any] = {
            "identity": self.identity,
            "module": {name: p.detach() for name, p in _trained(self.module).items()},
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean.weights,
            "step": self.step,
            "seconds": self.seconds,
        }
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        write_state(self._folder, state, self.log)

    def resume(self) -> None:
        state = read_state(self._folder, self.identity, "other data or another model")
        if state is None:
            return
        with torch.no_grad():
            for name, parameter in _trained(self.module).items():
                parameter.copy_(state["module"][name])
                self.mean.weights[name].copy_(state["mean"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.step, self.seconds = state["step"], state["seconds"]
        if (self._folder / LOG).exists():
            rows = json.loads((self._folder / LOG).read_text(encoding="utf-8"))
            self.log = [row for row in rows if row["step"] <= self.step]


def write_state(folder: Path, state: Mapping[str, Any], log: list[dict[str, float]]) -> None:
    """Replace the state of a training, which holds its `identity`, and its log, each at once.

    Raises:
        OSError: They cannot be written. Those that were there stay.
    """
    replace_file(folder / STATE, lambda part: torch.save(state, part))
    text = json.dumps(log, indent=1)
    replace_file(folder / LOG, lambda part: part.write_text(text, encoding="utf-8"))


def read_state(folder: Path, identity: str, other: str) -> dict[str, Any] | None:
    """The state that `write_state` left in a folder, on the CPU; None if there is none.

    Raises:
        ValueError: It is that of another training, one with other settings or with what `other` says.
    """
    if not (folder / STATE).exists():
        return None
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    if state["identity"] != identity:
        raise ValueError(
            f"{folder} holds a training with other settings, {other}. Give this one another name, or delete the folder."
        )
    return state


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a new file, and put it in the place of the old one when it is whole.

    Raises:
        OSError: It cannot be written, for instance because the disk is full. The old file is as it was.
    """
    part = file.with_suffix(".part")
    try:
        write(part)
        part.replace(file)
    except Exception as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(
            f"{file} cannot be written: {error}. What was there before is kept. Make room on the disk and go on."
        ) from error


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _identity(plan: Plan, about: str) -> str:
    kept = {name: value for name, value in asdict(plan).items() if name not in ("steps", "save_every")}
    return json.dumps({**kept, "about": about}, sort_keys=True)
