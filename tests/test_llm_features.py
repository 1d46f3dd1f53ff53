"""Features of language models under the host: T5 of any size, transformers folders, and the two prompts as one pair."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
import pytest
import torch
from atelier.attention.cross_adapter import AdapterShape, read_adapter
from atelier.attention.ella_patch import apply_ella
from atelier.attention.guidance import ScaleSchedule
from atelier.attention.guider import EditGuidance, EditGuider
from atelier.attention.llm_features import LoadedAdapter, encode_pair, hold, llm_features, plain_text
from atelier.attention.t5_encoder import encoder_weights, load_t5, t5_config
from atelier.nodes.cross_adapter import AtelierCrossAdapterEncode, open_folder
from naive_adapter import random_state
from safetensors.torch import save_file
from small_unets import STEPS, TEXT_WIDTH, count_passes, fill, latents, listen, normal, sample, sd15, sdxl
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

WIDTH, TOKENS = 32, 24
TOKENIZER = Path(comfy.sd.__file__).parent / "text_encoders" / "t5_tokenizer"


def reference(gated: bool) -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, d_model=WIDTH, d_kv=8, num_heads=2, d_ff=48, num_layers=3, dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    return T5EncoderModel(config).eval()


@pytest.fixture(scope="module", params=[True, False], ids=["flan", "t5"])
def encoder(request: Any, tmp_path_factory: Any) -> tuple[T5EncoderModel, comfy.sd.CLIP]:
    model = reference(request.param)
    file = tmp_path_factory.mktemp("t5") / "encoder.safetensors"
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items() if "embed_tokens" not in name}, file
    )
    return model, load_t5([file], dtype=torch.float32)


def expected(model: T5EncoderModel, text: str, tokens: int) -> Tensor:
    """What transformers makes of a text that is padded with id 0, whose outputs stay."""
    words = T5TokenizerFast.from_pretrained(str(TOKENIZER))
    ids = words(text, padding="max_length", max_length=tokens, truncation=False, return_tensors="pt")
    with torch.no_grad():
        return model(ids.input_ids[:, :tokens], attention_mask=ids.attention_mask[:, :tokens]).last_hidden_state


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_features_agree_with_transformers(encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    model, clip = encoder
    found = llm_features(clip, "a red star, on a blue sea", TOKENS, "pre ")
    assert found.values.shape == (1, TOKENS, WIDTH)
    close(found.values, expected(model, "pre a red star, on a blue sea", TOKENS))
    words = T5TokenizerFast.from_pretrained(str(TOKENIZER))
    assert (found.read.used, found.read.lost) == (len(words("pre a red star, on a blue sea").input_ids), 0)


def test_a_long_text_is_cut_and_told(encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    model, clip = encoder
    found = llm_features(clip, "star " * 5000, TOKENS)
    assert found.read.used == TOKENS
    assert found.read.lost >= 5000 - TOKENS
    close(found.values, expected(model, "star " * 5000, TOKENS))


def test_layers_can_be_chosen_and_missing_ones_are_told(encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    clip = encoder[1]
    last, first = (llm_features(clip, "a star", TOKENS, layer=layer).values for layer in (-1, -3))
    assert not torch.allclose(last, first)
    torch.testing.assert_close(last, llm_features(clip, "a star", TOKENS).values)
    with pytest.raises(ValueError, match="has 3 layers, and layer is -4"):
        llm_features(clip, "a star", TOKENS, layer=-4)


def test_weights_and_embeddings_of_a_prompt_are_not_read_out() -> None:
    assert plain_text(r"a (red:1.3) star, [blue], \(sic\), embedding:name (deep (sea:0.5):1.2)") == (
        "a red star, [blue], (sic),  deep sea"
    )


@pytest.mark.parametrize("text", ["a (red:1.3) star", "a red star"])
def test_prompt_weights_do_not_scale_features(encoder: tuple[T5EncoderModel, comfy.sd.CLIP], text: str) -> None:
    plain = llm_features(encoder[1], "a red star", TOKENS).values
    torch.testing.assert_close(llm_features(encoder[1], text, TOKENS).values, plain)


def test_rankgen_and_whole_models_give_their_encoder() -> None:
    state = reference(True).state_dict()
    own = encoder_weights(state)
    rankgen = encoder_weights(
        {f"t5_encoder.{name}": value for name, value in state.items()} | {"projection": torch.ones(1)}
    )
    whole = encoder_weights(state | {"decoder.block.0.x": torch.ones(1), "lm_head.weight": torch.ones(1)})
    assert own.keys() == rankgen.keys() == whole.keys()
    assert t5_config(own)["num_layers"] == 3


def test_other_encoders_are_refused_with_a_reason(tmp_path: Path) -> None:
    save_file({"text_model.embeddings.weight": torch.zeros(2, 2)}, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="no encoder of the T5 family"):
        load_t5([tmp_path / "clip.safetensors"])
    state = encoder_weights(reference(True).state_dict())
    with pytest.raises(ValueError, match="has 250112 tokens"):
        t5_config(state | {"shared.weight": torch.zeros(250112, WIDTH)})
    with pytest.raises(ValueError, match=r"layer\.1\.DenseReluDense\.wo\.weight is missing"):
        t5_config({name: value for name, value in state.items() if "block.1.layer.1.DenseReluDense.wo" not in name})


def test_a_transformers_folder_gives_features(tmp_path: Path) -> None:
    from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32128, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    words = T5TokenizerFast.from_pretrained(str(TOKENIZER))
    words.save_pretrained(tmp_path)
    clip = open_folder(tmp_path)
    found = llm_features(clip, "a red star", TOKENS)
    ids = words("a red star", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = AutoModel.from_pretrained(tmp_path).eval()(ids, output_hidden_states=True)
    torch.testing.assert_close(found.values[:, : ids.shape[1]], wanted.last_hidden_state, atol=2e-2, rtol=2e-2)
    assert not found.values[:, ids.shape[1] :].any()
    early = llm_features(clip, "a red star", TOKENS, layer=-2).values[:, : ids.shape[1]]
    torch.testing.assert_close(early, wanted.hidden_states[-2], atol=2e-2, rtol=2e-2)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))


# --- pairs of prompts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text() -> comfy.sd.CLIP:
    """A small CLIP text encoder of the demo's layout with random weights."""
    import comfy.supported_models_base
    from atelier_demo.tiny_sd import TinyClipModel, TinySD1Tokenizer

    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(TinySD1Tokenizer, TinyClipModel))
    fill(clip.cond_stage_model, 5)
    return clip


def adapter(llm_width: int = WIDTH, text_width: int = 128) -> LoadedAdapter:
    return hold("small", read_adapter(random_state(AdapterShape(llm_width, text_width))), TOKENS, "")


LONG = "a red star on the left and a blue circle on the right, " * 8


def test_both_prompts_get_one_length(text: comfy.sd.CLIP, encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    positive, negative, features = encode_pair(text, encoder[1], adapter(), (LONG, ""))
    assert positive[0][0].shape == negative[0][0].shape == (1, 2 * 77 + TOKENS, 128)
    stock = text.encode_from_tokens_scheduled(text.tokenize(LONG))[0]
    torch.testing.assert_close(positive[0][0][:, : 2 * 77], stock[0])
    torch.testing.assert_close(positive[0][1]["pooled_output"], stock[1]["pooled_output"])
    assert features[0].lost > 0


def test_fewer_tokens_than_clip_reads_at_once_are_its_first(text: comfy.sd.CLIP) -> None:
    found = llm_features(text, "a red star", TOKENS)
    whole = text.encode_from_tokens(text.tokenize("a red star"), return_dict=True)["cond"]
    torch.testing.assert_close(found.values, whole[:, :TOKENS].float())


def test_strength_0_is_the_stock_encode(text: comfy.sd.CLIP, encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    for prompt in ("", "a (red:1.3) star", LONG):
        positive, negative, features = encode_pair(text, encoder[1], adapter(), (prompt, "bad"), strength=0.0)
        for found, said in ((positive, prompt), (negative, "bad")):
            stock = text.encode_from_tokens_scheduled(text.tokenize(said))
            assert torch.equal(found[0][0], stock[0][0])
            assert torch.equal(found[0][1]["pooled_output"], stock[0][1]["pooled_output"])
        assert features is None


def test_a_prompt_is_encoded_once(text: comfy.sd.CLIP, encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    held = adapter()
    first = encode_pair(text, encoder[1], held, ("a star", ""))
    start = time.perf_counter()
    again = encode_pair(text.clone(), encoder[1].clone(), held, ("a star", ""))
    assert again[0][0][0] is first[0][0][0]
    assert time.perf_counter() - start < 0.1
    other = text.clone()
    other.add_patches({next(iter(text.patcher.model_state_dict())): (torch.ones(1),)})
    assert encode_pair(other, encoder[1], held, ("a star", ""))[0][0][0] is not first[0][0][0]
    assert encode_pair(text, encoder[1], held, ("a star", ""), 0.5)[0][0][0] is not first[0][0][0]
    again[0][0][1]["area"] = (1, 1, 0, 0)
    assert "area" not in encode_pair(text, encoder[1], held, ("a star", ""))[0][0][1]


def test_wrong_widths_are_told(text: comfy.sd.CLIP, encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    with pytest.raises(ValueError, match="language model of width 2048, and the connected one's is 32"):
        encode_pair(text, encoder[1], adapter(llm_width=2048), ("a", ""))
    with pytest.raises(ValueError, match="text encoder of width 768, and the connected one's is 128"):
        encode_pair(text, encoder[1], adapter(text_width=768), ("a", ""))


def conds(tensors: tuple[Tensor, Tensor]) -> list[list[list[Any]]]:
    return [[[tensor, {"pooled_output": normal(1, TEXT_WIDTH, seed=3)}]] for tensor in tensors]


def draw(model: Any, tensors: tuple[Tensor, Tensor]) -> Tensor:
    positive, negative = conds(tensors)
    return sample(model, normal(1, 4, 8, 8, seed=9), positive, negative=negative)


def test_one_call_of_the_model_for_each_step(
    encoder: tuple[T5EncoderModel, comfy.sd.CLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host asks about both prompts at once, which it would not with 77 tokens on one side and 101 on the other."""
    held, model = adapter(text_width=TEXT_WIDTH), sd15()
    texts = [normal(1, 77, TEXT_WIDTH, seed=seed) for seed in (1, 2)]
    features = [llm_features(encoder[1], prompt, TOKENS).values for prompt in ("a red star", "")]
    passes = count_passes(model, monkeypatch)
    draw(model, tuple(held.module(one, llm) for one, llm in zip(texts, features, strict=True)))
    assert passes == [2] * STEPS
    passes.clear()
    draw(model, (held.module(texts[0], features[0]), texts[1]))
    assert passes == [1] * 2 * STEPS


# --- ELLA ------------------------------------------------------------------------------------------------------


def resampler(text_width: int = TEXT_WIDTH) -> LoadedAdapter:
    from atelier.attention.ella import read_ella
    from test_ella import random_state as ella_state

    return hold("ella", read_ella(ella_state(llm=WIDTH, width=text_width)), TOKENS, "")


@pytest.mark.parametrize("scheduler", ["normal", "exponential", "sgm_uniform", "karras"])
def test_ella_gets_the_timestep_that_the_model_gets(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, model = resampler(), sd15()
    seen: dict[str, list[float]] = {"ella": [], "unet": []}
    forward, apply = held.module.forward, model.model.diffusion_model.forward

    def watched(llm: Tensor, timesteps: Tensor) -> Tensor:
        seen["ella"].append(float(timesteps[0]))
        return forward(llm, timesteps)

    def unet(x: Tensor, timesteps: Tensor, **more: Any) -> Tensor:
        assert more["context"].shape[1:] == (5, TEXT_WIDTH)
        seen["unet"].append(float(timesteps[0]))
        return apply(x, timesteps, **more)

    monkeypatch.setattr(held.module, "forward", watched)
    monkeypatch.setattr(model.model.diffusion_model, "forward", unet)
    raw = tuple(normal(1, TOKENS, WIDTH, seed=seed) for seed in (1, 2))
    positive, negative = conds(raw)
    patched = apply_ella(model, held.patcher)
    passes = count_passes(model, monkeypatch)
    sample(patched, normal(1, 4, 8, 8, seed=9), positive, scheduler=scheduler, negative=negative)
    assert passes == [2] * STEPS
    assert seen["ella"][::2] == seen["ella"][1::2] == seen["unet"]


def test_ella_leaves_the_model_and_other_conditionings_alone() -> None:
    held, model = resampler(), sd15()
    own = tuple(normal(1, 8, TEXT_WIDTH, seed=seed) for seed in (1, 2))
    raw = tuple(normal(1, TOKENS, WIDTH, seed=seed) for seed in (1, 2))
    before = draw(model, own)
    patched = apply_ella(model, held.patcher)
    assert torch.equal(draw(patched, own), before)
    first = draw(patched, raw)
    assert torch.equal(draw(patched, raw), first)
    assert not torch.allclose(first, before)
    assert torch.equal(draw(model, own), before)


def test_ella_needs_the_model(text: comfy.sd.CLIP, encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    with pytest.raises(ValueError, match="Connect the model"):
        AtelierCrossAdapterEncode.execute(text, encoder[1], resampler(), "a star", "")
    with pytest.raises(ValueError, match=r"768 is SD1\.5, 2048 is SDXL"):
        AtelierCrossAdapterEncode.execute(text, encoder[1], adapter(text_width=128), "a star", "", model=sdxl())
    with pytest.raises(ValueError, match="holds no text encoder"):
        AtelierCrossAdapterEncode.execute(None, encoder[1], adapter(), "a star", "")


# --- with the pack's other methods --------------------------------------------------------------------------


def fused(encoder: comfy.sd.CLIP) -> tuple[Tensor, Tensor]:
    held = adapter(text_width=TEXT_WIDTH)
    texts = [normal(1, 77, TEXT_WIDTH, seed=seed) for seed in (1, 2)]
    return tuple(
        held.module(one, llm_features(encoder, said, TOKENS).values)
        for one, said in zip(texts, ("a star", ""), strict=True)
    )


def test_feedback_steers_what_an_adapter_encoded(encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    model, tensors = sd15(), fused(encoder[1])
    plain, steered = draw(model, tensors), draw(listen(model, latents(1), latents(1, seed=200)), tensors)
    assert steered.isfinite().all()
    assert not torch.allclose(plain, steered)


def test_areas_take_what_an_adapter_encoded(encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    """A prompt for a part of the picture changes that part most."""
    model, tensors = sd15(), fused(encoder[1])
    positive, negative = conds(tensors)
    part = [[torch.flip(tensors[0], [1]), {**positive[0][1], "area": (8, 4, 0, 0), "strength": 1.0}]]
    x = normal(1, 4, 8, 8, seed=9)
    change = (
        sample(model, x, positive + part, negative=negative) - sample(model, x, positive, negative=negative)
    ).abs()
    assert change[..., :4].mean() > 2 * change[..., 4:].mean() > 0


def test_the_edit_guider_takes_what_an_adapter_encoded(encoder: tuple[T5EncoderModel, comfy.sd.CLIP]) -> None:
    model, tensors = sd15(), fused(encoder[1])
    positive, negative = conds(tensors)
    schedules = (ScaleSchedule(4.0, 0.0, 1.0), ScaleSchedule(1.5, 0.0, 1.0))
    guider = EditGuider(model, EditGuidance(*schedules))
    guider.set_conds(positive, negative, negative)
    x = normal(1, 4, 8, 8, seed=9)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    euler = comfy.samplers.sampler_object("euler")
    found = guider.sample(x, torch.zeros_like(x), euler, sigmas, disable_pbar=True, seed=1)
    wanted = sample(model, x, positive, cfg=4.0, negative=negative)
    torch.testing.assert_close(model.model.process_latent_in(found), wanted, atol=1e-4, rtol=1e-4)
