"""FABRIC on every kind of UNet and guider that it says it takes: small random models, the host's own samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy_extras.nodes_custom_sampler
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_perpneg
import pytest
import torch
from atelier.attention.fabric import cond_sides
from atelier.attention.patches import FabricSchedule, check_model
from atelier.attention.reference import DISLIKED, LIKED, reference_noise, shrink_latent
from naive_fabric import relative
from small_unets import (
    EMPTY,
    NEGATIVE,
    POSITIVE,
    SEED,
    SMALL_SDXL_UNET,
    SMALL_UNET,
    Patcher,
    SmallSD15,
    SmallSDXL,
    conditioning,
    filled,
    latents,
    listen,
    normal,
    sample,
    sd15,
    sdxl,
)
from torch import Tensor

NOISE = normal(1, 4, 8, 8, seed=1)

# --- Kinds of model


def inpaint() -> Patcher:
    model = sd15(in_channels=9)
    model.model.set_inpaint()
    return model


def sdxl_inpaint() -> Patcher:
    model = sdxl(in_channels=9)
    model.model.set_inpaint()
    return model


def instruct_pix2pix() -> Patcher:
    return filled(comfy.model_base.SD15_instructpix2pix(SmallSD15({**SMALL_UNET, "in_channels": 8}), device="cpu"))


def sdxl_instruct_pix2pix() -> Patcher:
    unet = {**SMALL_SDXL_UNET, "in_channels": 8}
    return filled(comfy.model_base.SDXL_instructpix2pix(SmallSDXL(unet), device="cpu"))


def v_prediction() -> Patcher:
    kind = comfy.model_base.ModelType.V_PREDICTION
    return filled(comfy.model_base.BaseModel(SmallSD15(SMALL_UNET), model_type=kind, device="cpu"))


def sampling(name: str, zsnr: bool, make: Callable[[], Patcher] = sd15) -> Patcher:
    """The model through the host's node ModelSamplingDiscrete."""
    return comfy_extras.nodes_model_advanced.ModelSamplingDiscrete().patch(make(), name, zsnr)[0]


def zero_snr() -> Patcher:
    return sampling("v_prediction", True)


def sdxl_zero_snr() -> Patcher:
    return sampling("v_prediction", True, sdxl)


def lcm() -> Patcher:
    return sampling("lcm", False)


def bf16() -> Patcher:
    return sd15(dtype=torch.bfloat16)


def fp8(make: Callable[..., Patcher] = sd15) -> Patcher:
    """Weights in fp8, computed in float32, as the host does where there is no fp8 arithmetic."""

    class Cast(SmallSD15 if make is sd15 else SmallSDXL):
        manual_cast_dtype = torch.float32

    kind = comfy.model_base.BaseModel if make is sd15 else comfy.model_base.SDXL
    unet = {**(SMALL_UNET if make is sd15 else SMALL_SDXL_UNET), "dtype": torch.float8_e4m3fn}
    return filled(kind(Cast(unet), device="cpu"))


def sdxl_fp8() -> Patcher:
    return fp8(sdxl)


MODELS = [
    sdxl, inpaint, sdxl_inpaint, instruct_pix2pix, sdxl_instruct_pix2pix, v_prediction, zero_snr, sdxl_zero_snr, lcm,
    bf16, fp8, sdxl_fp8,
]  # fmt: skip


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_every_kind_of_unet_listens(make: Callable[[], Patcher]) -> None:
    model = make()
    settings = {"sampler_name": "lcm", "scheduler": "sgm_uniform"} if make is lcm else {}
    result = sample(listen(model, latents(1), latents(1, 4, 8)), NOISE, **settings)
    assert result.isfinite().all()
    assert relative(result, sample(model, NOISE, **settings)) > 1e-2


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_reference_is_read_as_a_picture_of_the_run_would_be(make: Callable[[], Patcher]) -> None:
    """At weight 1, a row whose picture, prompt and noise are the reference's has all of its keys twice, and twice the
    same changes nothing. So the result is the plain model's only if the references went in exactly as the run's
    own rows do: their scale, their noise, their prompt and all else that the model takes."""
    model = make()
    (picture,) = latents(1)
    clean = model.get_model_object("latent_format").process_in(picture)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 2)[-2:]
    patched = listen(model, [picture], [], FabricSchedule(1.0, 0.0, 1.0, 0.0, 0.5))

    def run(model: Patcher) -> Tensor:
        return comfy.sample.sample_custom(
            model, reference_noise(clean, SEED)[None], 1.0, comfy.samplers.sampler_object("euler"), sigmas,
            conditioning(EMPTY), conditioning(NEGATIVE), picture[None], disable_pbar=True, seed=SEED,
        )  # fmt: skip

    tolerance = 2e-2 if make is bf16 else 1e-5
    assert relative(run(patched), run(model)) < tolerance


def test_video_unets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1.x, 2.x and XL models"):
        check_model(
            sd15(use_temporal_attention=True, merge_strategy="learned", merge_factor=0.0, video_kernel_size=[3, 1, 1]),
            experimental=True,
        )


# --- Guiders with other conditionings than positive and negative


@pytest.fixture(scope="module")
def model() -> Patcher:
    return sd15()


def run_guider(guider: Any) -> Tensor:
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", 3)
    return guider.sample(
        NOISE, torch.zeros_like(NOISE), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=SEED
    )


def dual(model: Patcher, positive: Tensor, middle: Tensor, negative: Tensor, style: str = "regular") -> Tensor:
    conds = (conditioning(prompt) for prompt in (positive, middle, negative))
    return run_guider(comfy_extras.nodes_custom_sampler.DualCFGGuider.execute(model, *conds, 4.0, 1.5, style).args[0])


def predictions(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Tensor]) -> list[Tensor]:
    """What the first step's conditionings predicted, in the guider's own order."""
    found: list[list[Tensor]] = []
    original = comfy.samplers.calc_cond_batch

    def keep(*args: Any) -> list[Tensor]:
        outs = original(*args)
        found.append([out.clone() for out in outs])
        return outs

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", keep)
    run()
    monkeypatch.undo()
    return found[0]


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_guidance_gives_likes_to_positive_and_dislikes_to_negative(
    model: Patcher, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    """The conditionings are in the order negative, middle, positive here."""

    def first_step(patched: Patcher) -> list[Tensor]:
        return predictions(monkeypatch, lambda: dual(patched, POSITIVE, EMPTY, NEGATIVE, style))

    plain = first_step(model)
    for liked, disliked, changed in ((1, 0, [2]), (0, 1, [0]), (2, 1, [0, 2])):
        found = first_step(listen(model, latents(liked), latents(disliked, seed=200)))
        assert [i for i in range(3) if relative(found[i], plain[i]) > 1e-3] == changed


def test_dual_guidance_agrees_with_plain_guidance(model: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = listen(model, latents(2), latents(1, seed=200))
    negative, _, positive = predictions(monkeypatch, lambda: dual(patched, POSITIVE, EMPTY, NEGATIVE))
    plain = comfy.samplers.CFGGuider(patched)
    plain.set_conds(conditioning(POSITIVE), conditioning(NEGATIVE))
    plain.set_cfg(4.0)
    wanted_positive, wanted_negative = predictions(monkeypatch, lambda: run_guider(plain))
    assert relative(positive, wanted_positive) < 1e-5
    assert relative(negative, wanted_negative) < 1e-5


def test_perpendicular_negative_guidance(model: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conditionings are in the order positive, negative, empty here."""

    def first_step(patched: Patcher) -> list[Tensor]:
        conds = (conditioning(prompt) for prompt in (POSITIVE, NEGATIVE, EMPTY))
        guider = comfy_extras.nodes_perpneg.PerpNegGuider.execute(patched, *conds, 4.0, 1.0).args[0]
        return predictions(monkeypatch, lambda: run_guider(guider))

    plain, found = first_step(model), first_step(listen(model, latents(1), latents(1, seed=200)))
    assert [i for i in range(3) if relative(found[i], plain[i]) > 1e-3] == [0, 1]


def test_sides_of_conditionings() -> None:
    positive, negative, other = [{}], [{}], [{}]
    named = {"positive": positive, "negative": negative}
    assert cond_sides([positive, negative], named) == [LIKED, DISLIKED]
    assert cond_sides([negative, other, positive], named) == [DISLIKED, None, LIKED]
    assert cond_sides([negative], named) == [DISLIKED]
    assert cond_sides([None, negative], named) == [None, DISLIKED]
    assert cond_sides([other], named) == [None], "another patch's own question"
    assert cond_sides([[{}], [{}]], named) is None, "copies: only their order is left to go by"


# --- Sizes and memory


def test_a_reference_that_is_too_large_keeps_its_aspect() -> None:
    wide = normal(4, 30, 90, seed=1)
    assert shrink_latent(wide, 30 * 90) is wide
    assert shrink_latent(wide, 64).shape == (4, 4, 13)
    assert shrink_latent(torch.ones(4, 1, 500), 64).shape == (4, 1, 178), "no side becomes nothing"
    assert shrink_latent(normal(4, 16, 16, seed=1), 64).shape == (4, 8, 8)
    flat = torch.full((4, 20, 20), 3.0)
    assert torch.allclose(shrink_latent(flat, 50), torch.full((4, 7, 7), 3.0))


def test_large_references_cost_no_more_than_the_new_picture(model: Patcher, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[int, ...]] = set()
    original = model.model._apply_model

    def look(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        shapes.add(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "_apply_model", look)
    sample(listen(model, latents(1, 32, 32), latents(1, 8, 32)), NOISE)
    assert shapes == {(2, 4, 8, 8), (1, 4, 8, 8), (1, 4, 4, 16)}


@pytest.fixture
def little_memory(model: Patcher, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A device that has no memory for three rows at once."""
    rows: list[int] = []
    original = model.model._apply_model

    def scarce(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("no memory for this")
        return original(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "_apply_model", scarce)
    yield rows


def test_without_memory_for_one_reference_the_error_goes_out_and_leaves_nothing(
    model: Patcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched, original = listen(model, latents(2), []), model.model._apply_model
    wanted, options = sample(patched, NOISE), repr(sorted(patched.model_options["transformer_options"]))

    def scarce(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs["transformer_options"]["cond_or_uncond"] == [1]:
            raise torch.OutOfMemoryError("no memory for this")
        return original(x, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError, match="no memory for this"):
        patch.setattr(model.model, "_apply_model", scarce)
        sample(patched, NOISE)
    assert repr(sorted(patched.model_options["transformer_options"])) == options
    assert torch.equal(sample(patched, NOISE), wanted)


def test_memory_that_ends_in_the_middle_of_the_pass_is_no_end_of_it(model: Patcher) -> None:
    """The pass of all pictures fails in a layer, and those of single pictures end at the last self-attention."""
    patched = listen(model, latents(3), [])
    wanted = sample(patched, NOISE)

    def scarce(part: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) == 3:
            raise torch.OutOfMemoryError("no memory for this")

    with model.model.diffusion_model.middle_block[1].register_forward_pre_hook(scarce):
        assert relative(sample(patched, NOISE), wanted) < 1e-5


def test_without_memory_references_are_read_one_at_a_time(
    model: Patcher, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    patched = listen(model, latents(3), [])
    wanted = sample(patched, NOISE)
    rows = request.getfixturevalue("little_memory")
    assert relative(sample(patched, NOISE), wanted) < 1e-5
    assert rows == [3, 1, 1, 1, 2] * 3
    assert "no memory for 3 references at once; they are read one at a time" in caplog.text
