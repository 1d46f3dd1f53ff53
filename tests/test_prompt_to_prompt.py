"""Prompt-to-Prompt on small random UNets, through the host's own samplers."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.ldm.modules.attention as host_attention
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from atelier.attention.prompt_to_prompt import align_tokens, is_shared, step_of
from atelier.attention.prompt_to_prompt_patch import align_words, apply_prompt_to_prompt
from naive_fabric import NaiveFabric, relative
from small_unets import (
    CFG,
    NEGATIVE,
    POOLED,
    POSITIVE,
    STEPS,
    TEXT_TOKENS,
    Conds,
    Patcher,
    latents,
    listen,
    normal,
    patcher,
    sample,
    sd15,
    sdxl,
    text,
)
from torch import Tensor

BEFORE = torch.cat([text(21), text(22), text(23)])
AFTER = torch.cat([text(31), text(32), text(33)])
NOISE = normal(3, 4, 8, 8, seed=1)
WORDS = {0: [0], 1: [1], 3: [2], 4: [3, 4], 5: [3, 4], 7: [7]}
"""For tokens after the edit, the tokens before it whose maps they get: 2 and 6 are new, 4 and 5 in the place of two."""


@pytest.fixture(scope="module")
def model() -> Patcher:
    return sd15()


def moved(words: dict[int, list[int]]) -> Tensor:
    maps = torch.zeros(TEXT_TOKENS, TEXT_TOKENS)
    for after, before in words.items():
        maps[before, after] = 1 / len(before)
    return maps


def draw(
    model: Patcher, before: Tensor = BEFORE, after: Tensor = AFTER, noise: Tensor = NOISE, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Sources and targets, drawn in one batch by the host's KSampler."""
    positive = [[torch.cat([before, after]), {"pooled_output": POOLED[id(POSITIVE)]}]]
    sources, targets = sample(model, noise.repeat(2, 1, 1, 1), positive, **settings).chunk(2)
    return sources, targets


# --- Parity with the paper


class NaivePair:
    """One pair, with explicit maps: section 3.2 of Prompt-to-Prompt, and the self-attention of InstructPix2Pix."""

    def __init__(self, model: Patcher, shared: int, words: dict[int, list[int]], words_shared: int) -> None:
        self.base, self.unet, self.naive = model.model, model.model.diffusion_model, NaiveFabric(model)
        self.shared, self.words, self.words_shared = shared, words, words_shared
        self.step, self.is_positive = 0, True

    def forward(self, attention: Any, x: Tensor, context: Tensor | None = None, **_: Any) -> Tensor:
        keys = x if context is None else context
        q, k, v = (
            part.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for part in (attention.to_q(x), attention.to_k(keys), attention.to_v(keys))
        )
        maps = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        is_self = any(attention is own for own in self.naive.attentions)
        if is_self and self.step < self.shared:
            maps[1] = maps[0]
        if not is_self and self.is_positive and self.step < self.words_shared:
            for after, before in self.words.items():
                maps[1, ..., after] = maps[0][..., before].mean(-1)
        return attention.to_out((maps @ v).transpose(1, 2).flatten(2))

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        parts = [part for part in self.unet.modules() if isinstance(part, host_attention.CrossAttention)]
        for part in parts:
            part.forward = lambda x, context=None, part=part, **_: self.forward(part, x, context)
        try:
            yield
        finally:
            for part in parts:
                del part.forward

    def denoise(self, x: Tensor, sigma: Tensor, prompts: Tensor, pooled: Tensor) -> Tensor:
        timestep = self.base.model_sampling.timestep(sigma).float().expand(2)
        vector = {"y": self.naive.vector(x, pooled)} if self.naive.is_sdxl else {}
        return x - sigma * self.unet(x / (sigma**2 + 1) ** 0.5, timestep, context=prompts, **vector)

    @torch.no_grad()
    def euler(self, noise: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Source and target from one noise [channels, height, width]."""
        sigmas = comfy.samplers.calculate_sigmas(self.base.model_sampling, "normal", STEPS)
        x = noise.expand(2, -1, -1, -1) * (1 + sigmas[0] ** 2) ** 0.5
        with self.patched():
            for self.step, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
                self.is_positive = True
                positive = self.denoise(x, sigma, torch.stack([before, after]), POSITIVE)
                self.is_positive = False
                negative = self.denoise(x, sigma, NEGATIVE.expand(2, -1, -1), NEGATIVE)
                denoised = negative + CFG * (positive - negative)
                x = x + (x - denoised) / sigma * (following - sigma)
        return x


@pytest.mark.parametrize("make", [sd15, sdxl], ids=["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("shares", "words_shares"),
    [((1.0, 1.0, 1.0), None), ((0.34, 0.0, 0.7), None), ((0.34, 0.0, 0.7), (0.7, 0.34, 0.0))],
    ids=["all-steps", "a-share-each", "with-words"],
)
def test_parity_with_the_papers(
    make: Callable[[], Patcher], shares: Sequence[float], words_shares: Sequence[float] | None
) -> None:
    model = make()
    words = [moved(WORDS)] * 3 if words_shares else []
    found = draw(apply_prompt_to_prompt(model, shares, words, words_shares or 0.0))
    plain = draw(model)
    for i in range(3):
        steps = [round(share * STEPS) for share in (shares[i], (words_shares or shares)[i])]
        wanted = NaivePair(model, steps[0], WORDS if words else {}, steps[1]).euler(NOISE[i], BEFORE[i], AFTER[i])
        assert relative(found[0][i], wanted[0]) < 1e-4
        assert relative(found[1][i], wanted[1]) < 1e-4
        is_plain = steps[0] == 0 and not words
        assert (relative(found[1][i], plain[1][i]) < 1e-5) == is_plain


def test_sources_are_drawn_as_without_it(model: Patcher) -> None:
    found, plain = draw(apply_prompt_to_prompt(model, 0.7, [moved(WORDS)])), draw(model)
    assert relative(found[0], plain[0]) < 1e-5
    assert relative(found[1], plain[1]) > 1e-2


# --- Identity


def test_share_0_is_a_plain_clone(model: Patcher) -> None:
    plain = torch.cat(draw(model))
    for share in (0.0, [0.0, 0.0, 0.0]):
        patched = apply_prompt_to_prompt(model, share)
        assert patched is not model and patched.model_options == model.model_options
        assert torch.equal(torch.cat(draw(patched)), plain)


def test_a_pair_of_share_0_is_drawn_bit_for_bit_as_without(model: Patcher) -> None:
    found, plain = draw(apply_prompt_to_prompt(model, [1.0, 0.0, 0.5])), draw(model)
    assert torch.equal(found[1][1], plain[1][1])
    assert not torch.equal(found[1][0], plain[1][0])


def test_a_share_below_half_a_step_is_none(model: Patcher) -> None:
    assert torch.equal(torch.cat(draw(apply_prompt_to_prompt(model, 0.49 / STEPS))), torch.cat(draw(model)))


@pytest.mark.parametrize("make", [sd15, sdxl], ids=["sd15", "sdxl"])
def test_equal_prompts_give_equal_pictures(make: Callable[[], Patcher]) -> None:
    same = align_tokens(range(TEXT_TOKENS), range(TEXT_TOKENS))
    for words in ([], [same] * 3):
        sources, targets = draw(apply_prompt_to_prompt(make(), [1.0, 0.5, 0.3], words), after=BEFORE)
        assert relative(targets, sources) < 1e-5


# --- Rows, chunks and steps


def test_permuting_the_pairs_permutes_the_result(model: Patcher) -> None:
    shares, words, order = [0.3, 1.0, 0.7], [moved(WORDS), moved({0: [0]}), moved({})], [2, 0, 1]
    wanted = draw(apply_prompt_to_prompt(model, shares, words, shares))
    permuted = [shares[i] for i in order]
    patched = apply_prompt_to_prompt(model, permuted, [words[i] for i in order], permuted)
    found = draw(patched, BEFORE[order], AFTER[order], NOISE[order])
    for side in (0, 1):
        assert relative(found[side], wanted[side][order]) < 1e-5


def step_call(model: Patcher, conds: list[int], sigma: float = 4.0) -> list[Tensor]:
    """One call of a step, for each entry of `conds` the rows of its conditioning."""
    texts = (torch.cat([BEFORE, AFTER]), NEGATIVE.expand(6, -1, -1))
    options = {
        **model.model_options["transformer_options"],
        "wrappers": model.wrappers,
        "cond_or_uncond": conds,
        "sample_sigmas": torch.tensor([8.0, 4.0, 1.0, 0.0]),
    }
    rows = normal(6, 4, 8, 8, seed=2).repeat(len(conds), 1, 1, 1)
    context, t = torch.cat([texts[cond] for cond in conds]), torch.full((len(rows),), sigma)
    model.model.current_patcher = model
    return list(model.model.apply_model(rows, t, c_crossattn=context, transformer_options=options).chunk(len(conds)))


@pytest.mark.parametrize("conds", [[0, 1], [0], [1], [0, 0, 1], [1, 0, 1]], ids=str)
def test_chunks_in_any_order(model: Patcher, conds: list[int]) -> None:
    patched = apply_prompt_to_prompt(model, [1.0, 0.0, 0.6], [moved(WORDS)] * 3, 1.0)
    negative, positive = step_call(patched, [1, 0])
    for cond, found in zip(conds, step_call(patched, conds), strict=True):
        assert relative(found, (positive, negative)[cond]) < 1e-5


def test_maps_of_words_are_of_the_positive_prompt(model: Patcher) -> None:
    """Negative rows share self-attention alone, as with the paper's code."""
    words = [moved(WORDS)] * 3
    negative, positive = step_call(apply_prompt_to_prompt(model, 0.0, words, 1.0), [1, 0])
    plain_negative, plain_positive = step_call(model, [1, 0])
    assert torch.equal(negative, plain_negative)
    assert relative(positive[3:], plain_positive[3:]) > 1e-3
    assert relative(step_call(apply_prompt_to_prompt(model, 1.0), [1, 0])[0][3:], negative[3:]) > 1e-3


def test_a_longer_negative_prompt_repeats_the_tokens(model: Patcher) -> None:
    """The host repeats the shorter text, and the result is as with the rows alone."""
    patched = apply_prompt_to_prompt(model, 0.5, [moved(WORDS)] * 3)
    wanted = draw(patched)
    repeated = [[NEGATIVE.repeat(1, 2, 1), {"pooled_output": POOLED[id(NEGATIVE)]}]]
    positive = [[torch.cat([BEFORE, AFTER]), {"pooled_output": POOLED[id(POSITIVE)]}]]
    found = comfy.sample.sample(
        patched, NOISE.repeat(2, 1, 1, 1), STEPS, CFG, "euler", "normal", positive, repeated,
        torch.zeros(6, 4, 8, 8), disable_pbar=True, seed=7,
    )  # fmt: skip
    assert relative(model.model.process_latent_in(found), torch.cat(wanted)) < 1e-4


def test_areas(model: Patcher) -> None:
    """Each area is a call of its own, with pairs of its own."""
    prompts = torch.cat([BEFORE, AFTER])
    left, right = ({"area": (8, 4, 0, x), "strength": 1.0} for x in (0, 4))
    patched = apply_prompt_to_prompt(model, 1.0)
    noise = NOISE.repeat(2, 1, 1, 1)
    alike = sample(patched, noise, [[torch.cat([BEFORE, BEFORE]), left], [torch.cat([AFTER, AFTER]), right]])
    assert relative(alike[3:], alike[:3]) < 1e-5
    assert relative(sample(patched, noise, [[prompts, left], [prompts, right]])[3:], alike[3:]) > 1e-2


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_other_samplers_keep_pairs_together(model: Patcher, sampler: str) -> None:
    sources, targets = draw(apply_prompt_to_prompt(model, 0.5), after=BEFORE, sampler_name=sampler, scheduler="karras")
    assert relative(targets, sources) < 1e-5


@pytest.mark.parametrize(
    ("sigma", "step"), [(20.0, 0), (8.0, 0), (7.9, 0), (4.0, 1), (4.0001, 1), (2.0, 1), (1.0, 2), (0.5, 2), (0.0, 2)]
)
def test_a_noise_levels_step(sigma: float, step: int) -> None:
    assert step_of(sigma, [8.0, 4.0, 1.0, 0.0]) == step


@pytest.mark.parametrize(("share", "steps", "shared"), [(0.3, 10, 3), (0.55, 20, 11), (0.1, 20, 2), (1.0, 7, 7)])
def test_a_share_of_the_steps(share: float, steps: int, shared: int) -> None:
    assert [is_shared(share, step, steps) for step in range(steps)] == [True] * shared + [False] * (steps - shared)


# --- Words


def test_shared_and_swapped_and_new_words() -> None:
    start, end, red, star, blue, on, gray, big = range(8)
    after = align_tokens([start, red, star, end, end, end], [start, blue, star, on, gray, end])
    assert [column.nonzero().flatten().tolist() for column in after.T] == [[0], [1], [2], [], [], [3]]
    assert align_tokens([start, red, star], [start, big, blue, star]).tolist() == [
        [1, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 1],
    ], "two words in the place of one have its map each"
    assert align_tokens([start, big, red, star], [start, blue, star])[:, 1].tolist() == [0, 0.5, 0.5, 0]
    padded = align_tokens([red, *[end] * 200], [big, blue, *[end] * 200])
    assert torch.equal(padded[1:, 2:], torch.eye(200)), "padding is no junk"


def test_words_of_a_text_encoder() -> None:
    class Clip:
        """Word numbers, in chunks of three, with weights; 'x' is an embedding, as of a textual inversion."""

        def tokenize(self, prompt: str) -> dict[str, list[list[tuple[Any, float]]]]:
            tokens = [(torch.ones(2, 2) if word == "x" else len(word), 1.1) for word in prompt.split()]
            return {"g": [tokens[:3], tokens[3:]], "l": []}

    assert align_words(Clip(), "a bb x dddd", "a ccc x dddd").tolist() == torch.eye(4).tolist()
    assert align_words(Clip(), "a bb x dddd", "a bb ccc dddd").tolist() == torch.eye(4).tolist()
    assert align_words(Clip(), "a x bb x", "a bb x ccc")[1].tolist() == [0.0] * 4


# --- Living with the host and with other patches


def snapshot(model: Patcher) -> tuple[dict[str, Tensor], list[Any]]:
    """All that a run could leave behind: weights; options, wrappers and attributes of modules."""
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    options, wrappers = (
        comfy.model_patcher.create_model_options_clone(part) for part in (model.model_options, model.wrappers)
    )
    attributes = [f"{name}.{key}" for name, part in model.model.named_modules() for key in part.__dict__]
    return weights, [options, wrappers, attributes]


def assert_same(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]


def test_runs_leave_nothing_behind_twice(model: Patcher) -> None:
    plain, before, results = torch.cat(draw(model)), snapshot(model), []
    for _ in range(2):
        patched = apply_prompt_to_prompt(model, 0.5, [moved(WORDS)])
        patched_before = snapshot(patched)
        results.append(torch.cat(draw(patched)))
        assert_same(patched_before, snapshot(patched))
        assert_same(before, snapshot(model))
        assert torch.equal(torch.cat(draw(model)), plain)
    assert torch.equal(*results)


def test_an_error_leaves_nothing_behind(model: Patcher) -> None:
    patched = apply_prompt_to_prompt(model, 1.0)
    wanted, before = torch.cat(draw(patched)), snapshot(patched)
    last = model.model.diffusion_model.output_blocks[-1][1].transformer_blocks[0].attn1.to_q

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory, say")

    with last.register_forward_hook(fail) as _, pytest.raises(RuntimeError, match=r"say"):
        draw(patched)
    assert_same(before, snapshot(patched))
    assert torch.equal(torch.cat(draw(patched)), wanted)


def test_an_earlier_attention_override_is_still_called(model: Patcher) -> None:
    keys: list[tuple[int, int]] = []

    def override(function: Callable[..., Tensor], q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        keys.append((len(q), k.shape[1]))
        return function(q, k, *args, **kwargs)

    other = model.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    found = torch.cat(draw(apply_prompt_to_prompt(other, 1.0, [moved(WORDS)])))
    assert torch.equal(found, torch.cat(draw(apply_prompt_to_prompt(model, 1.0, [moved(WORDS)]))))
    assert {(12, 64), (12, TEXT_TOKENS), (3, TEXT_TOKENS)} <= set(keys)


def test_a_replaced_self_attention_does_not_change_the_next_attention(model: Patcher) -> None:
    other = model.clone()
    for stage, block in (("input", 1), ("input", 3), ("middle", 0), *(("output", i) for i in range(6))):
        other.set_model_attn1_replace(lambda q, k, v, options: v, stage, block)
    assert torch.equal(torch.cat(draw(apply_prompt_to_prompt(other, 1.0))), torch.cat(draw(other)))


def test_attentions_of_other_patches_are_left_alone(model: Patcher) -> None:
    """Those between a block's own two attentions, and after them."""
    found: list[bool] = []

    def attend(x: Tensor, options: dict[str, Any]) -> Tensor:
        own = host_attention.optimized_attention(x, x, x, 2, transformer_options=options)
        found.append(torch.equal(own, host_attention.optimized_attention(x, x, x, 2)))
        return x

    patched = apply_prompt_to_prompt(model, 1.0, [moved(WORDS)])
    patched.set_model_patch(attend, "middle_patch")
    patched.set_model_attn2_output_patch(attend)
    draw(patched)
    assert found and all(found)


def test_with_feedback(model: Patcher) -> None:
    """FABRIC's references are read as without pairs, and both halves listen to them."""
    listening = listen(model, latents(1), latents(1, seed=200))
    sources, targets = draw(apply_prompt_to_prompt(listening, 1.0))
    assert relative(sources, draw(listening)[0]) < 1e-5
    assert relative(targets, draw(listening)[1]) > 1e-2
    sources, targets = draw(apply_prompt_to_prompt(listening, 1.0), after=BEFORE)
    assert relative(targets, sources) < 1e-5


def test_feedback_that_comes_later_is_refused(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"pairs 12 rows, and a self-attention came with 1. .* after it"):
        draw(listen(apply_prompt_to_prompt(model, 1.0), latents(1), []))


# --- Bad input


def test_an_odd_batch_is_refused(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"draws pairs, and the batch has 3 pictures. Make it \[sources"):
        sample(apply_prompt_to_prompt(model, 1.0), NOISE)


@pytest.mark.parametrize("pairs", [1, 2])
def test_another_number_of_pairs_is_refused(model: Patcher, pairs: int) -> None:
    with pytest.raises(ValueError, match=rf"settings for 3 pairs, and the batch has {pairs}. Make it \[sources"):
        draw(apply_prompt_to_prompt(model, [0.5, 0.5, 0.5]), BEFORE[:pairs], AFTER[:pairs], NOISE[:pairs])


@pytest.mark.parametrize("share", [0.5, [1.0, 0.0, 0.5]])
def test_halves_that_do_not_start_alike_are_refused(model: Patcher, share: float | list[float]) -> None:
    patched, positive = apply_prompt_to_prompt(model, share), [[torch.cat([BEFORE, AFTER]), {}]]
    interleaved = NOISE.repeat_interleave(2, dim=0)
    with pytest.raises(ValueError, match=r"same noise, and row 0 and row 3 of the batch do not. .* batch_index \[0, 1"):
        sample(patched, interleaved, positive)


def test_a_pair_that_shares_nothing_may_start_as_it_will(model: Patcher) -> None:
    noise = NOISE.repeat(2, 1, 1, 1)
    noise[4] = normal(4, 8, 8, seed=2)
    positive: Conds = [[torch.cat([BEFORE, AFTER]), {}]]
    assert sample(apply_prompt_to_prompt(model, [1.0, 0.0, 0.5]), noise, positive).isfinite().all()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), [0.5, 2.0], []])
def test_a_share_outside_0_to_1_is_refused(model: Patcher, share: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"A share of the steps is a number from 0 to 1, not (-0.1|1.5|nan|2.0|noth)"):
        apply_prompt_to_prompt(model, share)


def test_shares_and_words_of_different_numbers_are_refused(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"settings for 2 and for 3 pairs"):
        apply_prompt_to_prompt(model, [0.5, 0.5], [moved(WORDS)] * 3)


def test_words_of_other_prompts_are_refused(model: Patcher) -> None:
    for words in (torch.eye(5), torch.zeros(TEXT_TOKENS, 5)):
        with pytest.raises(ValueError, match=r"tokens, and the prompts have 8. Make it from the prompts"):
            draw(apply_prompt_to_prompt(model, 0.0, [words]))


def test_words_under_three_conditionings_are_refused(model: Patcher) -> None:
    patched = apply_prompt_to_prompt(model, 0.0, [moved(WORDS)])
    options = {"cond_or_uncond": [2, 1, 0], "sample_sigmas": torch.tensor([2.0, 0.0])}
    options |= {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
    with pytest.raises(ValueError, match=r"which of three conditionings is the positive"):
        model.model.apply_model(
            NOISE[:1].repeat(6, 1, 1, 1), torch.full((6,), 2.0), c_crossattn=BEFORE, transformer_options=options
        )


def test_a_call_outside_a_run_is_refused(model: Patcher) -> None:
    patched = apply_prompt_to_prompt(model, 1.0)
    options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers, "cond_or_uncond": [0]}
    with pytest.raises(ValueError, match=r"needs to know the run's steps. Draw with KSampler"):
        model.model.apply_model(NOISE[:2], torch.ones(2), c_crossattn=BEFORE[:2], transformer_options=options)


def test_it_is_applied_once(model: Patcher) -> None:
    with pytest.raises(ValueError, match=r"already has Prompt-to-Prompt"):
        apply_prompt_to_prompt(apply_prompt_to_prompt(model, 0.5), 0.5)


def test_models_of_another_class_are_refused() -> None:
    dit = {
        "image_model": "flux", "in_channels": 4, "out_channels": 4, "patch_size": 2, "vec_in_dim": 8,
        "context_in_dim": 8, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [2, 2, 4], "theta": 10000, "txt_ids_dims": [],
        "qkv_bias": True, "guidance_embed": False, "dtype": torch.float32,
    }  # fmt: skip
    flux = patcher(comfy.model_base.Flux(comfy.supported_models.Flux(dit), device="cpu"))
    with pytest.raises(ValueError, match=r"this model is Flux. Use an SD1.5, SD2 or SDXL checkpoint"):
        apply_prompt_to_prompt(flux, 0.5)
