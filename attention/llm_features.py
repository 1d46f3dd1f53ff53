"""Features of a language model for a prompt, and the conditioning that an adapter makes of them, under the host.

Any text encoder that the host has loaded can give features: its CLIP object is asked for the hidden states.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import torch
from torch import Tensor

from .cross_adapter import CrossAdapter
from .ella import TimeResampler

RELEASED_TOKENS, RELEASED_PREFIX = 256, "pre "
"""How the released Cross-Adapter reads: RankGen's prefix for what is to be continued, padded to this many tokens."""

ELLA_TOKENS = 128
"""ELLA's released weights were trained with texts padded to this many tokens."""

KEPT = 16
"""Encoded pairs of prompts that an adapter keeps, of about 2 MB each for SD1.5."""

CLIP_PART = 77
"""Tokens of a part of text as the host gives it to CLIP's encoders, which take no others."""

Conditioning = list[list[Any]]


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter under the host's memory management, and how it wants to be given features.

    tokens: how many tokens of the language model it gets; fewer are padded, more are cut off.
    prefix: what stands before each prompt for the language model.
    """

    name: str
    module: CrossAdapter | TimeResampler
    patcher: comfy.model_patcher.ModelPatcher
    tokens: int
    prefix: str
    kept: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict, repr=False)


@dataclass(frozen=True)
class Read:
    """How much of a prompt a language model read: tokens used of those that there are, and tokens that were lost."""

    used: int
    tokens: int
    lost: int


@dataclass(frozen=True)
class Features:
    """Features of a prompt [1, tokens, width], float32, and how much of it they are of."""

    values: Tensor
    read: Read


def hold(name: str, module: CrossAdapter | TimeResampler, tokens: int, prefix: str) -> LoadedAdapter:
    """Give the host an adapter to load and unload."""
    memory = comfy.model_management
    patcher = comfy.model_patcher.ModelPatcher(
        module, load_device=memory.text_encoder_device(), offload_device=memory.text_encoder_offload_device()
    )
    return LoadedAdapter(name, module, patcher, tokens, prefix)


def plain_text(prompt: str) -> str:
    """The prompt as a language model is to read it: without weights, escapes and embeddings."""
    escaped = comfy.sd1_clip.escape_important(prompt)
    text = "".join(part for part, _ in comfy.sd1_clip.token_weights(escaped, 1.0))
    return re.sub(r"\bembedding:\S+", "", comfy.sd1_clip.unescape_important(text)).strip()


def llm_features(llm: comfy.sd.CLIP, prompt: str, tokens: int, prefix: str = "", layer: int = 0) -> Features:
    """What the language model makes of a prompt: hidden states of `tokens` tokens, whatever its length.

    A longer prompt is cut off. A shorter one is padded as T5's texts are, by its padding token, whose outputs stay;
    behind other encoders the missing tokens are zero.

    Args:
        layer: whose output to take, counted from the end as in the host's clip_layer; 0 is the encoder's own choice.

    Raises:
        ValueError: The encoder has no such layer, or gives no features of tokens.
    """
    llm = llm.clone()
    if layer:
        _check_layer(llm, layer)
        llm.clip_layer(layer)
    said = llm.tokenize(prefix + plain_text(prompt), disable_weights=True)
    used = sum(len(part) for part in next(iter(said.values())))
    said = {name: _fit(name, parts, tokens) for name, parts in said.items()}
    found = llm.encode_from_tokens(said, return_dict=True)["cond"]
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise ValueError("The language model's encoder gives no features of single tokens. Connect another one.")
    values = found[:1, :tokens].float()
    missing = tokens - values.shape[1]
    values = torch.nn.functional.pad(values, (0, 0, 0, max(0, missing)))
    return Features(values, Read(min(used, tokens), tokens, max(0, used - tokens)))


def _check_layer(llm: comfy.sd.CLIP, layer: int) -> None:
    layers = max((getattr(part, "num_layers", 0) or 0 for part in llm.cond_stage_model.modules()), default=0)
    if abs(layer) > layers:
        raise ValueError(f"The language model has {layers} layers, and layer is {layer}. Use one from -{layers} to -1.")


def _fit(name: str, parts: list[list[Any]], tokens: int) -> list[list[Any]]:
    """The tokens of one tokenizer: one part is cut to `tokens`, and padded to them if it is one of T5's."""
    if len(parts) != 1:
        return parts
    if "t5" in name:
        return [parts[0][:tokens] + [(0, 1.0)] * (tokens - len(parts[0]))]
    return [parts[0][: max(tokens, CLIP_PART)]]


def encode_pair(
    clip: comfy.sd.CLIP,
    llm: comfy.sd.CLIP,
    adapter: LoadedAdapter,
    prompts: tuple[str, str],
    strength: float = 1.0,
    layer: int = 0,
) -> tuple[Conditioning, Conditioning, tuple[Read, Read] | None]:
    """The conditionings of a positive and a negative prompt, of equal lengths, so that both are asked about at once.

    At strength 0 they are those of the text encoder alone, bit for bit, and nothing is read.

    Raises:
        ValueError: An encoder has another width than the adapter was made for, or no such layer.
    """
    if strength == 0.0:
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts)
        return positive, negative, None
    key = None
    if clip.patcher.forced_hooks is None and llm.patcher.forced_hooks is None:
        key = (*_state(clip), *_state(llm), *prompts, strength, layer)
    if key in adapter.kept:
        adapter.kept.move_to_end(key)
        return _copied(adapter.kept[key])
    features = tuple(llm_features(llm, prompt, adapter.tokens, adapter.prefix, layer) for prompt in prompts)
    if isinstance(adapter.module, TimeResampler):
        check_width(adapter, features[0].values)
        positive, negative = ([[feature.values, {}]] for feature in features)
    else:
        positive, negative = _fused(clip, adapter, prompts, features, strength)
    found = positive, negative, (features[0].read, features[1].read)
    if key is not None:
        adapter.kept[key] = found
        while len(adapter.kept) > KEPT:
            adapter.kept.popitem(last=False)
    return _copied(found)


def _copied(found: tuple[Conditioning, Conditioning, Any]) -> tuple[Conditioning, Conditioning, Any]:
    """The same tensors in lists and dicts of their own, so that what is kept stays as it is."""
    positive, negative = ([[cond, dict(about)] for cond, about in conditioning] for conditioning in found[:2])
    return positive, negative, found[2]


def _state(clip: comfy.sd.CLIP) -> tuple[Hashable, ...]:
    """What says that a text encoder would answer as before."""
    return clip.patcher.patches_uuid, clip.layer_idx, str(clip.tokenizer_options)


def check_width(adapter: LoadedAdapter, values: Tensor) -> None:
    """Raise ValueError unless the features have the width that the adapter takes."""
    wanted = adapter.module.llm_width
    if values.shape[-1] != wanted:
        raise ValueError(
            f"{adapter.name} is made for a language model of width {wanted}, and the connected one's is "
            f"{values.shape[-1]}. Connect the one that it was trained with."
        )


def check_model(model: comfy.model_patcher.ModelPatcher, adapter: LoadedAdapter) -> None:
    """Raise ValueError unless the model's cross-attention takes tokens of the adapter's width."""
    made_for = adapter.module.text_width
    width = model.model.model_config.unet_config.get("context_dim")
    if width != made_for:
        raise ValueError(
            f"{adapter.name} is made for models whose text is {made_for} wide, and that of the connected "
            f"{type(model.model).__name__} is {width or 'of another kind'}. 768 is SD1.5, 2048 is SDXL."
        )


def _fused(
    clip: comfy.sd.CLIP,
    adapter: LoadedAdapter,
    prompts: tuple[str, str],
    features: tuple[Features, ...],
    strength: float,
) -> list[Conditioning]:
    """The text encoder's conditionings with the adapter's tokens behind theirs."""
    check_width(adapter, features[0].values)
    made = []
    for tokens, feature in zip(even_tokens(clip, prompts), features, strict=True):
        conditioning = clip.encode_from_tokens_scheduled(tokens)
        width = conditioning[0][0].shape[-1]
        if width != adapter.module.shape.text_width:
            raise ValueError(
                f"{adapter.name} is made for a text encoder of width {adapter.module.shape.text_width}, and the "
                f"connected one's is {width}. 768 is SD1.5, 2048 is SDXL. Take the adapter of this model's family."
            )
        made.append([[_run(adapter, cond, feature.values, strength), about] for cond, about in conditioning])
    return made


def _run(adapter: LoadedAdapter, text: Tensor, llm: Tensor, strength: float) -> Tensor:
    comfy.model_management.load_models_gpu([adapter.patcher], force_full_load=True)
    device = adapter.patcher.load_device
    with torch.inference_mode():
        fused = adapter.module(text.float().to(device), llm.to(device).expand(len(text), -1, -1), strength)
    return fused.to(text.device, text.dtype)


def even_tokens(clip: comfy.sd.CLIP, prompts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The tokens of each prompt, with empty parts behind the shorter ones, so that all encode to one length.

    The host reads a long prompt in parts of CLIP_PART tokens.
    """
    said = [clip.tokenize(prompt) for prompt in prompts]
    empty = clip.tokenize("")
    longest = {name: max(len(one[name]) for one in said) for name in empty}
    return [
        {name: parts + [empty[name][0]] * (longest[name] - len(parts)) for name, parts in one.items()} for one in said
    ]
