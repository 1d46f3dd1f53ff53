"""Plays many sessions of feedback at once, each worker on one core, and keeps what was drawn, so that a run can go on.

To be imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _people import embedder, with_target, with_taste
from _rounds import BATCH, PLAIN, Arm, Played, Session, first_round, play
from _world import HOME, Checkpoint, load_checkpoint, pack, start_host

FOLDER = HOME / "bench" / "fabric_sessions"
STEPS = 10
"""A picture of these small models is as good with 10 steps as with 20, and a thousand rounds are to be drawn."""


@dataclass(frozen=True)
class Kept:
    """A session that was played. `scores` [round, BATCH]; `pictures` [round, BATCH, height, width, 3] of uint8."""

    scores: np.ndarray
    pictures: np.ndarray

    @staticmethod
    def of(played: Played) -> Kept:
        pictures = torch.stack(played.pictures).clamp(0, 1).mul(255).round().byte().numpy()
        return Kept(np.asarray(played.scores), pictures)


def play_sessions(
    protocol: str, count: int, arms: Sequence[Arm], resume: bool, quick: bool = False
) -> dict[str, list[Kept]]:
    """Sessions 0 to `count` of a protocol, "preference" or "target", in each of the arms and without feedback.

    `resume` takes those that an earlier run has played; `quick` plays them in a folder of its own.
    """
    folder = FOLDER / f"{protocol}-quick" if quick else FOLDER / protocol
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if protocol == "target":
        embedder()  # written to the disk once, and not by each worker
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=_start_worker) as pool:
        tasks = [pool.submit(_play_one, protocol, number, tuple(arms), folder) for number in range(count)]
        for done, task in enumerate(as_completed(tasks), start=1):
            task.result()
            print(f"{protocol}: {done} of {count} sessions", flush=True)
    return {arm.name: [_load(folder, arm, number) for number in range(count)] for arm in (PLAIN, *arms)}


def _start_worker() -> None:
    start_host()
    pack()
    torch.set_num_threads(1)


@torch.inference_mode()
def _play_one(protocol: str, number: int, arms: Sequence[Arm], folder: Path) -> None:
    missing = [arm for arm in (PLAIN, *arms) if not _file(folder, arm, number).is_file()]
    if not missing:
        return
    checkpoint, session = _checkpoint(), _session(protocol, number)
    first = first_round(checkpoint, session)
    for arm in missing:
        _save(folder, arm, number, Kept.of(play(checkpoint, session, first, arm)))


@functools.cache
def _checkpoint() -> Checkpoint:
    checkpoint = load_checkpoint("base")
    checkpoint.steps = STEPS
    return checkpoint


def _session(protocol: str, number: int) -> Session:
    return with_taste(number) if protocol == "preference" else with_target(number, embedder())


def _file(folder: Path, arm: Arm, number: int) -> Path:
    return folder / f"{arm.name}-{number}.npz"


def _save(folder: Path, arm: Arm, number: int, kept: Kept) -> None:
    file = _file(folder, arm, number)
    with open(file.with_suffix(".part"), "wb") as part:
        np.savez_compressed(part, scores=kept.scores, pictures=kept.pictures)
    file.with_suffix(".part").rename(file)


def _load(folder: Path, arm: Arm, number: int) -> Kept:
    with np.load(_file(folder, arm, number)) as found:
        assert found["scores"].shape[1] == BATCH
        return Kept(found["scores"], found["pictures"])
