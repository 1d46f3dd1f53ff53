"""FABRIC's reference cache: a warm run is the cold one bit for bit, and nothing that matters is missed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy_extras.nodes_model_advanced
import pytest
import torch
from atelier.attention.patches import apply_fabric
from atelier.attention.reference import KeysValues, fixed_noise_seed
from atelier.attention.reference_cache import ReferenceCache
from naive_fabric import relative
from small_unets import (
    ALWAYS,
    EMPTY_PROMPT,
    NEGATIVE,
    STEPS,
    TEXT_WIDTH,
    Patcher,
    conditioning,
    count_passes,
    latents,
    normal,
    sample,
    sd15,
)
from torch import Tensor

NOISE = normal(1, 4, 8, 8, seed=1)
LIKED, DISLIKED = latents(2), latents(1, seed=200)
LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"


def listen(model: Patcher, liked: list[Tensor] = LIKED, budget: int = 2**30, **prompt: Any) -> Patcher:
    return apply_fabric(model, liked, DISLIKED, {**EMPTY_PROMPT, **prompt}, ALWAYS, True, budget)


def uncached(model: Patcher, **settings: Any) -> Tensor:
    """The same run with a cache of its own that holds nothing."""
    alone = model.clone()
    alone.remove_attachments("atelier_fabric_cache")
    return sample(apply_fabric(alone, LIKED, DISLIKED, EMPTY_PROMPT, ALWAYS, True, 0), NOISE, **settings)


@pytest.fixture
def model() -> Patcher:
    return sd15()


@pytest.fixture
def passes(model: Patcher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each reference pass, of three references, where the new picture has two rows."""
    return count_passes(model, monkeypatch, lambda rows: rows % 2 == 1)


def test_a_warm_run_is_the_cold_one_bit_for_bit(model: Patcher, passes: list[int]) -> None:
    patched = listen(model)
    cold = sample(patched, NOISE)
    assert passes == [3] * STEPS
    assert torch.equal(sample(patched, NOISE), cold)
    assert passes == [3] * STEPS
    assert torch.equal(cold, uncached(model))
    assert passes == [3] * 2 * STEPS


def test_other_prompts_seeds_and_batches_are_warm(model: Patcher, passes: list[int]) -> None:
    patched = listen(model)
    sample(patched, NOISE)
    passes.clear()
    for settings in ({"seed": 99}, {"positive": conditioning(NEGATIVE)}, {"cfg": 2.0}):
        assert torch.equal(sample(patched, NOISE, **settings), uncached(model, **settings))
        assert passes == [3] * STEPS, "only those of the uncached run"
        passes.clear()
    sample(patched, normal(4, 4, 8, 8, seed=1))
    assert passes == []


def test_the_next_round_reads_only_the_new_picture(model: Patcher, passes: list[int]) -> None:
    sample(listen(model), NOISE)
    passes.clear()
    sample(listen(model, [*LIKED, *latents(1, seed=300)]), NOISE)
    assert passes == [1] * STEPS


def with_lora(model: Patcher, strength: float) -> Patcher:
    """The model with a patch on one layer, as a LoRA loader makes it."""
    lora = model.clone()
    shape = model.model.state_dict()[LAYER].shape
    lora.add_patches({LAYER: ("diff", (normal(*shape, seed=5),))}, strength)
    return lora


def test_another_lora_strength_is_read_anew(model: Patcher, passes: list[int]) -> None:
    """All of them share one cache, which came with the model."""
    listen(model)
    results = []
    for strength in (0.0, 0.5, 1.0):
        lora = with_lora(model, strength)
        assert lora.get_attachment("atelier_fabric_cache") is model.get_attachment("atelier_fabric_cache")
        passes.clear()
        results.append(sample(listen(lora), NOISE))
        assert passes == [3] * STEPS
        assert torch.equal(results[-1], uncached(with_lora(model, strength)))
    assert relative(results[1], results[0]) > 1e-3 and relative(results[2], results[1]) > 1e-3


def test_a_lora_after_fabric_is_read_anew(model: Patcher) -> None:
    patched = listen(model)
    sample(patched, NOISE)
    assert torch.equal(sample(with_lora(patched, 1.0), NOISE), uncached(with_lora(model, 1.0)))


def test_weights_that_were_written_without_a_patch_are_read_anew(model: Patcher) -> None:
    patched = listen(model)
    before = sample(patched, NOISE)
    weight = model.model.get_parameter(LAYER)
    weight.data.mul_(1.5)
    after = sample(patched, NOISE)
    assert torch.equal(after, uncached(model))
    assert relative(after, before) > 1e-3


def attention_patch(model: Patcher) -> Patcher:
    model.set_model_attn2_output_patch(lambda n, options: n * 0.5)
    return model


def other_sampling(model: Patcher) -> Patcher:
    return comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]


@pytest.mark.parametrize("change", [attention_patch, other_sampling], ids=lambda change: change.__name__)
def test_another_patch_is_read_anew(model: Patcher, passes: list[int], change: Callable[[Patcher], Patcher]) -> None:
    patched = listen(model)
    sample(patched, NOISE)
    passes.clear()
    found = sample(change(patched.clone()), NOISE)
    assert passes == [3] * STEPS
    assert torch.equal(found, uncached(change(model.clone())))


def test_other_noise_levels_sizes_and_prompts_are_read_anew(model: Patcher, passes: list[int]) -> None:
    patched = listen(model)
    sample(patched, NOISE)
    passes.clear()
    assert torch.equal(sample(patched, NOISE, scheduler="karras"), uncached(model, scheduler="karras"))
    assert passes.count(3) >= 2 * (STEPS - 1), "the first level of both schedules may be the same"
    passes.clear()
    sample(patched, normal(1, 4, 6, 6, seed=1))
    assert passes == [3] * STEPS
    passes.clear()
    sample(listen(model, cond=normal(1, 8, TEXT_WIDTH, seed=77)), NOISE)
    assert passes == [3] * STEPS


def test_another_depth_is_read_anew(model: Patcher) -> None:
    coarse = replace(ALWAYS, depth="coarse")
    sample(apply_fabric(model, LIKED, DISLIKED, EMPTY_PROMPT, coarse, True, 2**30), NOISE)
    cache = model.get_attachment("atelier_fabric_cache")
    assert cache.size == 2 * STEPS * 3 * 4 * 128 * 4, "of the bottleneck alone: 4 tokens of 128 channels, in float32"
    assert torch.equal(sample(listen(model), NOISE), uncached(model))


def test_an_error_in_the_middle_leaves_a_cache_that_is_right(model: Patcher) -> None:
    patched = listen(model)
    layer = model.model.diffusion_model.output_blocks[-1][1].transformer_blocks[0].attn1.to_q
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == 2:
            raise RuntimeError("say")

    with layer.register_forward_hook(fail), pytest.raises(RuntimeError, match="say"):
        sample(patched, NOISE)
    assert torch.equal(sample(patched, NOISE), uncached(model))


def test_noise_from_the_seed_keeps_nothing(model: Patcher) -> None:
    sample(apply_fabric(model, LIKED, DISLIKED, EMPTY_PROMPT, ALWAYS), NOISE)
    assert model.get_attachment("atelier_fabric_cache") is None


def test_fixed_noise_differs_between_levels() -> None:
    assert len({fixed_noise_seed(sigma) for sigma in (14.6, 14.600001, 1.0, 0.03)}) == 4


def test_the_next_run_of_the_node_shares_the_cache(model: Patcher, passes: list[int]) -> None:
    """The loader's MODEL stays while FABRIC's node runs again, and so does that of a LoRA loader between."""
    for source in (model, with_lora(model, 1.0)):
        sample(listen(source), NOISE)
        passes.clear()
        sample(listen(source), NOISE)
        assert passes == []


def test_memory_is_freed_with_the_model() -> None:
    model = sd15()
    patched = listen(model)
    sample(patched, NOISE)
    cache, weights = weakref.ref(model.get_attachment("atelier_fabric_cache")), weakref.ref(model.model)
    comfy.model_management.unload_all_models()
    del model, patched
    gc.collect()
    assert cache() is None and weights() is None


# --- The budget


def parts(size: int) -> dict[Any, Any]:
    """Keys and values of `size` bytes."""
    return {("input", 1, 0): KeysValues(torch.zeros(1, size // 8, 1), torch.zeros(1, size // 8, 1))}


def test_the_least_recently_used_go_first() -> None:
    cache, cpu = ReferenceCache(300), torch.device("cpu")
    for name in "abc":
        cache.put(name, "first", parts(96))
    assert cache.get("a", "second", cpu) is not None
    cache.put("d", "second", parts(96))
    assert [cache.get(name, "third", cpu) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.size == 288


def test_a_run_drops_nothing_that_it_used_itself() -> None:
    cache, cpu = ReferenceCache(200), torch.device("cpu")
    for name in "abcd":
        cache.put(name, "run", parts(96))
    assert [cache.get(name, "run", cpu) is not None for name in "abcd"] == [True, True, False, False]


def test_a_smaller_budget_drops_at_once() -> None:
    cache = ReferenceCache(300)
    for name in "abc":
        cache.put(name, "run", parts(96))
    cache.limit(100)
    assert len(cache) == 1 and cache.size == 96


def test_a_run_over_the_budget_is_still_right(model: Patcher) -> None:
    patched = listen(model, budget=2**17)
    cold, warm = sample(patched, NOISE), sample(patched, NOISE)
    cache = model.get_attachment("atelier_fabric_cache")
    assert 0 < cache.size <= 2**17
    assert relative(warm, cold) < 1e-5
    assert relative(cold, uncached(model)) < 1e-5


def test_merged_tokens_have_places_of_their_own(model: Patcher, passes: list[int]) -> None:
    """What was kept in full does not serve a run that merges, nor the other way round."""
    schedules = (ALWAYS, replace(ALWAYS, merge_above=8))
    patched = [apply_fabric(model, LIKED, DISLIKED, EMPTY_PROMPT, one, True, 2**30) for one in schedules]
    cold = [sample(one, NOISE) for one in patched]
    assert passes == [3] * 2 * STEPS
    assert all(torch.equal(sample(one, NOISE), first) for one, first in zip(patched, cold, strict=True))
    assert passes == [3] * 2 * STEPS
    assert not torch.allclose(*cold)
