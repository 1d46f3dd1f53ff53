"""The guider that asks the host's model what equation 3 of InstructPix2Pix needs, and combines the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, add_wrapper_with_key
from torch import Tensor

from .guidance import FULL, NEITHER, PICTURE, Reuse, Scale, ScaleSchedule, as_plain, combine, needed, rescale

PICTURE_KEYS = ("concat_latent_image", "reference_latents", "reference_latents_method")
"""Where the host's conditionings hold the picture to edit: 8-channel UNets have the first, others the second."""

Conditioning = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class EditGuidance:
    """How much the instruction and the picture count: equation 3 of arXiv 2211.09800, with what the pack adds.

    rescale: guidance rescale of the whole combination, 0..1 (arXiv 2305.08891).
    tolerance: how wrong a denoised latent may be for reuse of the slowest answer, see `guidance.Reuse`; 0 is off.
    """

    text: ScaleSchedule
    picture: ScaleSchedule
    rescale: float = 0.0
    tolerance: float = 0.0


@dataclass
class SharedStart:
    """The answers to the first step, for runs and rows that all start from the same noise, picture and instruction."""

    answers: dict[int, Tensor] = field(default_factory=dict)


class EditGuider(comfy.samplers.CFGGuider):
    """A guider for `SamplerCustomAdvanced`: fewest questions for each step, and hooks that see the whole guidance."""

    def __init__(
        self, model: comfy.model_patcher.ModelPatcher, guidance: EditGuidance, shared: SharedStart | None = None
    ) -> None:
        super().__init__(model)
        self.guidance = guidance
        self._shared = shared
        self._reuse = Reuse(guidance.tolerance)
        self._first_sigma: float | None = None

    def set_conds(self, positive: Conditioning, picture: Conditioning, neither: Conditioning) -> None:
        """Conditionings of the three questions: picture and instruction; the picture alone; neither."""
        silent = [[cond, {**options, "prompt_type": "negative"}] for cond, options in picture]
        self.inner_set_conds({"positive": positive, "negative": neither, "middle": silent})

    def sample(self, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._reuse = Reuse(self.guidance.tolerance)
        self._first_sigma = None
        return super().sample(noise, *args, **kwargs)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The denoised latent [B, C, H, W] for noisy x at `timestep`, which is sigma [B]."""
        options = model_options or {}
        sigma = float(timestep[0])
        to_sigma = self.inner_model.model_sampling.percent_to_sigma
        text, picture = (scale.at(sigma, to_sigma) for scale in (self.guidance.text, self.guidance.picture))
        questions = needed(text, picture)
        if options.get("disable_cfg1_optimization", False):
            questions = (FULL, NEITHER, PICTURE)
        answers = self._answers(questions, picture, x, timestep, options)
        guided = self._guided(answers, text, picture, x, timestep, options)
        if self.guidance.rescale == 0.0:
            return guided
        positive = answers.get(FULL, guided)
        return rescale(guided, positive, x, timestep.expand(len(x)), self.guidance.rescale)

    def _answers(
        self, questions: Sequence[int], picture: Scale, x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> dict[int, Tensor]:
        """The answers that are needed, from the model or from what is kept."""
        sigma = float(timestep[0])
        if self._first_sigma is None:
            self._first_sigma = sigma
        if self._shared is not None and sigma == self._first_sigma:
            missing = tuple(question for question in questions if question not in self._shared.answers)
            self._shared.answers |= self._ask(missing, x[:1], timestep[:1], options) if missing else {}
            return {question: self._shared.answers[question].expand_as(x) for question in questions}
        if {NEITHER, PICTURE} <= set(questions) and self._reuse.serves(sigma, picture, x.shape):
            answers = self._ask([q for q in questions if q != NEITHER], x, timestep, options)
            return {**answers, NEITHER: self._reuse.neither(answers[PICTURE])}
        answers = self._ask(questions, x, timestep, options)
        if {NEITHER, PICTURE} <= set(questions):
            self._reuse.keep(sigma, answers[PICTURE] - answers[NEITHER])
        return answers

    def _ask(self, questions: Sequence[int], x: Tensor, timestep: Tensor, options: dict[str, Any]) -> dict[int, Tensor]:
        """One call of the host's batching for all questions, in the order of its own dual guider."""
        named = ((NEITHER, "negative"), (PICTURE, "middle"), (FULL, "positive"))
        conds = [self.conds.get(name) if question in questions else None for question, name in named]
        options = comfy.model_patcher.create_model_options_clone(options)
        # Added last, it runs last: wrappers before it see the host's numbers, patches inside the model see ours.
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, "atelier_edit", _relabel, options["transformer_options"])
        if (own := options.get("sampler_calc_cond_batch_function")) is not None:
            arguments = {"conds": conds, "input": x, "sigma": timestep, "model": self.inner_model}
            out = own({**arguments, "model_options": options})
        else:
            out = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
        return {question: out[place] for place, (question, _) in enumerate(named) if question in questions}

    def _guided(
        self, answers: dict[int, Tensor], text: Scale, picture: Scale, x: Tensor, timestep: Tensor, options: dict
    ) -> Tensor:
        """Equation 3; where other packs' hooks are there, as the plain guidance that they expect."""
        before = options.get("sampler_pre_cfg_function", [])
        if not before and "sampler_cfg_function" not in options and not options.get("sampler_post_cfg_function"):
            return combine(answers, text, picture)
        positive, negative, scale = as_plain(answers, text, picture)
        conds = [self.conds.get("positive"), self.conds.get("negative")]
        out = [positive, negative]
        for hook in before:
            out = hook(
                {
                    "conds": conds, "conds_out": out, "cond_scale": scale, "timestep": timestep, "input": x,
                    "sigma": timestep, "model": self.inner_model, "model_options": options,
                }
            )  # fmt: skip
        return comfy.samplers.cfg_function(
            self.inner_model, out[0], out[1], scale, x, timestep, model_options=options, cond=conds[0], uncond=conds[1]
        )


def _relabel(executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
    """Number the rows' questions as patches of other packs know them: 0 is positive and 1 negative, as in plain CFG.

    The rows themselves keep the order of the host's dual guider, so that results are bit for bit the same.
    """

    def relabelled(given: Any) -> Any:
        if not isinstance(given, dict) or "cond_or_uncond" not in given:
            return given
        return {**given, "cond_or_uncond": [(NEITHER, PICTURE, FULL)[place] for place in given["cond_or_uncond"]]}

    return executor(*map(relabelled, args), **{name: relabelled(given) for name, given in kwargs.items()})


def with_picture(conditioning: Conditioning, latent: Tensor, concat: bool) -> list[list[Any]]:
    """The conditioning with the picture to edit, a latent [B, C, H, W] as the VAE gives it.

    `concat`: for a UNet with channels for it; else as a reference latent.
    """
    options = {"concat_latent_image": latent} if concat else {"reference_latents": [latent]}
    return [[cond, {**old, **options}] for cond, old in conditioning]


def without_picture(conditioning: Conditioning) -> list[list[Any]]:
    """The conditioning with no picture to edit."""
    return [[cond, {k: v for k, v in options.items() if k not in PICTURE_KEYS}] for cond, options in conditioning]


def has_picture(conditioning: Conditioning) -> bool:
    return any(options.get(key) is not None for _, options in conditioning for key in PICTURE_KEYS[:2])


def edit_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Noise [B, C, H, W] for a batch. Row i is that of a batch of one with the seed `seed + i`."""
    rows = [
        torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed((seed + at) % 2**64))
        for at in range(shape[0])
    ]
    return torch.cat(rows)
