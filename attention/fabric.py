"""FABRIC's hooks in the host: the reference pass, the attention that it feeds, and when both happen.

Nothing is written to the model, to a module or to a patch while a run goes on. What one step or one
call of the model needs travels in that call's own `transformer_options`, so it is gone when the call
ends, by a result, an error or an interrupt.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .reference import (
    DISLIKED,
    LIKED,
    AllKept,
    Append,
    Attention,
    Bank,
    BlockKey,
    Capture,
    KeysValues,
    Reference,
    batches,
    fixed_noise_seed,
    join_references,
    latent_bytes,
    merge_tokens,
    reference_noise,
    split_capture,
)
from .reference_cache import ReferenceCache
from .reference_keys import Same, Unseen, content_key, digest, frozen, weights_key
from .schedule import FabricSchedule

_STEP = "atelier_fabric_step"
CALL = "atelier_fabric_call"
_SIDES = "atelier_fabric_sides"
_RUN = "atelier_fabric_run"
_OF_THE_ROWS = frozenset({_STEP, _SIDES, _RUN, CALL, "cond_or_uncond", "uuids", "sigmas"})
"""Options that say nothing of how the model computes."""

_SIDE_NAMES = {"positive": LIKED, "negative": DISLIKED}


@dataclass
class _Reading:
    """References' keys and values, and the noise levels at which they served."""

    bank: Bank
    levels: set[float]

    def serves(self, sigma: float, levels: int) -> bool:
        """Whether it is for this noise level too, where it may serve for a number of them; takes note if so."""
        if sigma not in self.levels and len(self.levels) == levels:
            return False
        self.levels.add(sigma)
        return True


@dataclass(eq=False)
class _Run:
    """One run of a sampler: what tells its model's weights from all others, if that is asked for, and the last
    reading of the references for each place where they are read."""

    weights: Hashable
    readings: dict[Hashable, _Reading] = field(default_factory=dict)


@dataclass
class _Step:
    """What the calls of one step share: the run's seed, the new pictures' number and latent pixels, the guider's
    conditionings by name, and the references' keys and values."""

    seed: int
    batch: int
    area: int
    conds: Mapping[str, Any]
    banks: dict[Hashable, Bank] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fabric(Unseen):
    """FABRIC's hooks on one patched model. Holds the references and no state of a run.

    `blocks` are the self-attentions that listen, in the order in which the model runs them, and how much.
    """

    references: tuple[Reference, ...]
    empty_prompt: dict[str, Any]
    schedule: FabricSchedule
    blocks: Mapping[BlockKey, float]
    before: Callable[..., Tensor] | None
    fixed_noise: bool = False
    cache: ReferenceCache | None = None
    uuid: uuid.UUID = field(default_factory=uuid.uuid4)

    @property
    def sides(self) -> set[int]:
        """The sides that have references."""
        return {reference.side for reference in self.references}

    @functools.cached_property
    def prompt_key(self) -> Hashable:
        """The empty prompt by content, which each step asks for."""
        return content_key(self.empty_prompt)

    def prepare_sampling(
        self,
        executor: WrapperExecutor,
        model: comfy.model_patcher.ModelPatcher,
        noise_shape: Sequence[int],
        conds: Any,
        model_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Ask the host for memory as if the references were rows of the batch, and look at the loaded weights."""
        area = math.prod(noise_shape[2:])
        references = sum(math.prod(reference.shrunk(area).latent.shape[1:]) for reference in self.references)
        # The host counts two rows, positive and negative, for each latent.
        extra = math.ceil(references / (2 * area))
        shape = [noise_shape[0] + extra, *noise_shape[1:]]
        prepared = executor(model, shape, conds, model_options=model_options, **kwargs)
        if model_options is not None:
            weights = weights_key(model) if self.cache is not None else None
            model_options["transformer_options"][_RUN] = _Run(weights)
        return prepared

    def predict_noise(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None,
    ) -> Tensor:
        """Open a step: all its calls, chunks and areas share one reference pass."""
        step = _Step(seed or 0, len(x), math.prod(x.shape[2:]), getattr(executor.class_obj, "conds", {}))
        transformer_options = {**model_options.get("transformer_options", {}), _STEP: step}
        return executor(x, timestep, {**model_options, "transformer_options": transformer_options}, seed)

    def calc_cond_batch(
        self,
        executor: WrapperExecutor,
        model: comfy.model_base.BaseModel,
        conds: Sequence[Any],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> Any:
        """Say which conditioning is positive and which is negative, by the guider's own names.

        Their order differs between guiders: [positive, negative] in plain CFG, [negative, middle, positive] in
        dual CFG, [positive, negative, empty] in Perp-Neg, [negative] alone in self-attention guidance.
        """
        transformer_options = model_options.get("transformer_options", {})
        if (step := transformer_options.get(_STEP)) is not None and (sides := cond_sides(conds, step.conds)):
            model_options = {**model_options, "transformer_options": {**transformer_options, _SIDES: sides}}
        return executor(model, conds, x, timestep, model_options)

    def apply_model(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """Let the rows of one model call attend to the references, where the schedule says so."""
        transformer_options = transformer_options or {}
        call = self._call(executor.class_obj, x, t, transformer_options)
        if call is not None:
            transformer_options = {**transformer_options, CALL: call}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)

    def _call(
        self, model: comfy.model_base.BaseModel, x: Tensor, t: Tensor, transformer_options: dict[str, Any]
    ) -> Append | None:
        step = transformer_options.get(_STEP)
        conds = transformer_options.get("cond_or_uncond", [])
        if step is None or not conds:
            return None
        named = transformer_options.get(_SIDES)
        if named is None and max(conds) > DISLIKED:
            raise ValueError(
                "AtelierFabric needs to know which conditioning is positive and which is negative, and this "
                "guider has more than two without these names. Use KSampler, CFGGuider, DualCFGGuider or "
                "BasicGuider with it."
            )
        sides = conds if named is None else [named[cond] for cond in conds]
        sigma = float(t[0])
        weights = self.schedule.weights(sigma, model.model_sampling.percent_to_sigma)
        if not weights and (run := transformer_options.get(_RUN)) is not None:
            run.readings.clear()
        exploring = self.schedule.exploring(step.batch)
        if not self.sides & weights.keys() & set(sides) or exploring == 1:
            return None
        # Hooks change weights between the chunks of a step, and then the references' keys too.
        key = (sigma, x.device, model.current_patcher.current_hooks)
        if key not in step.banks:
            step.banks[key] = self._reading(model, x, t[:1], step, transformer_options)
        return Append(step.banks[key], weights, sides, self.blocks, exploring)

    def _reading(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        step: _Step,
        transformer_options: dict[str, Any],
    ) -> Bank:
        """The references' keys and values for `sigma` [1], which may be those of an earlier noise level."""
        run, level, levels = transformer_options.get(_RUN), float(sigma), self.schedule.renew_every
        if run is None or levels == 1:
            return self._read_references(model, x, sigma, step, transformer_options)
        place = (x.device, x.dtype, step.area, model.current_patcher.current_hooks)
        last = run.readings.get(place)
        if last is None or not last.serves(level, levels):
            run.readings.pop(place, None)
            last = _Reading(self._read_references(model, x, sigma, step, transformer_options), {level})
            run.readings[place] = last
        return last.bank

    def _read_references(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        step: _Step,
        transformer_options: dict[str, Any],
    ) -> Bank:
        """The keys and values of all references at `sigma` [1]: from the cache, or by a pass through the model."""
        options = reference_options(transformer_options, self.uuid)
        references = [reference.shrunk(step.area) for reference in self.references]
        seed = fixed_noise_seed(float(sigma)) if self.fixed_noise else step.seed
        run = transformer_options.get(_RUN)
        # Hooks may change weights from step to step.
        cache = self.cache if run is not None and model.current_patcher.current_hooks is None else None
        keys = self._cache_keys(model, x, float(sigma), references, options, run) if cache is not None else {}
        found = {reference: cache.get(key, run, x.device) for reference, key in keys.items()}
        kept = {reference: parts for reference, parts in found.items() if parts is not None}
        for batch in batches(reference for reference in references if reference not in kept):
            noise = [reference_noise(reference.latent, seed) for reference in batch]
            for reference, parts in zip(batch, self._pass(model, x, sigma, batch, noise, options), strict=True):
                kept[reference] = parts
                if cache is not None:
                    cache.put(keys[reference], run, parts)
        return join_references((reference, kept[reference]) for reference in references)

    def _cache_keys(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: float,
        references: Sequence[Reference],
        options: dict[str, Any],
        run: _Run,
    ) -> dict[Reference, Hashable]:
        """All that the keys and values of each reference depend on."""
        patches = {name: value for name, value in options.items() if name not in _OF_THE_ROWS}
        shared = (
            sigma,
            x.dtype,
            model.get_dtype_inference(),
            run.weights,
            Same(model.model_sampling),
            frozen(patches),
            self.prompt_key,
            tuple(self.blocks),
            self.schedule.merge_above,
        )
        return {r: (tuple(r.latent.shape), digest(latent_bytes(r.latent)), shared) for r in references}

    def _pass(
        self,
        model: comfy.model_base.BaseModel,
        x: Tensor,
        sigma: Tensor,
        batch: Sequence[Reference],
        noise: Sequence[Tensor],
        options: dict[str, Any],
    ) -> list[dict[BlockKey, KeysValues]]:
        """Pass references of one size through the model at `sigma` [1], with the empty prompt, as far as needed.

        Together, or one at a time where the device has no memory for that; the log says so.
        """
        try:
            noised = model.model_sampling.noise_scaling(
                sigma,
                comfy.model_management.cast_to_device(torch.stack(list(noise)), x.device, x.dtype),
                comfy.model_management.cast_to_device(torch.stack([r.latent for r in batch]), x.device, x.dtype),
            )
            conds = model_conds(model, self.empty_prompt, noised)
            capture = self.capture(noised)
            times = sigma.expand(noised.shape[0])
            with contextlib.suppress(AllKept):
                model._apply_model(noised, times, transformer_options={**options, CALL: capture}, **conds)
            kept = self.merge(capture.kept, len(batch), tuple(noised.shape[-2:]))
            return split_capture(kept, len(batch))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            logging.warning(
                "AtelierFabric: no memory for %d references at once; they are read one at a time.", len(batch)
            )
        comfy.model_management.soft_empty_cache()
        return [self._pass(model, x, sigma, [one], [its], options)[0] for one, its in zip(batch, noise, strict=True)]

    def hook_blocks(self, patched: comfy.model_patcher.ModelPatcher) -> None:
        """Have the model say which attention is whose."""
        patched.set_model_attn1_patch(self.enter_self_attention)
        patched.set_model_attn1_output_patch(self.leave_self_attention)

    def capture(self, x: Tensor) -> Capture:
        """What reads the attentions of a reference pass over `x` [rows, channels, height, width]."""
        return Capture(tuple(self.blocks))

    def merge(
        self, kept: Mapping[BlockKey, KeysValues], count: int, size: tuple[int, int]
    ) -> Mapping[BlockKey, KeysValues]:
        """What a pass kept of `count` references of `size`, with merged tokens if the schedule asks for them."""
        above = self.schedule.merge_above
        return kept if above is None else merge_tokens(kept, count, size, above)

    def enter_self_attention(
        self, n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Say that the next attention is this block's self-attention."""
        if (call := options.get(CALL)) is not None:
            call.block = (*options["block"], options["block_index"])
        return n, context, value

    def leave_self_attention(self, n: Tensor, options: dict[str, Any]) -> Tensor:
        """Close what `enter_self_attention` opened, also where a replacement made no attention call."""
        if (call := options.get(CALL)) is not None:
            call.block = None
        return n

    def attend(
        self,
        function: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The attention override: every attention of the model comes through here.

        A self-attention that has a mask belongs to another patch, which alone knows what its keys
        mean; it is left as it is.
        """
        attention = self.plain(function, heads, kwargs)
        call = (kwargs.get("transformer_options") or {}).get(CALL)
        if call is None or call.block is None or mask is not None:
            return attention(q, k, v, mask)
        return call.attend(attention, q, k, v)

    def plain(self, function: Callable[..., Tensor], heads: int, options: dict[str, Any]) -> Attention:
        """The model's own attention, or that of the patch that was there before."""
        return chained(self.before, function, heads, options)


def chained(
    before: Callable[..., Tensor] | None, function: Callable[..., Tensor], heads: int, options: dict[str, Any]
) -> Attention:
    """The attention that an override has the place of: that of the override before it, or the model's own."""
    if before is not None:
        return lambda q, k, v, mask: before(function, q, k, v, heads, mask=mask, **options)
    return lambda q, k, v, mask: function(q, k, v, heads, mask=mask, **options)


def cond_sides(conds: Sequence[Any], named: Mapping[str, Any]) -> list[int | None] | None:
    """The side of each conditioning: positive takes likes, negative dislikes, any other none.

    None where it is not known, because another patch has made the conditionings anew.
    """
    sides = [
        next((side for name, side in _SIDE_NAMES.items() if cond is not None and cond is named.get(name)), None)
        for cond in conds
    ]
    # One alone that has no name is another patch's own question to the model.
    return sides if len(sides) == 1 or any(side is not None for side in sides) else None


def reference_options(transformer_options: dict[str, Any], cond_uuid: uuid.UUID) -> dict[str, Any]:
    """Options for a reference pass: those of the run, without what belongs to the run's own rows.

    The references are one chunk of negative rows to patches that ask. GLIGEN's boxes, which are bound
    to the run's batch, and wrappers that count or skip steps do not see them.
    """
    wrappers = {
        kind: found
        for kind, found in transformer_options.get("wrappers", {}).items()
        if kind != WrappersMP.DIFFUSION_MODEL
    }
    patches = {name: found for name, found in transformer_options.get("patches", {}).items() if name != "middle_patch"}
    return {
        **transformer_options,
        "wrappers": wrappers,
        "patches": patches,
        "cond_or_uncond": [1],
        "uuids": [cond_uuid],
    }


def model_conds(model: comfy.model_base.BaseModel, prompt: dict[str, Any], x: Tensor) -> dict[str, Tensor]:
    """What the model wants beside `x` [rows, channels, height, width]; the host makes it from a prompt."""
    cond = {**prompt, "cross_attn": prompt["cond"], "model_conds": {}}
    # Inpainting models read the latent image's shape, and then fill in that nothing is given.
    (encoded,) = comfy.samplers.encode_model_conds(
        model.extra_conds, [cond], x, x.device, "negative", latent_image=torch.zeros_like(x)
    )
    return {
        name: made.process_cond(batch_size=x.shape[0], area=None).cond for name, made in encoded["model_conds"].items()
    }
