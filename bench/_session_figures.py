"""Figures and a plot of sessions of feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from _figures import Figure, difference, mean
from _people import Embed
from _sessions import Kept

Sessions = Mapping[str, Sequence[Kept]]
"""Sessions by arm, the same persons in the same order in each."""

LATER = slice(1, None)
"""The rounds that feedback can change."""


def score_figures(protocol: str, arms: Sessions) -> dict[str, Figure]:
    """Mean, best and worst score of each arm and round, and what feedback gains."""
    figures: dict[str, Figure] = {}
    for arm, sessions in arms.items():
        scores = np.stack([session.scores for session in sessions])
        for number in range(scores.shape[1]):
            for what, of_batch in (("mean", np.mean), ("max", np.max), ("min", np.min)):
                key = f"{protocol}_{arm}_round{number + 1}_{what}"
                figures[key] = mean(of_batch(scores[:, number], axis=1), "score")
    means = {arm: np.stack([session.scores.mean(1) for session in sessions]) for arm, sessions in arms.items()}
    for number in range(1, means["plain"].shape[1]):
        gap = difference(means["feedback"][:, number], means["plain"][:, number], "score")
        figures[f"{protocol}_round{number + 1}_gain"] = gap
    later = {arm: values[:, LATER].mean(1) for arm, values in means.items()}
    for key, other in (
        ("both_minus_positive_only", "positive_only"),
        ("first_half_minus_second_half", "second_half"),
        ("all_minus_exploring", "exploring"),
        ("seed_minus_fixed_noise", "fixed_noise"),
    ):
        if other in later:
            figures[key] = difference(later["feedback"], later[other], "score")
    return figures


def likeness_figures(protocol: str, arms: Sessions, embed: Embed) -> dict[str, Figure]:
    """How near new pictures are to those rated before, and to each other: cosines of embeddings.

    Rated are the best and the worst of the rounds before. Diversity is 1 minus the mean cosine of two pictures of a
    batch; what the paper's code calls diversity is that cosine.
    """
    figures: dict[str, Figure] = {}
    for arm, sessions in arms.items():
        alike: dict[str, list[float]] = {"to_liked": [], "to_disliked": [], "diversity": []}
        for session in sessions:
            rounds = [_embedded(pictures, embed) for pictures in session.pictures]
            best = [vectors[scores.argmax()] for vectors, scores in zip(rounds, session.scores, strict=True)]
            worst = [vectors[scores.argmin()] for vectors, scores in zip(rounds, session.scores, strict=True)]
            last = rounds[-1]
            alike["to_liked"].append(float((last @ torch.stack(best[:-1]).T).mean()))
            alike["to_disliked"].append(float((last @ torch.stack(worst[:-1]).T).mean()))
            alike["diversity"].append(_diversity(last))
        figures |= {f"{protocol}_{arm}_{key}": mean(values, "cosine") for key, values in alike.items()}
    return figures


def _embedded(pictures: np.ndarray, embed: Embed) -> torch.Tensor:
    return embed(torch.from_numpy(pictures).float() / 255)


def _diversity(vectors: torch.Tensor) -> float:
    count = len(vectors)
    cosines = vectors @ vectors.T
    return 1 - float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def plot(protocols: Mapping[str, Sessions], file: Path) -> None:
    """The mean score of each arm by round, with its 95 % interval, one panel for each protocol."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(protocols), figsize=(5 * len(protocols), 4), squeeze=False)
    for panel, (protocol, arms) in zip(panels[0], protocols.items(), strict=True):
        for at, (arm, sessions) in enumerate(arms.items()):
            means = np.stack([session.scores.mean(1) for session in sessions])
            rounds = np.arange(1, means.shape[1] + 1) + 0.03 * at
            half = 1.96 * means.std(0, ddof=1) / np.sqrt(len(means))
            panel.errorbar(rounds, means.mean(0), half, label=arm.replace("_", " "), capsize=3, marker="o")
        panel.set(title=f"{protocol} protocol", xlabel="round", ylabel="mean score", xticks=(1, 2, 3))
        panel.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
