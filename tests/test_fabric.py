"""FABRIC on a small random UNet of the SD1.5 layout, through the host's own samplers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.hooks
import comfy.ldm.modules.attention as host_attention
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import pytest
import torch
from atelier.attention.patches import FabricSchedule, apply_fabric, encode_pictures, shrink
from atelier.attention.reference import Joined, attend_to_references, log_weight_mask, reference_noise
from atelier.feedback.pictures import Feedback
from atelier.nodes.fabric import PRESETS, AtelierFabric
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from naive_fabric import relative
from small_unets import (
    ALWAYS,
    EMPTY,
    EMPTY_PROMPT,
    NEGATIVE,
    NEVER,
    POSITIVE,
    SEED,
    STEPS,
    TEXT_TOKENS,
    TEXT_WIDTH,
    Patcher,
    call,
    count_passes,
    fill,
    latents,
    listen,
    normal,
    patcher,
    sample,
    sd15,
)
from torch import Tensor


@pytest.fixture(scope="module")
def model() -> Patcher:
    return sd15()


@pytest.fixture
def passes(model: Patcher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each pass through the model, as they happen."""
    return count_passes(model, monkeypatch)


# --- Identity


def test_without_feedback_the_model_is_a_plain_clone(model: Patcher) -> None:
    patched = listen(model, [], [])
    assert patched is not model
    assert patched.wrappers == model.wrappers and patched.model_options == model.model_options


@pytest.mark.parametrize(
    "schedule",
    [FabricSchedule(0.0, 0.0, 1.0, 0.0, 0.5), NEVER, FabricSchedule(0.8, 0.6, 0.4, 0.0, 0.5)],
    ids=["weight-0", "window-of-no-step", "window-ends-before-it-begins"],
)
def test_weight_0_changes_no_bit_and_reads_no_reference(
    model: Patcher, passes: list[int], schedule: FabricSchedule
) -> None:
    noise = normal(2, 4, 8, 8, seed=1)
    plain = sample(model, noise)
    passes.clear()
    assert torch.equal(sample(listen(model, latents(1), latents(1), schedule), noise), plain)
    assert passes == [4] * STEPS


def test_negative_scale_0_is_liked_only(model: Patcher, passes: list[int]) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    wanted = sample(listen(model, latents(1), []), noise)
    schedule = FabricSchedule(0.8, 0.0, 1.0, 0.0, 0.0)
    passes.clear()
    assert torch.equal(sample(listen(model, latents(1), latents(2, seed=200), schedule), noise), wanted)
    assert set(passes[::2]) == {1}


# --- Rows, chunks and steps


def test_permuting_the_batch_permutes_the_result(model: Patcher) -> None:
    patched = listen(model, latents(2), latents(1, seed=200))
    noise, order = normal(3, 4, 8, 8, seed=1), [2, 0, 1]
    assert relative(sample(patched, noise[order]), sample(patched, noise)[order]) < 1e-5


def test_the_order_of_pictures_does_not_matter(model: Patcher) -> None:
    liked, noise = latents(3), normal(1, 4, 8, 8, seed=1)
    forward, backward = (sample(listen(model, pictures, []), noise) for pictures in (liked, liked[::-1]))
    assert relative(backward, forward) < 1e-5


@pytest.mark.parametrize("conds", [[0, 1], [0], [1], [0, 0, 1], [1, 0, 1]], ids=str)
def test_rows_in_any_order_and_chunking(model: Patcher, conds: list[int]) -> None:
    patched = listen(model, latents(2), latents(1, seed=200))
    x, texts = normal(2, 4, 8, 8, seed=1), (POSITIVE, NEGATIVE)

    def run(conds: list[int]) -> list[Tensor]:
        context = torch.cat([texts[cond].expand(2, -1, -1) for cond in conds])
        return list(call(patched, x.repeat(len(conds), 1, 1, 1), context, conds).chunk(len(conds)))

    negative, positive = run([1, 0])
    for cond, found in zip(conds, run(conds), strict=True):
        assert relative(found, (positive, negative)[cond]) < 1e-5


def test_one_reference_pass_for_each_step(model: Patcher, passes: list[int]) -> None:
    sample(listen(model, latents(2), latents(3, seed=200)), normal(2, 4, 8, 8, seed=1))
    assert passes == [5, 4] * STEPS


def test_references_are_renewed_at_every_second_level(model: Patcher, passes: list[int]) -> None:
    noise, second = normal(1, 4, 8, 8, seed=1), replace(ALWAYS, renew_every=2)
    patched = listen(model, latents(3), [], second)
    first = sample(patched, noise)
    assert passes == [3, 2, 2, 3, 2]
    before = snapshot(patched)
    sample(patched, noise)
    assert_same(before, snapshot(patched))
    assert torch.equal(sample(patched, noise), first), "nothing of one run is in the next"
    passes.clear()
    sample(patched, noise, sampler_name="heun")
    assert passes == [3, 2, 2, 2, 3, 2, 2], "both calls at one level have the same references"


def test_chunks_and_areas_of_a_step_share_the_pass(model: Patcher, passes: list[int]) -> None:
    left, right = ({"area": (8, 4, 0, x), "strength": 1.0} for x in (0, 4))
    sample(
        listen(model, latents(2), latents(1, seed=200)),
        normal(1, 4, 8, 8, seed=1),
        [[POSITIVE, left], [POSITIVE, right]],
    )
    assert len(passes) > 2 * STEPS
    assert passes.count(3) == STEPS


def test_steps_outside_the_window_cost_nothing(model: Patcher, passes: list[int]) -> None:
    first_half = FabricSchedule(0.8, 0.0, 0.5, 0.0, 0.5)
    sample(listen(model, latents(3), [], first_half), normal(1, 4, 8, 8, seed=1))
    assert passes == [3, 2, 3, 2, 2]


def test_weight_outside_the_window_counts(model: Patcher) -> None:
    noise, schedule = normal(1, 4, 8, 8, seed=1), FabricSchedule(0.0, 0.0, 0.0, 0.8, 0.5)
    assert torch.equal(
        sample(listen(model, latents(1), [], schedule), noise), sample(listen(model, latents(1), []), noise)
    )


@pytest.mark.parametrize(
    ("shape", "shares"), [("linear", [1.0, 0.75, 0.5, 0.0]), ("cosine", [1.0, 0.853553, 0.5, 0.0])]
)
def test_the_weight_falls_to_what_it_is_outside(model: Patcher, shape: str, shares: list[float]) -> None:
    schedule = FabricSchedule(0.9, 0.2, 0.8, 0.1, 0.5, shape)
    percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma

    def weights(percent: float) -> dict[int, float]:
        return schedule.weights(percent_to_sigma(percent), percent_to_sigma)

    for share, percent in zip(shares, (0.2, 0.35, 0.5, 0.8), strict=True):
        wanted = 0.1 + 0.8 * share
        assert weights(percent) == pytest.approx({0: wanted, 1: wanted / 2}, abs=2e-3)
    for percent in (0.1, 0.9):
        assert weights(percent) == {0: 0.1, 1: 0.05}


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_shape_between_equal_weights_is_the_constant(model: Patcher, shape: str) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    wanted = sample(listen(model, latents(1), [], FabricSchedule(0.8, 0.0, 1.0, 0.8, 0.5)), noise)
    flat, falling = (FabricSchedule(0.8, 0.0, 1.0, outside, 0.5, shape) for outside in (0.8, 0.0))
    assert relative(sample(listen(model, latents(1), [], flat), noise), wanted) < 1e-5
    assert relative(sample(listen(model, latents(1), [], falling), noise), wanted) > 1e-3


def test_the_reference_pass_ends_where_nothing_listens_any_more(model: Patcher) -> None:
    """After the last self-attention that listens. In this model only the bottleneck is coarse."""
    unet, noise = model.model.diffusion_model, normal(1, 4, 8, 8, seed=1)
    seen: dict[str, set[int]] = {}

    def look(name: str) -> Callable[..., None]:
        return lambda part, inputs: seen.setdefault(name, set()).add(len(inputs[0]))

    parts = {"middle": unet.middle_block[1], "out": unet.out, "last": unet.output_blocks[-1][1]}
    hooks = [part.register_forward_pre_hook(look(name)) for name, part in parts.items()]
    try:
        sample(listen(model, latents(3), []), noise)
        assert seen == {"middle": {2, 3}, "last": {2, 3}, "out": {2}}
        seen.clear()
        sample(listen(model, latents(3), [], replace(ALWAYS, depth="coarse")), noise)
        assert seen == {"middle": {2, 3}, "last": {2}, "out": {2}}
    finally:
        for hook in hooks:
            hook.remove()


def test_layers_that_do_not_listen_cost_nothing(model: Patcher) -> None:
    calls: list[tuple[int, int, int]] = []

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((len(q), q.shape[1], k.shape[1]))
        return function(q, k, *args, **kwargs)

    other, noise = model.clone(), normal(1, 4, 8, 8, seed=1)
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(other, noise)
    plain = [call for call in calls if call[1] > 4]
    calls.clear()
    sample(listen(other, latents(3), latents(2), replace(ALWAYS, depth="coarse")), noise)
    assert [call for call in calls if call[0] != 5 and call[1] > 4] == plain
    assert {k for rows, q, k in calls if rows == 1 and q == 4} == {4 + 3 * 4, 4 + 2 * 4}


@pytest.mark.parametrize(
    ("batch", "share", "exploring"), [(4, 0.25, 1), (4, 0.6, 2), (3, 0.5, 2), (1, 0.5, 0), (2, 1.0, 2)]
)
def test_explorers_are_the_plain_models_pictures_bit_for_bit(
    model: Patcher, batch: int, share: float, exploring: int
) -> None:
    noise, listening = normal(batch, 4, 8, 8, seed=1), batch - exploring
    plain, all_listen = sample(model, noise), sample(listen(model, latents(2), latents(1, seed=200)), noise)
    schedule = replace(ALWAYS, exploration=share)
    found = sample(listen(model, latents(2), latents(1, seed=200), schedule), noise)
    assert torch.equal(found[listening:], plain[listening:])
    assert relative(found[:listening], all_listen[:listening]) < 1e-5 if listening else True
    assert all(relative(found[i], plain[i]) > 1e-2 for i in range(listening))


def test_explorers_in_areas_and_chunks_of_their_own(model: Patcher) -> None:
    noise, left = normal(2, 4, 8, 8, seed=1), {"area": (8, 4, 0, 0), "strength": 1.0}
    positive = [[POSITIVE, {}], [NEGATIVE, left]]
    patched = listen(model, latents(2), latents(1, seed=200), replace(ALWAYS, exploration=0.5))
    found, plain = sample(patched, noise, positive), sample(model, noise, positive)
    # Areas are small here, and the attention of small pictures rounds by the number of its rows.
    assert relative(found[1], plain[1]) < 1e-5
    assert relative(found[0], plain[0]) > 1e-2


def test_explorers_cost_no_longer_attention(model: Patcher, passes: list[int]) -> None:
    rows: list[tuple[int, int]] = []

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if q.shape[1] == 64 and k.shape[1] > 64:
            rows.append((len(q), k.shape[1]))
        return function(q, k, *args, **kwargs)

    other, noise = model.clone(), normal(4, 4, 8, 8, seed=1)
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(listen(other, latents(1), [], replace(ALWAYS, exploration=0.75)), noise)
    assert set(rows) == {(1, 128)}
    passes.clear()
    sample(listen(other, latents(1), [], replace(ALWAYS, exploration=1.0)), noise)
    assert passes == [8] * STEPS, "no reference is read"


def test_at_cfg_1_dislikes_have_no_carrier(model: Patcher, passes: list[int]) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    plain = sample(model, noise, cfg=1.0)
    passes.clear()
    assert torch.equal(sample(listen(model, [], latents(2)), noise, cfg=1.0), plain)
    assert passes == [1] * STEPS


def test_the_seed_fixes_the_references_noise(model: Patcher) -> None:
    patched, noise = listen(model, latents(1), []), normal(1, 4, 8, 8, seed=1)
    first, again, other = (sample(patched, noise, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_follows_the_picture_and_the_seed() -> None:
    one, other = latents(2)
    assert torch.equal(reference_noise(one, 1), reference_noise(one.clone(), 1))
    assert not torch.equal(reference_noise(one, 1), reference_noise(one, 2))
    assert not torch.equal(reference_noise(one, 1), reference_noise(other, 1))
    assert reference_noise(one, 2**64 - 1).std().item() == pytest.approx(1.0, abs=0.2)


def test_chunks_under_other_hooks_read_the_references_anew(model: Patcher, passes: list[int]) -> None:
    """Hooks swap weights within a step, so keys of another hook's weights must not be used."""
    patched, x = listen(model, latents(3), []), normal(1, 4, 8, 8, seed=1)
    patched.model.current_patcher = patched

    def step(x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int) -> None:
        options = {
            **model_options["transformer_options"],
            "wrappers": patched.wrappers,
            "cond_or_uncond": [0],
        }
        for patched.current_hooks in (None, group, None, group):
            patched.model.apply_model(x, timestep, c_crossattn=POSITIVE, transformer_options=options)

    group = comfy.hooks.HookGroup()
    wrappers = patched.get_all_wrappers(WrappersMP.PREDICT_NOISE)
    WrapperExecutor.new_executor(step, wrappers).execute(x, torch.ones(1), patched.model_options, SEED)
    assert passes == [3, 1, 3, 1, 1, 1]


# --- Living with the host and with other patches


def snapshot(model: Patcher) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any], list[str]]:
    """All that a run could leave behind: weights, options, wrappers, attributes of modules."""
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    options, wrappers = (
        comfy.model_patcher.create_model_options_clone(part) for part in (model.model_options, model.wrappers)
    )
    attributes = [f"{name}.{key}" for name, part in model.model.named_modules() for key in part.__dict__]
    return weights, options, wrappers, attributes


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]


def test_runs_leave_nothing_behind_twice(model: Patcher) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    plain = sample(model, noise)
    before = snapshot(model)
    results = []
    for _ in range(2):
        patched = listen(model, latents(1), latents(1, seed=200))
        patched_before = snapshot(patched)
        results.append(sample(patched, noise))
        assert_same(patched_before, snapshot(patched))
        assert_same(before, snapshot(model))
        assert torch.equal(sample(model, noise), plain)
    assert torch.equal(*results)


def test_a_step_does_not_outlive_itself(model: Patcher) -> None:
    """The references' keys and values of a step would fill the memory if they stayed until the end."""
    patched = listen(model, latents(1), latents(1, seed=200))
    before = snapshot(patched)
    call(patched, normal(2, 4, 8, 8, seed=1), torch.cat([NEGATIVE, POSITIVE]), [1, 0])
    assert_same(before, snapshot(patched))


@pytest.mark.parametrize("failing_pass", [0, 1, 2], ids=["reference-pass", "model-call", "second-step"])
def test_an_error_leaves_nothing_behind(model: Patcher, monkeypatch: pytest.MonkeyPatch, failing_pass: int) -> None:
    noise, patched = normal(1, 4, 8, 8, seed=1), listen(model, latents(1), [])
    plain, wanted = sample(model, noise), sample(patched, noise)
    before = snapshot(patched)
    last = model.model.diffusion_model.output_blocks[-1][1].transformer_blocks[0].attn1.to_q
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == failing_pass:
            raise RuntimeError("out of memory, say")

    with last.register_forward_hook(fail) as _, pytest.raises(RuntimeError, match=r"say"):
        sample(patched, noise)
    assert_same(before, snapshot(patched))
    assert torch.equal(sample(model, noise), plain)
    assert torch.equal(sample(patched, noise), wanted)


def test_an_earlier_attention_override_is_still_called(model: Patcher) -> None:
    keys: list[tuple[int, int]] = []

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        keys.append((q.shape[1], k.shape[1]))
        return function(q, k, *args, **kwargs)

    other, noise = model.clone(), normal(1, 4, 8, 8, seed=1)
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(sample(listen(other, latents(1), []), noise), sample(listen(model, latents(1), []), noise))
    assert {(64, TEXT_TOKENS), (64, 64), (64, 128)} <= set(keys)


def test_a_replaced_self_attention_does_not_lengthen_the_next_attention(model: Patcher) -> None:
    keys: list[int] = []

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        keys.append(k.shape[1])
        return function(q, k, *args, **kwargs)

    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    other.set_model_attn1_replace(lambda q, k, v, options: v, "input", 1)
    sample(listen(other, latents(1), []), normal(1, 4, 8, 8, seed=1))
    assert set(keys) <= {TEXT_TOKENS, 4, 16, 64, 8, 32, 128}
    assert TEXT_TOKENS + 64 not in keys


def test_a_control_of_the_run_does_not_reach_the_references(model: Patcher) -> None:
    """Also GLIGEN's and step-caching hooks, which are bound to the rows of the run."""
    seen: list[tuple[str, int]] = []
    other = model.clone()

    def wrapper(executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(("wrapper", x.shape[0]))
        return executor(x, *args, **kwargs)

    def middle(x: Tensor, options: dict[str, Any]) -> Tensor:
        seen.append(("middle", x.shape[0]))
        return x

    other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "step_cache", wrapper)
    other.set_model_patch(middle, "middle_patch")
    sample(listen(other, latents(3), []), normal(1, 4, 8, 8, seed=1))
    assert set(seen) == {("wrapper", 2), ("middle", 2)}


@pytest.mark.parametrize("name", ["basic", "sub_quad", "split", "pytorch"])
def test_every_attention_backend_computes_equation_2(name: str) -> None:
    backend = getattr(host_attention, f"attention_{name}")
    q, k, v, ref_k, ref_v = (normal(rows, 24, 16, seed=rows + index) for index, rows in enumerate((3, 3, 3, 1, 1)))
    joined = Joined(ref_k, ref_v, ((16, 1.0), (8, 0.5)))
    found = attend_to_references(lambda q, k, v, mask: backend(q, k, v, 2, mask=mask), q, k, v, joined, 0.3)
    for head in (slice(0, 8), slice(8, 16)):
        keys, values = (torch.cat([own, ref.expand(3, -1, -1)], 1)[..., head] for own, ref in ((k, ref_k), (v, ref_v)))
        probability = (q[..., head] @ keys.transpose(1, 2) / math.sqrt(8)).softmax(-1)
        probability[..., 24:40] *= 0.3
        probability[..., 40:] *= 0.15
        wanted = probability / probability.sum(-1, keepdim=True) @ values
        assert relative(found[..., head], wanted) < 1e-5


def test_no_mask_at_weight_1() -> None:
    assert log_weight_mask(4, [(4, 1.0), (2, 1.0)], torch.zeros(1)) is None
    mask = log_weight_mask(1, [(1, 1.0), (2, 0.5)], torch.zeros(1))
    assert mask.flatten().tolist() == pytest.approx([0.0, 0.0, math.log(0.5), math.log(0.5)])


def test_pictures_of_weight_0_are_not_read(model: Patcher, passes: list[int]) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    wanted = sample(listen(model, latents(1), []), noise)
    passes.clear()
    assert torch.equal(sample(listen(model, latents(2), latents(1), weights=([1.0, 0.0], [0.0])), noise), wanted)
    assert passes == [1, 2] * STEPS


def test_the_host_reserves_memory_for_the_references(model: Patcher) -> None:
    shapes: list[list[int]] = []
    patched = listen(model, latents(3), latents(1, 16, 8, seed=200))

    def wrapper(executor: WrapperExecutor, model: Patcher, noise_shape: list[int], *rest: Any, **more: Any) -> Any:
        shapes.append(noise_shape)
        return executor(model, noise_shape, *rest, **more)

    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "look", wrapper)
    sample(patched, normal(2, 4, 8, 8, seed=1))
    assert shapes == [[2 + 2, 4, 8, 8]], "four references' areas, two rows for each latent, rounded up"


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde", "lcm"])
def test_other_samplers(model: Patcher, sampler: str) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    result = sample(listen(model, latents(1), latents(2)), noise, sampler_name=sampler, scheduler="karras")
    assert result.isfinite().all()
    assert not torch.equal(result, sample(model, noise, sampler_name=sampler, scheduler="karras"))


# --- Bad input


def test_nan_in_one_latent_stays_there(model: Patcher) -> None:
    patched, x = listen(model, latents(1), latents(1, seed=200)), normal(2, 4, 8, 8, seed=1)
    context = torch.cat([NEGATIVE, POSITIVE])
    wanted = call(patched, x, context, [1, 0])
    x[0, 0, 0, 0] = float("nan")
    found = call(patched, x, context, [1, 0])
    assert found[0].isnan().any()
    assert torch.equal(found[1], wanted[1])


def test_a_guider_with_three_conditionings_is_refused(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"more than two without these names. Use KSampler"):
        call(listen(model, latents(1), []), normal(3, 4, 8, 8, seed=1), POSITIVE.expand(3, -1, -1), [2, 1, 0])


def test_a_second_fabric_is_refused(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"already went through an AtelierFabric. .*'previous'"):
        listen(listen(model, latents(1), []), latents(1), [])


def flux() -> Patcher:
    dit = {
        "image_model": "flux", "in_channels": 4, "out_channels": 4, "patch_size": 2, "vec_in_dim": 8,
        "context_in_dim": 8, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [2, 2, 4], "theta": 10000, "txt_ids_dims": [],
        "qkv_bias": True, "guidance_embed": False, "dtype": torch.float32,
    }  # fmt: skip
    return patcher(comfy.model_base.Flux(comfy.supported_models.Flux(dit), device="cpu"))


def test_models_of_another_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the connected model is Flux\. Connect an SD1.5 or SDXL checkpoint"):
        node(flux(), Feedback(liked=(torch.rand(64, 64, 3),)))


def test_latents_and_text_of_another_family_are_refused(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"works with 4 channels. Connect the VAE"):
        listen(model, [torch.zeros(16, 8, 8)], [])
    with pytest.raises(ValueError, match=r"the model wants 64. Connect the CLIP"):
        apply_fabric(model, latents(1), [], {"cond": torch.zeros(1, 8, 768)}, ALWAYS)


# --- The node, with a real VAE of the TAESD layout


@pytest.fixture(scope="module")
def vae() -> comfy.sd.VAE:
    taesd = comfy.taesd.taesd.TAESD()
    fill(taesd, seed=3)
    return comfy.sd.VAE(sd=taesd.state_dict())


class EmptyPromptClip:
    """A text encoder that knows one prompt, the empty one."""

    def tokenize(self, prompt: str) -> str:
        return prompt

    def encode_from_tokens(self, tokens: str, return_dict: bool) -> dict[str, Any]:
        assert tokens == "" and return_dict
        return {"cond": EMPTY, "pooled_output": torch.zeros(1, TEXT_WIDTH)}


def node(model: Patcher, feedback: Feedback, vae: Any = None, **settings: Any) -> Patcher:
    """The node's model, with its defaults but for the noise, which is by the seed as in `listen`."""
    settings = {"reference_noise": "seed"} | settings
    defaults = {
        i.id: i.default for i in AtelierFabric.define_schema().inputs if getattr(i, "default", None) is not None
    }
    return AtelierFabric.execute(model, EmptyPromptClip(), vae, feedback, **{**defaults, **settings}).args[0]


def picture(height: int, width: int) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height))


def test_the_node_encodes_and_patches(model: Patcher, vae: comfy.sd.VAE) -> None:
    feedback, noise = Feedback((picture(64, 64),), (picture(48, 64),)), normal(1, 4, 8, 8, seed=1)
    patched = node(model, feedback, vae, end_percent=1.0)
    liked, disliked = (vae.encode(side[0][None]).float() for side in (feedback.liked, feedback.disliked))
    assert torch.equal(sample(patched, noise), sample(listen(model, [*liked], [*disliked]), noise))


def test_the_nodes_noise_is_fixed_by_default(model: Patcher, vae: comfy.sd.VAE) -> None:
    one, noise = picture(64, 64), normal(1, 4, 8, 8, seed=1)
    latent = vae.encode(one[None]).float()[0]
    default = next(i.default for i in AtelierFabric.define_schema().inputs if i.id == "reference_noise")
    found = sample(node(model, Feedback((one,)), vae, end_percent=1.0, reference_noise=default), noise)
    assert torch.equal(found, sample(apply_fabric(model, [latent], [], EMPTY_PROMPT, ALWAYS, fixed_noise=True), noise))


def test_the_node_counts_each_picture_with_its_weight(model: Patcher, vae: comfy.sd.VAE) -> None:
    pictures, noise = (picture(64, 64), picture(48, 64)), normal(1, 4, 8, 8, seed=1)
    latents = [vae.encode(one[None]).float()[0] for one in pictures]
    wanted = sample(listen(model, latents, latents[:1], weights=([1.0, 0.3], [0.5])), noise)
    feedback = Feedback(pictures, pictures[:1], (1.0, 0.3), (0.5,))
    assert torch.equal(sample(node(model, feedback, vae, end_percent=1.0), noise), wanted)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_replaces_the_nodes_own_values(model: Patcher, vae: comfy.sd.VAE, preset: str) -> None:
    one, noise = picture(64, 64), normal(1, 4, 8, 8, seed=1)
    (latent,) = vae.encode(one[None]).float()
    wanted = sample(listen(model, [latent], [latent], PRESETS[preset]), noise)
    for own in ({}, {"weight": 0.0, "start_percent": 0.9, "weight_outside": 2.0, "negative_scale": 2.0}):
        assert torch.equal(sample(node(model, Feedback((one,), (one,)), vae, preset=preset, **own), noise), wanted)


def test_the_node_without_feedback_reads_nothing(model: Patcher) -> None:
    noise = normal(1, 4, 8, 8, seed=1)
    assert torch.equal(sample(node(model, Feedback(), vae=None), noise), sample(model, noise))


def test_pictures_are_cropped_to_the_vaes_step(vae: comfy.sd.VAE) -> None:
    assert encode_pictures(vae, [picture(70, 41)], "liked")[0].shape == (4, 8, 5)


def test_a_picture_below_the_vaes_step_is_refused(vae: comfy.sd.VAE) -> None:
    with pytest.raises(ValueError, match=r"disliked picture 2 is 64x7 pixels. The smallest .* is 8x8"):
        encode_pictures(vae, [picture(8, 8), picture(7, 64)], "disliked")


def test_a_picture_of_8_by_8_pixels_is_read(model: Patcher, vae: comfy.sd.VAE) -> None:
    """Two of them, because this model's smallest layers have one channel for each group that they normalise."""
    noise, tiny = normal(1, 4, 8, 8, seed=1), (picture(8, 8),)
    result = sample(node(model, Feedback(tiny, tiny), vae, end_percent=1.0), noise)
    assert result.isfinite().all()
    assert relative(result, sample(model, noise)) > 1e-3


def test_a_picture_of_4096_by_4096_pixels_costs_no_more_than_the_new_one(model: Patcher) -> None:
    """The VAE reads a megapixel of it, and the model as much as the new picture has."""
    sizes: list[tuple[int, ...]] = []

    def encode(pixels: Tensor) -> Tensor:
        sizes.append(tuple(pixels.shape))
        return normal(1, 4, pixels.shape[1] // 8, pixels.shape[2] // 8, seed=1)

    vae = SimpleNamespace(spacial_compression_encode=lambda: 8, encode=encode)
    huge, noise = torch.full((1, 1, 1), 0.5).expand(4096, 4096, 3), normal(1, 4, 8, 8, seed=1)
    patched = node(model, Feedback((huge,)), vae, end_percent=1.0)
    keys: set[int] = set()
    original = patched.model_options["transformer_options"]["optimized_attention_override"]

    def look(function: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        keys.add(k.shape[1])
        return original(function, q, k, *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = look
    assert sample(patched, noise).isfinite().all()
    assert sizes == [(1, 1024, 1024, 3)] and max(keys) == 64


def test_very_large_pictures_are_scaled_down() -> None:
    assert shrink(torch.zeros(4096, 2048, 3), 1024 * 1024).shape == (1448, 724, 3)
    small = torch.zeros(1024, 1024, 3)
    assert shrink(small, 1024 * 1024) is small


def test_a_vae_that_answers_nan_is_named() -> None:
    broken = SimpleNamespace(
        spacial_compression_encode=lambda: 8, encode=lambda pixels: torch.full((1, 4, 8, 8), float("nan"))
    )
    with pytest.raises(ValueError, match=r"turned the liked picture 1 into NaN. Start the host with --fp32-vae"):
        encode_pictures(broken, [picture(64, 64)], "liked")
