"""Puts ELLA's resampler on a model: at each step the language model's features become the tokens for that step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .ella import TimeResampler

_PATCH = "atelier_ella"
_TEXT = "c_crossattn"


def apply_ella(
    model: comfy.model_patcher.ModelPatcher, resampler: comfy.model_patcher.ModelPatcher
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that takes conditionings of the resampler's width beside its own.

    The timestep is the one that the model itself gets, from its own noise levels, whatever the schedule of the steps.
    The work is done once for each conditioning and step, before the host joins them, so ControlNets see its result.

    Args:
        resampler: whose `model` is a `TimeResampler`.
    """
    patched = model.clone()
    patched.set_additional_models(_PATCH, [resampler])

    def calc_cond_batch(
        executor: WrapperExecutor,
        base: comfy.model_base.BaseModel,
        conds: Sequence[Any],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> Any:
        found = [cond for group in conds if group is not None for cond in group if _is_raw(cond, resampler.model)]
        raw = [cond["model_conds"] for cond in found]
        made: dict[int, Tensor] = {}
        try:
            for cond, before in zip(found, raw, strict=True):
                text = before[_TEXT]
                if id(text) not in made:
                    made[id(text)] = _resampled(resampler.model, base, text.cond, timestep)
                cond["model_conds"] = {**before, _TEXT: comfy.conds.CONDCrossAttn(made[id(text)])}
            return executor(base, conds, x, timestep, model_options)
        finally:
            for cond, before in zip(found, raw, strict=True):
                cond["model_conds"] = before

    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _PATCH, calc_cond_batch)
    return patched


def _is_raw(cond: dict[str, Any], resampler: TimeResampler) -> bool:
    text = cond.get("model_conds", {}).get(_TEXT)
    return text is not None and text.cond.shape[-1] == resampler.llm_width != resampler.text_width


def _resampled(resampler: TimeResampler, base: comfy.model_base.BaseModel, features: Tensor, sigma: Tensor) -> Tensor:
    """Tokens [B, latents, text_width] of features [B, tokens, llm_width] at a noise level, in the features' dtype."""
    weight = next(resampler.parameters())
    step = base.model_sampling.timestep(sigma[:1]).float().to(weight.device)
    with torch.inference_mode():
        tokens = resampler(features.to(weight.device, weight.dtype), step.expand(len(features)))
    return tokens.to(features)
