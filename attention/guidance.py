"""Guidance with two scales, for the instruction and for the picture (InstructPix2Pix, arXiv 2211.09800, equation 3).

    e = e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0))

The three terms are three questions to the model: with picture and instruction, with neither, with the picture alone.
Collected by question, the weights are s_T, 1 - s_I and s_I - s_T. A question of weight 0 need not be asked.

The equation is linear and its weights add up to 1, so it holds alike for noise, velocities and denoised latents. It is
also plain guidance of scale s_T from one effective unconditional answer, which is a mean of the other two; that is what
hooks for plain guidance are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .schedule import position

FULL, NEITHER, PICTURE = range(3)
"""The questions, with the numbers that other packs' attention patches know: 0 is positive, 1 is negative."""

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda position: 1.0,
    "falling": lambda position: (1.0 + math.cos(math.pi * position)) / 2.0,
    "rising": lambda position: (1.0 - math.cos(math.pi * position)) / 2.0,
}
"""What is left of a scale's distance to 1 at a position in its interval, from 0 at the start to 1 at the end."""

Scale = float | Tensor
"""A guidance scale: one number, or a tensor [B, 1, 1, 1] with one for each row."""


@dataclass(frozen=True)
class ScaleSchedule:
    """A guidance scale over sampling: `value` in its interval (arXiv 2404.07724), 1 outside of it.

    Percents are of the sampling process as in the host's nodes: 0 is pure noise, 1 is the end, and both ends belong to
    the interval. `shape` is one of SHAPES; a scale that falls or rises does so between `value` and 1.
    """

    value: Scale
    start_percent: float = 0.0
    end_percent: float = 1.0
    shape: str = "constant"

    def __post_init__(self) -> None:
        values = self.value.flatten().tolist() if isinstance(self.value, Tensor) else [self.value]
        if not all(math.isfinite(value) for value in values):
            raise ValueError("A guidance scale must be a finite number.")
        if self.shape not in SHAPES:
            raise ValueError(f"{self.shape!r} is no shape of a scale; these are: {', '.join(SHAPES)}.")

    def at(self, sigma: float, percent_to_sigma: Callable[[float], float]) -> Scale:
        """The scale at a noise level. `percent_to_sigma` is the host's, which only falls."""
        if not percent_to_sigma(self.end_percent) <= sigma <= percent_to_sigma(self.start_percent):
            return 1.0
        if self.shape == "constant":
            return self.value
        start, end = self.start_percent, self.end_percent
        place = position(sigma, start, end, percent_to_sigma) if start < end else 0.0
        return 1.0 + (self.value - 1.0) * SHAPES[self.shape](place)


def weights(text_scale: Scale, picture_scale: Scale) -> dict[int, Scale]:
    """The weight of each question's answer in equation 3."""
    return {FULL: text_scale, NEITHER: 1.0 - picture_scale, PICTURE: picture_scale - text_scale}


def needed(text_scale: Scale, picture_scale: Scale) -> tuple[int, ...]:
    """The fewest questions that give equation 3, in order: 1 to 3 of them.

    1 where both scales are 1 or both are 0; 2 where they are equal, where the picture's is 1, or where the
    instruction's is 0. Weights that are 0 but for rounding count as 0.
    """
    return tuple(q for q, weight in weights(text_scale, picture_scale).items() if not _is_zero(weight))


def combine(answers: Mapping[int, Tensor], text_scale: Scale, picture_scale: Scale) -> Tensor:
    """Equation 3 from the answers [B, C, H, W] to the questions that `needed` names."""
    if PICTURE not in answers:
        if NEITHER not in answers:
            return answers[FULL]
        return _apart(answers[NEITHER], answers.get(FULL), text_scale)
    guided = answers[PICTURE]
    if NEITHER in answers:
        guided = _apart(answers[NEITHER], answers[PICTURE], picture_scale)
    return guided if FULL not in answers else guided + (answers[FULL] - answers[PICTURE]) * text_scale


def as_plain(answers: Mapping[int, Tensor], text_scale: Scale, picture_scale: Scale) -> tuple[Tensor, Tensor, Scale]:
    """Equation 3 as plain guidance: (positive, negative, scale) with negative + (positive - negative) * scale.

    Positive is the answer with picture and instruction where that was asked for. Negative is the mean of the other two
    that makes this exact; where the instruction's scale is 1, which plain guidance cannot have, the picture's is used.
    """
    positive = answers.get(FULL, answers.get(PICTURE, answers.get(NEITHER)))
    others = [question for question in answers if answers[question] is not positive]
    if not others:
        return positive, positive, 1.0
    if FULL not in answers:
        return positive, answers[NEITHER], picture_scale
    if len(others) == 1:
        return positive, answers[others[0]], text_scale
    if _is_zero(text_scale - 1.0):
        return positive, positive - answers[PICTURE] + answers[NEITHER], picture_scale
    if isinstance(text_scale, Tensor) and bool((text_scale == 1.0).any()):
        guided = combine(answers, text_scale, picture_scale)
        return positive, 2.0 * positive - guided, 2.0
    share = (1.0 - picture_scale) / (1.0 - text_scale)
    return positive, answers[PICTURE] + (answers[NEITHER] - answers[PICTURE]) * share, text_scale


def rescale(guided: Tensor, positive: Tensor, noisy: Tensor, sigma: Tensor, amount: float) -> Tensor:
    """Guidance rescale (arXiv 2305.08891, equations 15 and 16) of denoised latents [B, C, H, W].

    The spread of the velocity is brought back to that of the positive answer, by `amount` in 0..1. `sigma` is [B], on
    the scale of the host's noisy latents.
    """
    if amount == 0.0:
        return guided
    base = noisy / (sigma.view(-1, *[1] * (noisy.ndim - 1)) ** 2 + 1.0)
    spread = [(base - denoised).flatten(1).std(1) for denoised in (positive, guided)]
    ratio = (spread[0] / spread[1].clamp(min=1e-12)).view(-1, *[1] * (noisy.ndim - 1))
    return base - (base - guided) * (amount * ratio + 1.0 - amount)


@dataclass
class Reuse:
    """Serves the answer without picture and instruction from an earlier step, while that does little harm.

    What is kept is d = e(I, 0) - e(0, 0), what the picture says, which changes slowly. Its weight in the result is
    1 - s_I, so serving an old d is wrong by |1 - s_I| times the change of d. The change is estimated from the last two
    times it was asked, as a rate per unit of log sigma, and it is asked again before the estimated error of a denoised
    latent, root mean square over a row's elements, exceeds `tolerance` in any row. So the bound holds as far as the
    rate does not grow between two steps at which it is measured.

    One object serves one run.
    """

    tolerance: float
    served: int = 0
    _kept: Tensor | None = None
    _level: float = 0.0
    _rate: float = field(default=math.inf)

    def serves(self, sigma: float, picture_scale: Scale, shape: Sequence[int]) -> bool:
        """Whether the kept difference may stand for a new one at this noise level, for latents of this shape."""
        if self.tolerance <= 0.0 or self._kept is None or self._kept.shape != tuple(shape) or sigma <= 0.0:
            return False
        weight = float((picture_scale - 1.0).abs().max() if isinstance(picture_scale, Tensor) else picture_scale - 1.0)
        return abs(weight) * self._rate * abs(math.log(sigma) - self._level) <= self.tolerance

    def keep(self, sigma: float, difference: Tensor) -> None:
        """Take note of a new difference [B, C, H, W], and of how fast it changes."""
        if self.tolerance <= 0.0 or sigma <= 0.0:
            return
        level = math.log(sigma)
        if self._kept is not None and self._kept.shape == difference.shape and level != self._level:
            change = (difference - self._kept).flatten(1).square().mean(1).sqrt().max()
            self._rate = float(change) / abs(level - self._level)
        self._kept, self._level = difference, level

    def neither(self, picture: Tensor) -> Tensor:
        """The answer to the question with neither, from that with the picture."""
        self.served += 1
        return picture - self._kept


def _apart(start: Tensor, end: Tensor | None, scale: Scale) -> Tensor:
    return start if end is None else start + (end - start) * scale


def _is_zero(value: Scale) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isclose(value, torch.zeros_like(value), atol=1e-9).all())
    return math.isclose(value, 0.0, abs_tol=1e-9)
