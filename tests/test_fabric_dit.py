"""FABRIC on small random models of the DiT families, through the host's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy_extras.nodes_sd3
import pytest
import torch
from atelier.attention import fabric
from atelier.attention.dit import TokenOrder, block_depths, next_block
from atelier.attention.dit_fabric import dit_family
from atelier.attention.patches import apply_fabric, check_model
from atelier.attention.reference import Append, lengthen_mask, reference_noise
from atelier.attention.schedule import FabricSchedule
from atelier.feedback.pictures import Feedback
from atelier.nodes.fabric import AtelierFabric
from naive_fabric import relative
from small_dits import DITS, FLUX, PADDING, Bench, Small, conditioning, z_image
from small_unets import ALWAYS, SEED, STEPS, Patcher, count_passes, patcher, sd15
from torch import Tensor

FULL = FabricSchedule(1.0, 0.0, 1.0, 0.0, 1.0)


@pytest.fixture(scope="module", params=DITS)
def dit(request: pytest.FixtureRequest) -> Bench:
    return Bench(DITS[request.param])


@pytest.fixture
def passes(dit: Bench, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each pass through the model, as they happen."""
    return count_passes(dit.model, monkeypatch)


# --- Identity


@pytest.mark.parametrize(
    "schedule",
    [replace(ALWAYS, weight=0.0), replace(ALWAYS, start_percent=0.6, end_percent=0.4)],
    ids=["weight-0", "window-ends-before-it-begins"],
)
def test_weight_0_changes_no_bit_and_reads_no_reference(
    dit: Bench, passes: list[int], schedule: FabricSchedule
) -> None:
    plain = dit.sample(dit.model, dit.small.noise(2))
    calls = passes.copy()
    passes.clear()
    patched = dit.listen(dit.small.latents(1), dit.small.latents(1, seed=200), schedule)
    assert torch.equal(dit.sample(patched, dit.small.noise(2)), plain)
    assert passes == calls


def test_without_references_the_model_is_a_plain_clone(dit: Bench) -> None:
    patched = dit.listen([], [])
    assert patched is not dit.model
    assert patched.wrappers == dit.model.wrappers and patched.model_options == dit.model.model_options


def test_its_own_keys_and_values_change_nothing(dit: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose picture, prompt and noise are the reference's has all of its keys twice, if the text's are kept too,
    and twice the same changes nothing. So the references go in exactly as the run's own rows do: scale, noise,
    prompt and all else that the model takes. Two rows, and a negative row that has the dislike."""
    hidden = PADDING if "attention_mask" in dit.empty else 0
    monkeypatch.setattr(TokenOrder, "picture", lambda order, tokens, shape: slice(hidden, tokens))
    (picture,) = dit.small.latents(1)
    clean = dit.model.get_model_object("latent_format").process_in(picture[None])
    sigmas = comfy.samplers.calculate_sigmas(dit.model.get_model_object("model_sampling"), "simple", 2)[-2:]
    empty = conditioning(dit.empty)

    def run(model: Patcher) -> Tensor:
        return comfy.sample.sample_custom(
            model, reference_noise(clean[0], SEED)[None].repeat(2, *[1] * picture.ndim), 2.0,
            comfy.samplers.sampler_object("euler"), sigmas, empty, empty,
            picture[None].repeat(2, *[1] * picture.ndim), disable_pbar=True, seed=SEED,
        )  # fmt: skip

    plain = run(dit.model)
    assert relative(run(dit.listen([picture], [picture], FULL)), plain) < 1e-5
    other = dit.small.latents(1, seed=300)
    assert relative(run(dit.listen(other, [picture], FULL)), plain) > 1e-4, "the test can fail"


# --- What is kept of a reference


def kept(dit: Bench, picture: Tensor, empty: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """The keys and values of the one reference, by block, at the first step."""
    found: list[dict[Any, Any]] = []
    original = fabric.join_references

    def look(parts: Iterable[tuple[Any, Any]]) -> Any:
        found.append(dict(parts))
        return original(found[-1].items())

    with monkeypatch.context() as patch:
        patch.setattr(fabric, "join_references", look)
        dit.sample(apply_fabric(dit.model, [picture], [], empty, ALWAYS, experimental=True), dit.small.noise())
    return next(iter(found[0].values()))


def test_the_pictures_tokens_are_kept_and_no_text(dit: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first block text and picture have not met yet: there what is kept depends on the picture alone, and each
    token of it does."""
    one, other = dit.small.latents(2, 7, 9)
    first = kept(dit, one, dit.empty, monkeypatch)
    again = kept(dit, one, {**dit.small.prompt(99, 5), **without_text(dit.empty)}, monkeypatch)
    changed = kept(dit, other, dit.empty, monkeypatch)
    patch = dit.model.model.diffusion_model.patch_size
    tokens = -(-7 // patch) * -(-9 // patch)
    assert list(first) == list(dit_family(dit.model.model.diffusion_model).depths)
    assert {part.shape[:2] for parts in first.values() for part in parts[:2]} == {(1, tokens)}
    block = next(iter(first))
    for mine, same, unlike in zip(first[block][:2], again[block][:2], changed[block][:2], strict=True):
        assert relative(same, mine) < 1e-6
        assert (unlike - mine).abs().amax(-1).min() > 1e-3
    last = list(first)[-1]
    assert relative(again[last][0], first[last][0]) > 1e-4, "later, the text has reached the picture"


def without_text(prompt: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prompt.items() if name != "cond"}


@pytest.mark.parametrize(
    ("order", "shape", "picture"),
    [
        (TokenOrder(2), (1, 16, 8, 8), (84, 100)),
        (TokenOrder(2), (1, 16, 7, 5), (88, 100)),
        (TokenOrder(1), (1, 128, 3, 2), (94, 100)),
        (TokenOrder(2), (1, 16, 3, 4, 4), (88, 100)),
        (TokenOrder(2, 32), (1, 16, 8, 8), (68, 84)),
        (TokenOrder(2, 32), (1, 16, 16, 8), (68, 100)),
    ],
)
def test_where_the_pictures_tokens_are(order: TokenOrder, shape: tuple[int, ...], picture: tuple[int, int]) -> None:
    assert order.picture(100, shape) == slice(*picture)


def test_padding_behind_the_picture_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Z-Image fills 20 tokens up to 24. Without layers that refine the picture first, padding knows nothing of it."""
    dit = Bench(Small(lambda: z_image(n_refiner_layers=0)))
    one, other = (kept(dit, picture, dit.empty, monkeypatch) for picture in dit.small.latents(2, 7, 9))
    block = next(iter(one))
    assert one[block][0].shape[1] == 20
    assert (one[block][0] - other[block][0]).abs().amax(-1).min() > 1e-3


def test_names_and_depths_of_blocks() -> None:
    assert next_block({}, None) is None
    inside = {"block_type": "double", "block_index": 3}
    assert next_block(inside, ("double", 2, 1)) == ("double", 3, 0)
    assert next_block(inside, ("double", 3, 0)) == ("double", 3, 1)
    assert next_block(inside, ("single", 3, 0)) == ("double", 3, 0)
    blocks = [("double", 0, 0), ("double", 0, 1), ("double", 1, 0), ("single", 0, 0)]
    assert block_depths(blocks) == dict(zip(blocks, [0.0, 0.0, 1.0, 0.0], strict=True))
    assert block_depths(blocks[:1]) == {blocks[0]: 1.0}


# --- Feedback counts


@pytest.mark.parametrize(("liked", "disliked"), [(1, 0), (0, 1), (2, 1), (1, 3)])
def test_feedback_changes_each_picture_of_a_batch(dit: Bench, liked: int, disliked: int) -> None:
    noise = dit.small.noise(2)
    patched = dit.listen(dit.small.latents(liked), dit.small.latents(disliked, 6, 5, seed=200))
    found, plain = dit.sample(patched, noise), dit.sample(dit.model, noise)
    assert found.isfinite().all()
    assert all(relative(found[i], plain[i]) > 1e-3 for i in range(2))
    alone = torch.cat([dit.sample(patched, noise[i : i + 1]) for i in range(2)])
    assert relative(found, alone) < 1e-5, "rows do not mix"


def test_the_order_of_pictures_does_not_matter(dit: Bench) -> None:
    liked, disliked = dit.small.latents(3), dit.small.latents(2, 4, 8, seed=200)
    forward = dit.sample(dit.listen(liked, disliked), dit.small.noise())
    assert relative(dit.sample(dit.listen(liked[::-1], disliked[::-1]), dit.small.noise()), forward) < 1e-5


def test_at_cfg_1_only_likes_act(dit: Bench) -> None:
    noise, disliked = dit.small.noise(), dit.small.latents(2, seed=200)
    plain = dit.sample(dit.model, noise, cfg=1.0)
    assert torch.equal(dit.sample(dit.listen([], disliked), noise, cfg=1.0), plain)
    likes = dit.sample(dit.listen(dit.small.latents(1), []), noise, cfg=1.0)
    assert relative(likes, plain) > 1e-3
    assert relative(dit.sample(dit.listen(dit.small.latents(1), disliked), noise, cfg=1.0), likes) < 1e-5


def test_a_picture_larger_than_the_new_one_is_made_smaller(dit: Bench, passes: list[int]) -> None:
    (large,) = dit.small.latents(1, 20, 10)
    assert dit.sample(dit.listen([large], []), dit.small.noise()).isfinite().all()
    assert passes == [1, *passes[1 : len(passes) // STEPS]] * STEPS


def test_layers_by_depth_and_the_cache(dit: Bench, passes: list[int]) -> None:
    liked, noise = dit.small.latents(1), dit.small.noise()
    results = [dit.sample(dit.listen(liked, [], replace(ALWAYS, depth=name)), noise) for name in ("all", "coarse")]
    assert relative(*results) > 1e-4
    patched = dit.listen(liked, [], fixed_noise=True, cache_bytes=2**24)
    first = dit.sample(patched, noise)
    cold = len(passes)
    again = dit.listen(liked, [], fixed_noise=True, cache_bytes=2**24)
    assert torch.equal(dit.sample(again, noise), first)
    assert len(passes) - cold == len(passes[:cold]) // 3 - STEPS, "no reference is read again"


# --- Living with the host


def state(model: Patcher) -> tuple[Any, ...]:
    """All that a run could leave behind."""
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    attributes = [f"{name}.{key}" for name, part in model.model.named_modules() for key in part.__dict__]
    return options, {kind: dict(found) for kind, found in model.wrappers.items()}, attributes


@pytest.mark.parametrize("failing", ["reference-pass", "model-call"])
def test_an_error_leaves_nothing_behind(dit: Bench, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    noise, patched = dit.small.noise(), dit.listen(dit.small.latents(1), dit.small.latents(1, seed=200))
    plain, wanted, before = dit.sample(dit.model, noise), dit.sample(patched, noise), state(patched)
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == ("reference-pass", "model-call").index(failing):
            raise RuntimeError("out of memory, say")

    unet = dit.model.model.diffusion_model
    (embed,) = (part for name, part in unet.named_modules() if name in ("img_in", "x_embedder"))
    with embed.register_forward_hook(fail) as _, pytest.raises(RuntimeError, match=r"say"):
        dit.sample(patched, noise)
    assert state(patched) == before
    assert torch.equal(dit.sample(dit.model, noise), plain)
    assert torch.equal(dit.sample(patched, noise), wanted)


def test_an_earlier_attention_override_and_blocks_replacement_are_still_called(dit: Bench) -> None:
    seen: list[str] = []

    def override(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        seen.append("attention")
        return function(*args, **kwargs)

    def replacement(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append("block")
        return extra["original_block"](args)

    other, liked, noise = dit.model.clone(), dit.small.latents(1), dit.small.noise()
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    other.set_model_patch_replace(replacement, "dit", "double_block", 0)
    wanted = dit.sample(dit.listen(liked, []), noise)
    assert torch.equal(dit.sample(dit.listen(liked, [], model=other), noise), wanted)
    assert "attention" in seen
    assert "block" in seen or type(dit.model.model.diffusion_model).__name__ == "NextDiT", "which has no such place"


def test_blocks_that_a_patch_skips_do_not_rename_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's skip layer guidance asks SD3 once more in each step, without some of its blocks."""
    dit, calls = Bench(DITS["sd3.5-medium"]), {}
    original = Append.attend

    def look(call: Append, *args: Any) -> Tensor:
        calls.setdefault(id(call), (call, []))[1].append(call.block)
        return original(call, *args)

    monkeypatch.setattr(Append, "attend", look)
    patched = dit.listen(dit.small.latents(1), [])
    skipping = comfy_extras.nodes_sd3.SkipLayerGuidanceSD3.execute(patched, "1", 3.0, 0.0, 1.0).args[0]
    assert dit.sample(skipping, dit.small.noise()).isfinite().all()
    every = [("double", 0, 0), ("double", 0, 1), ("double", 1, 0), ("double", 1, 1), ("double", 2, 0)]
    found = [blocks for _, blocks in calls.values()]
    assert every in found
    assert [*every[:2], every[4]] in found
    assert all(blocks in (every, [*every[:2], every[4]]) for blocks in found)


@pytest.mark.parametrize("name", ["flux", "qwen-image", "z-image"])
def test_pictures_that_an_editing_model_reads_stay_with_the_run(name: str) -> None:
    dit = Bench(DITS[name])
    (edited,) = dit.small.latents(1, 4, 6, seed=400)
    more, noise = {"reference_latents": [edited[None]]}, dit.small.noise()
    plain = dit.sample(dit.model, noise, **more)
    found = dit.sample(dit.listen(dit.small.latents(1), dit.small.latents(2, seed=200)), noise, **more)
    assert found.isfinite().all() and relative(found, plain) > 1e-3


def test_a_mask_lets_the_references_through() -> None:
    mask, logits = torch.tensor([[[True, False]]]), torch.tensor([[[0.0, 0.0, -1.0]]])
    assert lengthen_mask(mask, 4, None).flatten().tolist() == [True, False, True, True]
    assert lengthen_mask(mask, 3, logits).flatten().tolist() == [0.0, -torch.inf, -1.0]
    added = lengthen_mask(torch.tensor([[[0.0, -5.0]]]), 3, logits)
    assert added.flatten().tolist() == [0.0, -5.0, -1.0]


def test_hidden_text_stays_hidden() -> None:
    """Qwen-Image's padding of the text does not count, with references or without."""
    dit = Bench(DITS["qwen-image-mask"])
    noise, patched = dit.small.noise(), dit.listen(dit.small.latents(1), dit.small.latents(1, seed=200))
    wanted = dit.sample(patched, noise)
    for prompt in (dit.positive, dit.negative, dit.empty):
        prompt["cond"][:, :PADDING] = 7.0
    assert relative(dit.sample(dit.listen(dit.small.latents(1), dit.small.latents(1, seed=200)), noise), wanted) < 1e-5


# --- The switch, and bad input


def test_without_the_switch_the_error_names_it(dit: Bench) -> None:
    with pytest.raises(ValueError, match=r"take AtelierFabric out\. For Flux-, SD3-, .* the switch 'experimental'"):
        check_model(dit.model)
    check_model(dit.model, experimental=True)


def test_another_family_is_refused_with_the_switch_on() -> None:
    """Chroma is a relative of Flux, with blocks of its own."""
    unlike = ("guidance_embed", "image_model")
    dit = {name: value for name, value in FLUX.items() if name not in unlike}
    dit |= {"in_dim": 8, "hidden_dim": 8, "out_dim": 32, "n_layers": 1}
    chroma = comfy.model_base.Chroma(comfy.supported_models.Chroma(dit), device="cpu")
    with pytest.raises(ValueError, match=r"the connected model is Chroma\."):
        check_model(patcher(chroma), experimental=True)


def test_the_switch_changes_nothing_for_a_unet() -> None:
    check_model(sd15(), experimental=True)


def test_latents_and_text_of_another_family_are_refused(dit: Bench) -> None:
    with pytest.raises(ValueError, match=r"channels. Connect the VAE"):
        dit.listen([torch.zeros(4, 8, 8)], [])
    with pytest.raises(ValueError, match=r"the model wants 24. Connect the CLIP"):
        empty = {"cond": torch.zeros(1, 8, 768)}
        apply_fabric(dit.model, dit.small.latents(1), [], empty, ALWAYS, experimental=True)


def test_a_picture_longer_than_sd3_takes_is_refused() -> None:
    dit = Bench(DITS["sd3"])
    with pytest.raises(ValueError, match=r"26x2 patches .* at most 12 to a side. Crop"):
        dit.listen(dit.small.latents(1, 4, 52), [])


class EmptyPromptClip:
    def tokenize(self, prompt: str) -> str:
        return prompt

    def encode_from_tokens(self, tokens: str, return_dict: bool) -> dict[str, Any]:
        return Bench(DITS["flux"]).empty


class SmallVae:
    """Encodes to 16 channels of an eighth of the size."""

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        planes = pixels.movedim(-1, 1).repeat(1, 6, 1, 1)[:, :16]
        return torch.nn.functional.avg_pool2d(planes, 8)


def test_the_node_has_the_switch() -> None:
    dit, picture = Bench(DITS["flux"]), torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))

    def node(**more: Any) -> Patcher:
        feedback = Feedback((picture,), ())
        settings = (dit.model, EmptyPromptClip(), SmallVae(), feedback, 0.8, 0.5, 0.0, 1.0, 0.0)
        return AtelierFabric.execute(*settings, reference_noise="seed", **more).args[0]

    wanted = dit.sample(dit.listen([*SmallVae().encode(picture[None])], []), dit.small.noise())
    assert torch.equal(dit.sample(node(experimental=True), dit.small.noise()), wanted)
    with pytest.raises(ValueError, match=r"the connected model is Flux\. .* there is the switch 'experimental'"):
        node()
