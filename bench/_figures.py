"""Figures of a benchmark: what was measured, how often, how sure, and the file that keeps it."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
Figure = dict[str, Any]
Note = Callable[[dict[str, Figure]], None]
"""Takes figures by name."""


def single(value: float, unit: str, n: int = 1) -> Figure:
    """A figure without an interval."""
    short = round(float(value), 4) if abs(value) >= 0.01 else float(f"{value:.3g}")
    return {"value": short, "unit": unit, "n": n, "low": None, "high": None}


def share(hits: Sequence[bool]) -> Figure:
    """A share of hits with its 95 % Wilson interval."""
    n, p, z = len(hits), float(np.mean(hits)), 1.96
    centre, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - width) / (1 + z * z / n), (centre + width) / (1 + z * z / n)
    return {"value": round(p, 4), "unit": "share", "n": n, "low": round(low, 4), "high": round(high, 4)}


def mean(values: Sequence[float], unit: str) -> Figure:
    """A mean with its 95 % normal interval."""
    n, m = len(values), float(np.mean(values))
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return {"value": round(m, 4), "unit": unit, "n": n, "low": round(m - half, 4), "high": round(m + half, 4)}


def difference(ours: Sequence[float], theirs: Sequence[float], unit: str, draws: int = 10_000) -> Figure:
    """The mean difference of pairs with its 95 % bootstrap interval over the pairs."""
    gaps = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    picks = np.random.default_rng(0).integers(0, len(gaps), (draws, len(gaps)))
    low, high = np.percentile(gaps[picks].mean(1), (2.5, 97.5))
    return single(gaps.mean(), unit, len(gaps)) | {"low": round(float(low), 4), "high": round(float(high), 4)}


def ratio(ours: Sequence[bool], theirs: Sequence[bool], draws: int = 10_000) -> Figure:
    """One share of hits as a multiple of another, with its 95 % bootstrap interval over pairs."""
    pairs = np.asarray([ours, theirs], np.float64)
    picks = np.random.default_rng(0).integers(0, pairs.shape[1], (draws, pairs.shape[1]))
    above, below = pairs[:, picks].mean(2)
    low, high = np.percentile(above / np.maximum(below, 1 / pairs.shape[1]), (2.5, 97.5))
    value = pairs[0].mean() / max(pairs[1].mean(), 1 / pairs.shape[1])
    return single(value, "times", pairs.shape[1]) | {"low": round(float(low), 4), "high": round(float(high), 4)}


def show(figures: dict[str, Figure]) -> None:
    for key, figure in figures.items():
        interval = f"  [{figure['low']}, {figure['high']}]" if figure["low"] is not None else ""
        print(f"{key:28} {figure['value']:<9} {figure['unit']:7} n={figure['n']}{interval}", flush=True)


def run_parts(name: str, doc: str, parts: Mapping[str, Callable[[bool, Note], None]]) -> None:
    """The command line of a benchmark of several parts, each told whether the sample is small, and where figures go.

    Figures are written as they come, so a run that is cut off loses none. A whole run drops those of earlier ones.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small sample; writes nothing")
    parser.add_argument("--part", choices=parts, action="append", help="only this part; may be given again")
    options = parser.parse_args()
    figures: dict[str, Figure] = {}

    def note(new: dict[str, Figure]) -> None:
        figures.update(new)
        show(new)
        if not options.quick:
            save(name, new, keep=True)

    for part in options.part or parts:
        parts[part](options.quick, note)
    if not options.quick:
        print(f"wrote {save(name, figures, keep=options.part is not None)}")


def save(name: str, figures: dict[str, Figure], keep: bool = False) -> Path:
    """Writes `results/NAME.json`. With `keep`, figures of an earlier run that are not among these stay there."""
    import torch

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    result = {
        "command": f"python dev.py bench {name}",
        "date": datetime.date.today().isoformat(),
        "commit": git.stdout.strip(),
        "machine": f"{machine}, {torch.get_num_threads()} threads, Python {sys.version.split()[0]}",
        "torch": torch.__version__,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    if keep and file.is_file():
        result["figures"] = json.loads(file.read_text())["figures"] | figures
    file.write_text(json.dumps(result, indent=1) + "\n")
    return file
