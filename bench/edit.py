"""InstructPix2Pix: does it equal the host's own route, what does it cost, and how good are the edits?

Four parts, each with figures of its own. All use the demo's editor on ShapeWorld; the oracle judges.

- native: the greatest difference to the host's InstructPixToPixConditioning with DualCFGGuider where the settings mean
  the same, over batches of 1 and 3, without a mask and with half of one.
- costs: whole runs against plain CFG on the same model, interleaved in one process. Only worth something on a machine
  that does nothing else.
- edits: 200 held-out edits of one attribute (colour, shape, ground, style), worked on at 192 px: the share done as
  told, and of the things that no edit touches the share that is still there; and how many of those the autoencoder
  alone keeps. The same at 128 px (`_small`), with the default intervals of the two scales, which ask the model less,
  and for adding and removing at 128 px.
- curves: what each method offers of both at 128 px, over its own setting: image scales 1.0 to 2.2 at a text scale of
  7.5 for the editor, the strength for SDEdit, the share of steps for Prompt-to-Prompt. `curve_area` is by the oracle:
  rest kept against edits done. `clip_area` is the paper's figure 8 by the demo's own CLIP, which tells colours well
  and shapes hardly: image similarity against directional similarity. An area is the part of the unit square below and
  left of the curve.

With --part, the figures of the other parts stay in the result file as they are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from _figures import RESULTS, Figure, Note, difference, mean, run_parts, share, single
from _world import CFG, STEPS, Checkpoint, load_checkpoint, pack, start_host

start_host()
pack()

import comfy.samplers  # noqa: E402
import comfy.utils  # noqa: E402
from _edit_baselines import edit_by_prompts, sdedit  # noqa: E402
from _edits import SEED, SMALL, Judged, area, edited, guidance, judged, pictures_of, rebuilt  # noqa: E402
from _people import clip  # noqa: E402
from _sheet import save_sheet  # noqa: E402
from atelier.attention.guider import (  # noqa: E402
    EditGuidance,
    EditGuider,
    edit_noise,
    with_picture,
    without_picture,
)
from atelier.nodes.edit_inputs import DEFAULTS  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_custom_sampler import Guider_DualCFG  # noqa: E402
from shapeworld.edit_trial import EditTrial, edit_trials  # noqa: E402
from torch import Tensor  # noqa: E402

COUNT, CURVE_COUNT, QUICK = 200, 48, 8
IMAGE_SCALES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
STRENGTHS = (0.3, 0.5, 0.65, 0.8, 0.95)
SHARES = (0.0, 0.3, 0.6, 0.9)
TEXT_SCALE = 7.5
BIG, REPEATS = 32, 5
"""Side of the latents that are timed, and how often."""

Conds = tuple[list, list, list]


def conds_of(checkpoint: Checkpoint, picture: Tensor, rows: int) -> Conds:
    """The three questions for one instruction and a latent."""
    told, silent = checkpoint.encode(["make it night"] * rows), checkpoint.encode([""] * rows)
    return with_picture(told, picture, True), with_picture(silent, picture, True), without_picture(silent)


def ours(checkpoint: Checkpoint, how: EditGuidance, conds: Conds) -> EditGuider:
    guider = EditGuider(checkpoint.model, how)
    guider.set_conds(*conds)
    return guider


def native(checkpoint: Checkpoint, text: float, picture: float, conds: Conds) -> Guider_DualCFG:
    guider = Guider_DualCFG(checkpoint.model)
    guider.set_conds(*conds)
    guider.set_cfg(text, picture)
    return guider


def plain(checkpoint: Checkpoint, conds: Conds) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(checkpoint.model)
    guider.set_conds(conds[0], conds[2])
    guider.set_cfg(CFG)
    return guider


def sample(guider: comfy.samplers.CFGGuider, start: Tensor, mask: Tensor | None = None) -> Tensor:
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    euler = comfy.samplers.sampler_object("euler")
    noise = edit_noise(start.shape, SEED)
    return guider.sample(noise, start, euler, sigmas, denoise_mask=mask, disable_pbar=True, seed=SEED)


def native_part(quick: bool, note: Note) -> None:
    checkpoint = load_checkpoint("edit")
    picture = checkpoint.vae.encode(pictures_of(edit_trials(1)))
    half = torch.zeros(1, 1, 16, 16)
    half[..., :8] = 1.0
    gaps = []
    for rows, mask, scales in itertools.product((1, 3), (None, half), ((7.5, 1.5), (4.0, 1.2), (7.5, 1.0), (1.0, 1.0))):
        conds = conds_of(checkpoint, picture, rows)
        start = picture.repeat(rows, 1, 1, 1) if mask is not None else torch.zeros_like(picture).repeat(rows, 1, 1, 1)
        made = [
            sample(guider, start, mask)
            for guider in (ours(checkpoint, guidance(*scales), conds), native(checkpoint, *scales, conds))
        ]
        gaps.append(float((made[0] - made[1]).abs().max()))
    note({"native_max_diff": single(max(gaps), "latent", len(gaps))})


def costs_part(quick: bool, note: Note) -> None:
    checkpoint = load_checkpoint("edit")
    side = 16 if quick else BIG
    picture = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1)) * 5.0
    conds = conds_of(checkpoint, picture, 1)
    arms = {
        "plain": plain(checkpoint, conds),
        "equal_scales": ours(checkpoint, guidance(CFG, CFG), conds),
        "interval": ours(checkpoint, guidance(**DEFAULTS), conds),
        "full": ours(checkpoint, guidance(), conds),
        "native": native(checkpoint, 4.0, 1.2, conds),
    }
    asked = {name: questions(checkpoint, guider, picture) for name, guider in arms.items()}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(2 if quick else REPEATS):
        for name, guider in arms.items():
            began = time.perf_counter()
            sample(guider, torch.zeros_like(picture))
            taken[name].append(time.perf_counter() - began)
    ratios = {name: [a / b for a, b in zip(taken[name], taken["plain"], strict=True)] for name in arms}
    note({"evals_equal_scales": single(asked["equal_scales"], "evaluations a step", STEPS)})
    note({"evals_interval": single(asked["interval"], "evaluations a step", STEPS)})
    note({f"cost_{name}": mean(ratios[name], "ratio") for name in ("equal_scales", "interval", "full", "native")})


def questions(checkpoint: Checkpoint, guider: comfy.samplers.CFGGuider, picture: Tensor) -> float:
    """How many questions a step asks the model, as a mean over a run."""
    asked: list[int] = []

    def count(executor: Callable[..., Tensor], x: Tensor, *args: object, **kwargs: object) -> Tensor:
        asked.append(len(x))
        return executor(x, *args, **kwargs)

    options = guider.model_options
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    comfy.patcher_extension.add_wrapper(WrappersMP.APPLY_MODEL, count, guider.model_options, is_model_options=True)
    sample(guider, torch.zeros_like(picture))
    guider.model_options = options
    return sum(asked) / STEPS


def edits_part(quick: bool, note: Note) -> None:
    checkpoint, trials = load_checkpoint("edit"), edit_trials(QUICK if quick else COUNT)
    made = edited(checkpoint, trials, guidance())
    full = judged(trials, made)
    note({"edit_done": share(full.done), "rest_kept": share(full.rest)})
    for kind in dict.fromkeys(trial.edit.kind for trial in trials):
        of_kind = [done for trial, done in zip(trials, full.done, strict=True) if trial.edit.kind == kind]
        note({f"edit_done_{kind}": share(of_kind)})
    through = judged(trials, rebuilt(checkpoint, trials))
    note({"rest_kept_autoencoder": share(through.rest)})
    small = judged(trials, edited(checkpoint, trials, guidance(), side=SMALL))
    note({"edit_done_small": share(small.done), "rest_kept_small": share(small.rest)})
    note({"rest_kept_autoencoder_small": share(judged(trials, rebuilt(checkpoint, trials, SMALL)).rest)})
    short = judged(trials, edited(checkpoint, trials, guidance(**DEFAULTS)))
    note({"edit_done_interval": share(short.done), "rest_kept_interval": share(short.rest)})
    note({"score_interval_minus_full": difference(short.scores, full.scores, "score")})
    others = edit_trials(QUICK if quick else COUNT // 2, ("add", "remove"))
    more = judged(others, edited(checkpoint, others, guidance(), side=SMALL))
    note({"edit_done_add_remove": share(more.done), "rest_kept_add_remove": share(more.rest)})
    if not quick:
        pairs = [picture for pair in zip(pictures_of(trials[:24]), made[:24], strict=True) for picture in pair]
        save_sheet(torch.stack(pairs), RESULTS / "edit_pairs.jpg")


def curves_part(quick: bool, note: Note) -> None:
    trials = edit_trials(QUICK if quick else CURVE_COUNT, part=2)
    pictures = pictures_of(trials)
    editor, base = load_checkpoint("edit"), load_checkpoint("base")
    before, after = ([getattr(t, f"caption_{which}") for t in trials] for which in ("before", "after"))
    methods: dict[str, tuple[Sequence[float], Callable[[float], Tensor]]] = {
        "ours": (IMAGE_SCALES, lambda scale: edited(editor, trials, guidance(TEXT_SCALE, scale), side=SMALL)),
        "sdedit": (STRENGTHS, lambda strength: sdedit(base, pictures, after, strength, SEED)),
        "p2p": (SHARES, lambda part: edit_by_prompts(base, pictures, before, after, part)),
    }
    curves: dict[str, list[list[float]]] = {}
    for name, (settings, draw) in methods.items():
        rows, runs = [], []
        for setting in settings[::2] if quick else settings:
            made = draw(setting)
            runs.append(judged(trials, made))
            rows.append([setting, *offered(runs[-1]), *similarities(pictures, made, trials)])
            print(f"{name} {setting}: " + "  ".join(f"{value:.3f}" for value in rows[-1][1:]), flush=True)
        curves[name] = rows
        note({f"curve_area_{name}": with_interval([(r.done, r.kept) for r in runs])})
        note({f"clip_area_{name}": single(area([(row[3], row[4]) for row in rows]), "area", len(trials))})
    if not quick:
        plot(curves)


def offered(found: Judged) -> tuple[float, float]:
    """The share of things kept, and of edits done."""
    return float(np.mean(found.rest)), float(np.mean(found.done))


def with_interval(runs: Sequence[tuple[list[bool], list[list[bool]]]], draws: int = 1000) -> Figure:
    """The area below the runs' points, with its 95 % bootstrap interval over the trials."""
    done = np.array([run[0] for run in runs], np.float64)
    kept = np.array([[sum(things) for things in run[1]] for run in runs], np.float64)
    things = np.array([len(things) for things in runs[0][1]], np.float64)

    def area_of(picks: np.ndarray) -> float:
        rest = kept[:, picks].sum(1) / max(1.0, things[picks].sum())
        return area(list(zip(rest, done[:, picks].mean(1), strict=True)))

    count, rng = done.shape[1], np.random.default_rng(0)
    low, high = np.percentile([area_of(rng.integers(0, count, count)) for _ in range(draws)], (2.5, 97.5))
    value = area_of(np.arange(count))
    return single(value, "area", count) | {"low": round(float(low), 4), "high": round(float(high), 4)}


def similarities(before: Tensor, after: Tensor, trials: Sequence[EditTrial]) -> tuple[float, float]:
    """Mean cosine of the pictures before and after, and of the change of the pictures with that of the captions."""
    model = clip()
    pictures = [model.encode_images(batch) for batch in (before, after)]
    texts = [
        torch.stack([model.encode_text(getattr(trial, f"caption_{which}")).flatten() for trial in trials])
        for which in ("before", "after")
    ]
    cosine = torch.nn.functional.cosine_similarity
    alike = cosine(pictures[0], pictures[1])
    along = cosine(pictures[1] - pictures[0], texts[1] - texts[0])
    return float(alike.mean()), float(along.mean())


def plot(curves: dict[str, list[list[float]]]) -> None:
    """The two curves of each method side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"ours": "InstructPix2Pix (this pack)", "sdedit": "SDEdit", "p2p": "Prompt-to-Prompt, inverted"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    for name, rows in curves.items():
        for axis, x, y in ((axes[0], 1, 2), (axes[1], 3, 4)):
            axis.plot([row[x] for row in rows], [row[y] for row in rows], "o-", markersize=3, label=names[name])
    axes[0].set(title="Oracle", xlabel="untouched things kept", ylabel="edits done", xlim=(0, 1), ylim=(0, 1))
    axes[1].set(title="Demo CLIP", xlabel="image similarity", ylabel="directional similarity")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "edit_curves.png", dpi=90)


PARTS = {"native": native_part, "costs": costs_part, "edits": edits_part, "curves": curves_part}


@torch.inference_mode()
def main() -> None:
    comfy.utils.PROGRESS_BAR_ENABLED = False
    run_parts("edit", __doc__, PARTS)


if __name__ == "__main__":
    main()
