"""Guidance with two scales: equation 3 of InstructPix2Pix against the formula, and against the host's own guider."""

from __future__ import annotations

import itertools
import math
from typing import Any

import comfy.model_base
import comfy.samplers
import pytest
import torch
from atelier.attention.guidance import (
    FULL,
    NEITHER,
    PICTURE,
    Reuse,
    ScaleSchedule,
    as_plain,
    combine,
    needed,
    rescale,
)
from atelier.attention.guider import (
    EditGuidance,
    EditGuider,
    SharedStart,
    edit_noise,
    with_picture,
    without_picture,
)
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_model_advanced import RescaleCFG
from small_unets import (
    NEGATIVE,
    POSITIVE,
    SMALL_UNET,
    Patcher,
    SmallSD15,
    conditioning,
    filled,
    latents,
    listen,
    normal,
)
from torch import Tensor

STEPS = 4


def edit_model() -> Patcher:
    """A small SD1.5 with 8 input channels, as the host makes one of an InstructPix2Pix file."""
    config = SmallSD15({**SMALL_UNET, "in_channels": 8})
    return filled(comfy.model_base.SD15_instructpix2pix(config, device="cpu"))


MODEL = edit_model()
LATENT = normal(1, 4, 8, 8, seed=5) * 5.0


def conds(rows: int = 1) -> tuple[Any, Any, Any]:
    """Conditionings of the three questions."""
    picture = LATENT.expand(rows, -1, -1, -1)
    text, silent = conditioning(POSITIVE), conditioning(NEGATIVE)
    return with_picture(text, picture, True), with_picture(silent, picture, True), without_picture(silent)


def run(guider: comfy.samplers.CFGGuider, rows: int, mask: Tensor | None = None, sampler: str = "euler") -> Tensor:
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    start = torch.zeros(rows, 4, 8, 8) if mask is None else LATENT.expand(rows, -1, -1, -1)
    noise = edit_noise((rows, 4, 8, 8), 3)
    return guider.sample(
        noise, start, comfy.samplers.sampler_object(sampler), sigmas, denoise_mask=mask, disable_pbar=True, seed=3
    )


def ours(
    text: float,
    picture: float,
    rows: int = 1,
    model: Patcher = MODEL,
    shared: SharedStart | None = None,
    **settings: Any,
) -> EditGuider:
    guidance = EditGuidance(ScaleSchedule(text), ScaleSchedule(picture), **settings)
    guider = EditGuider(model, guidance, shared)
    guider.set_conds(*conds(rows))
    return guider


def native(text: float, picture: float, rows: int = 1, model: Patcher = MODEL) -> Guider_DualCFG:
    guider = Guider_DualCFG(model)
    guider.set_conds(*conds(rows))
    guider.set_cfg(text, picture)
    return guider


def counted(model: Patcher) -> tuple[Patcher, list[int]]:
    """A clone of the model, and a list to which each call of it adds its number of questions."""
    calls: list[int] = []
    clone = model.clone()

    def count(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(
            len(args[4]["cond_or_uncond"]) if len(args) > 4 else len(kwargs["transformer_options"]["cond_or_uncond"])
        )
        return executor(x, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    return clone, calls


def equation_3(full: Tensor, neither: Tensor, picture: Tensor, text_scale: float, image_scale: float) -> Tensor:
    return neither + image_scale * (picture - neither) + text_scale * (full - picture)


ANSWERS = {question: normal(2, 4, 8, 8, seed=20 + question).double() for question in (FULL, NEITHER, PICTURE)}
SCALES = [0.0, 0.5, 1.0, 1.5, 7.5, -3.0, 1000.0]


@pytest.mark.parametrize(("text", "picture"), list(itertools.product(SCALES, SCALES)))
def test_the_needed_answers_give_equation_3(text: float, picture: float) -> None:
    wanted = equation_3(ANSWERS[FULL], ANSWERS[NEITHER], ANSWERS[PICTURE], text, picture)
    asked = {question: ANSWERS[question] for question in needed(text, picture)}
    close = {"rtol": 1e-9, "atol": 1e-9 * max(1.0, abs(text), abs(picture))}
    torch.testing.assert_close(combine(asked, text, picture), wanted, **close)
    positive, negative, scale = as_plain(asked, text, picture)
    torch.testing.assert_close(negative + (positive - negative) * scale, wanted, **close)


@pytest.mark.parametrize(
    ("text", "picture", "questions"),
    [
        (7.5, 1.5, 3), (1.0, 1.5, 3), (7.5, 0.0, 3), (3.0, 3.0, 2), (7.5, 1.0, 2), (0.0, 1.5, 2), (1.0, 1.0, 1),
        (0.0, 0.0, 1), (0.0, 1.0, 1),
    ],
)  # fmt: skip
def test_a_step_asks_the_model_no_more_than_it_must(text: float, picture: float, questions: int) -> None:
    model, calls = counted(MODEL)
    run(ours(text, picture, model=model), 1)
    assert calls == [questions] * STEPS


def test_rows_may_have_scales_of_their_own() -> None:
    text, picture = torch.tensor([7.5, 1.0, 3.0]).view(-1, 1, 1, 1), torch.tensor([1.5, 1.0, 3.0]).view(-1, 1, 1, 1)
    together = run(ours(text, picture, 3), 3)
    shape = (1, 4, 8, 8)
    for row in range(3):
        guider = ours(float(text[row]), float(picture[row]))
        sigmas = comfy.samplers.calculate_sigmas(MODEL.get_model_object("model_sampling"), "normal", STEPS)
        alone = guider.sample(
            edit_noise(shape, 3 + row), torch.zeros(shape), comfy.samplers.sampler_object("euler"), sigmas,
            disable_pbar=True, seed=3,
        )  # fmt: skip
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("text", "picture"), [(7.5, 1.5), (7.5, 1.0), (1.0, 1.0), (5.0, 2.0)])
def test_bit_equal_to_the_hosts_own_route(text: float, picture: float, rows: int, masked: bool, sampler: str) -> None:
    mask = None
    if masked:
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :4] = 1.0
    assert torch.equal(
        run(ours(text, picture, rows), rows, mask, sampler), run(native(text, picture, rows), rows, mask, sampler)
    )


def test_equal_scales_are_plain_guidance() -> None:
    positive, _, neither = conds()
    plain = comfy.samplers.CFGGuider(MODEL)
    plain.set_conds(positive, neither)
    plain.set_cfg(3.0)
    torch.testing.assert_close(run(ours(3.0, 3.0), 1), run(plain, 1), rtol=1e-5, atol=1e-5)


def test_hooks_see_the_whole_guidance() -> None:
    seen: list[dict[str, Any]] = []
    model = MODEL.clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    torch.testing.assert_close(run(ours(7.5, 1.5, model=model), 1), run(ours(7.5, 1.5), 1), rtol=1e-4, atol=1e-4)
    args = seen[0]
    guided = args["uncond_denoised"] + (args["cond_denoised"] - args["uncond_denoised"]) * args["cond_scale"]
    torch.testing.assert_close(args["denoised"], guided)
    assert len(seen) == STEPS


def test_a_hook_before_guidance_can_change_the_answers() -> None:
    model = MODEL.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0]] * 2)
    torch.testing.assert_close(run(ours(7.5, 1.5, model=model), 1), run(ours(1.0, 1.0), 1), rtol=1e-4, atol=1e-4)


def test_rescale_is_that_of_the_hosts_node_over_the_whole_combination() -> None:
    (model,) = RescaleCFG().patch(MODEL, 0.7)
    by_hook = run(ours(7.5, 1.5, model=model), 1)
    torch.testing.assert_close(run(ours(7.5, 1.5, rescale=0.7), 1), by_hook, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(by_hook, run(ours(7.5, 1.5), 1), atol=1e-2)


def test_rescale_brings_the_spread_of_the_velocity_back() -> None:
    noisy, sigma = normal(2, 4, 8, 8, seed=30), torch.tensor([2.0, 0.5])
    positive, guided = normal(2, 4, 8, 8, seed=31), 4.0 * normal(2, 4, 8, 8, seed=32)
    base = noisy / (sigma.view(-1, 1, 1, 1) ** 2 + 1)
    full = rescale(guided, positive, noisy, sigma, 1.0)
    torch.testing.assert_close((base - full).flatten(1).std(1), (base - positive).flatten(1).std(1))
    assert rescale(guided, positive, noisy, sigma, 0.0) is guided


def test_outside_its_interval_a_scale_is_one_and_costs_nothing() -> None:
    model, calls = counted(MODEL)
    guidance = EditGuidance(ScaleSchedule(7.5, 0.0, 0.5), ScaleSchedule(1.5, 0.0, 0.2))
    guider = EditGuider(model, guidance)
    guider.set_conds(*conds())
    run(guider, 1)
    assert calls == sorted(calls, reverse=True)
    assert calls[0] == 3
    assert calls[-1] == 1


def test_a_scale_falls_from_its_value_to_one() -> None:
    to_sigma = {0.0: 10.0, 0.5: 5.0, 1.0: 0.0}

    def percent_to_sigma(percent: float) -> float:
        return 10.0 * (1.0 - percent)

    falling = ScaleSchedule(7.0, 0.0, 1.0, "falling")
    assert falling.at(to_sigma[0.0], percent_to_sigma) == pytest.approx(7.0, abs=1e-3)
    assert falling.at(to_sigma[0.5], percent_to_sigma) == pytest.approx(4.0, abs=1e-3)
    assert falling.at(to_sigma[1.0], percent_to_sigma) == pytest.approx(1.0, abs=1e-3)
    assert ScaleSchedule(7.0, 0.0, 1.0, "rising").at(10.0, percent_to_sigma) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ScaleSchedule(value)


def test_reuse_asks_less_and_stays_within_its_bound() -> None:
    """The bound holds for each step's denoised latent where the rate of change does not grow."""
    reuse = Reuse(tolerance=0.1)
    sigmas, picture = [10.0 * 0.9**n for n in range(30)], normal(1, 4, 8, 8, seed=40)
    unit = torch.ones_like(picture)
    asked, worst = 0, 0.0
    for sigma in sigmas:
        true = picture - math.log(sigma) * 0.3 * unit
        if reuse.serves(sigma, 1.5, picture.shape):
            served = combine({NEITHER: reuse.neither(picture), PICTURE: picture, FULL: picture}, 7.5, 1.5)
            wanted = combine({NEITHER: true, PICTURE: picture, FULL: picture}, 7.5, 1.5)
            worst = max(worst, float((served - wanted).square().mean().sqrt()))
        else:
            reuse.keep(sigma, picture - true)
            asked += 1
    assert 2 <= asked < 12
    assert 0.0 < worst <= 0.1 + 1e-6


def test_reuse_saves_calls_in_a_run() -> None:
    model, calls = counted(MODEL)
    run(ours(7.5, 1.5, model=model, tolerance=100.0), 1)
    assert calls[:2] == [3, 3]
    assert calls[-1] == 2


def test_runs_that_share_their_start_ask_for_it_once() -> None:
    model, calls = counted(MODEL)
    shared = SharedStart()
    noise = edit_noise((1, 4, 8, 8), 3).expand(2, -1, -1, -1)
    made = []
    for scale in (1.5, 2.0):
        text = torch.tensor([3.0, 7.5]).view(-1, 1, 1, 1)
        guider = ours(text, torch.full_like(text, scale), 2, model, shared)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
        made.append(
            guider.sample(
                noise,
                torch.zeros(2, 4, 8, 8),
                comfy.samplers.sampler_object("euler"),
                sigmas,
                disable_pbar=True,
                seed=3,
            )
        )
    assert len(calls) == 2 * STEPS - 1
    torch.testing.assert_close(made[1][1:], run(ours(7.5, 2.0), 1), rtol=1e-3, atol=1e-3)


def test_the_rows_of_fabric_are_read_right() -> None:
    """A like joins the rows with the instruction and a dislike those with neither, as under the host's dual guider."""
    model = listen(MODEL, latents(1), latents(1, seed=200))
    changed = run(ours(7.5, 1.5, model=model), 1)
    torch.testing.assert_close(changed, run(native(7.5, 1.5, model=model), 1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed, run(ours(7.5, 1.5), 1), atol=1e-2)


def test_attention_patches_find_positive_and_negative_where_they_expect_them() -> None:
    """By their text: rows of the positive conditioning are numbered 0, those of neither 1, of the picture alone 2."""
    seen: list[tuple[list[int], Tensor]] = []
    model = MODEL.clone()

    def look(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        seen.append((options["cond_or_uncond"], k))
        return q, k, v

    model.set_model_attn2_patch(look)
    run(ours(7.5, 1.5, model=model), 1)
    numbers, context = seen[0]
    assert sorted(numbers) == [0, 1, 2]
    for number, row in zip(numbers, context, strict=True):
        assert torch.allclose(row, (POSITIVE if number == 0 else NEGATIVE)[0])


def test_the_model_is_left_as_it_was() -> None:
    before = run(native(7.5, 1.5), 1)
    run(ours(7.5, 1.5), 1)
    assert torch.equal(run(native(7.5, 1.5), 1), before)
    assert "sampler_post_cfg_function" not in MODEL.model_options
