"""Training a Cross-Adapter on a loaded model of the host, with the host's encoders and memory management."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import numpy as np
import torch
from torch import Tensor, nn

from ..attention.cross_adapter import AdapterShape, CrossAdapter
from ..attention.fabric import model_conds
from ..attention.folder_encoder import NAME as FOLDER_LLM
from ..attention.llm_features import even_tokens, llm_features, plain_text
from ..attention.patches import check_fit, encode_text, is_picture_unet
from .captions import Captioned
from .cross_adapter import CaptionedLatents, Pairs, adapter_loss, attention_weights, weighted
from .curve import draw_sheet, read_log
from .entities import Span, entity_pairs
from .host_edit import ENCODED_AT_ONCE, PRECISIONS, Watch, to_uint8
from .host_unet import baked_weights, digest, host_model, training_levels
from .loop import Plan, Progress, train
from .low_rank import add_low_rank, start_low_rank
from .sample_text import sample_text

PREVIEWS, FEWEST_BETWEEN = 10, 100
"""How often pictures are drawn to look at in a whole training, and how many steps lie between two at the least."""
SHOWN = 4
"""Captions whose pictures are drawn."""


@dataclass(frozen=True)
class AdapterRun:
    """What to train on and how.

    tokens, prefix: how the language model reads a caption, which the adapter's file will say.
    rank: of the low-rank weights with which the UNet follows; 0 freezes it.
    entity_weight: of the entity-guided loss.
    keep_words: captions of up to so many words are learnt from the model as it was, not from their pictures.
    use_adapter: without it, the low-rank weights are trained alone, to compare with.
    start: an adapter to go on from.
    start_lora: low-rank weights to go on from, as the tensors of a LoRA file.
    """

    samples: Iterable[Captioned]
    plan: Plan
    batch: int
    precision: str
    folder: Path
    tokens: int
    prefix: str
    heads: int = 8
    rank: int = 16
    entity_weight: float = 0.0
    keep_words: int = 0
    use_adapter: bool = True
    start: CrossAdapter | None = None
    start_lora: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.tokens < 1:
            raise ValueError("A batch needs 1 picture or more, and a caption 1 token or more.")
        if not self.use_adapter and not self.rank:
            raise ValueError("With neither an adapter nor low-rank weights there is nothing to train.")
        if self.start_lora is not None and not self.rank:
            raise ValueError("Going on from a LoRA needs a rank: set it to that of the LoRA, or higher.")


def train_adapter(
    model: comfy.model_patcher.ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    llm: comfy.sd.CLIP,
    run: AdapterRun,
    watch: Watch,
) -> tuple[CrossAdapter | None, dict[str, Tensor]]:
    """The adapter and all trained weights, averaged, on the CPU: `adapter.*` and the UNet's low-rank ones as `unet.*`.

    A training of this folder that was cut off goes on. Call it outside inference mode.

    Raises:
        ValueError: Model, encoders or data cannot be used, the folder holds another training, or it came to nothing.
        OSError: There is no room for the state. That of the last save stays.
    """
    if not is_picture_unet(model):
        raise ValueError(
            "A Cross-Adapter is trained on a Stable Diffusion 1.5 or XL model; the connected model is "
            f"{type(model.model).__name__}."
        )
    base = host_model(weights := baked_weights(model), {})
    if base is None:
        raise ValueError("The host does not know the connected model's layout. Connect an SD1.5 or SDXL checkpoint.")
    with torch.no_grad():
        check_fit(model, None, [vae.encode(torch.full((1, 64, 64, 3), 0.5))[0]], encode_text(clip, "")["cond"])
        data, captions, found = encode_captions(base, clip, vae, llm, run, watch)
    shape = AdapterShape(data.llm.shape[-1], data.text.shape[-1], run.heads)
    about = {
        "model": digest(weights.values()), "data": found, "batch": run.batch, "precision": run.precision,
        "rank": run.rank, "entities": run.entity_weight, "adapter": str(shape) if run.use_adapter else "",
        "start": "" if run.start is None else digest(run.start.state_dict().values()),
    }  # fmt: skip
    if run.keep_words:
        about["keep_words"] = run.keep_words
    if run.start_lora is not None:
        about["start_lora"] = digest(run.start_lora.values())
    device = comfy.model_management.get_torch_device()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    torch.manual_seed(run.plan.seed)
    adapter = _new_adapter(shape, run)
    unet = base.diffusion_model.to(device).eval().requires_grad_(False)
    if run.rank:
        add_low_rank(unet, run.rank)
    if run.start_lora is not None:
        start_low_rank(unet, run.start_lora)
    parts = nn.ModuleDict({"unet": unet} | ({"adapter": adapter.to(device)} if adapter is not None else {}))
    sampling = training_levels(model.get_model_object("model_sampling"), device)
    precision = PRECISIONS[run.precision]
    scaler = torch.amp.GradScaler(device.type) if precision == torch.float16 else None
    show = _preview(parts, base, vae, data, captions, sampling, run, watch)

    def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
        return adapter_loss(
            unet, adapter, sampling, data, rng, run.batch, plain_attention, precision, run.entity_weight
        )

    try:
        with torch.enable_grad():
            trained = train(
                parts, loss_at, run.plan, run.folder, json.dumps(about, sort_keys=True), show, watch.each_step, scaler
            )
        return adapter, {name: weight.cpu() for name, weight in trained.items()}
    finally:
        parts.requires_grad_(False).to("cpu")
        comfy.model_management.soft_empty_cache()


def _new_adapter(shape: AdapterShape, run: AdapterRun) -> CrossAdapter | None:
    """The adapter to train, a new one or a copy of the one to go on from; None for a training without."""
    if not run.use_adapter:
        return None
    adapter = CrossAdapter(shape)
    if run.start is None:
        return adapter
    if run.start.shape != shape:
        raise ValueError(f"The adapter to go on from is {run.start.shape}, and this training needs {shape}.")
    adapter.load_state_dict(run.start.state_dict())
    return adapter


def encode_captions(
    base: Any, clip: comfy.sd.CLIP, vae: comfy.sd.VAE, llm: comfy.sd.CLIP, run: AdapterRun, watch: Watch
) -> tuple[CaptionedLatents, list[str], str]:
    """The samples as the model sees them, in fp16 on the CPU; their captions; and a digest of both.

    The host reads a long caption in parts of 77 tokens. All captions get as many parts as the longest, with empty ones
    behind, and `lengths` says how far each goes by itself. A dropped caption is as long as it was: when pictures are
    drawn, a negative prompt is as long as the positive one.

    Raises:
        ValueError: There is no sample, their sizes differ, or no caption is longer than `keep_words`.
    """
    latents, captions, found = [], [], hashlib.blake2b(digest_size=16)
    part: list[Captioned] = []

    def encode() -> None:
        pixels = torch.stack([torch.from_numpy(sample.picture).float() / 255 for sample in part])
        latents.append(base.process_latent_in(vae.encode(pixels).float().cpu()).half())
        watch.say(f"{len(captions)} pictures encoded")
        part.clear()

    for sample in run.samples:
        if part and sample.picture.shape != part[0].picture.shape:
            raise ValueError(f"The picture {sample.key} has another size than the others. Set one resolution for all.")
        found.update(sample.picture.tobytes() + sample.caption.encode() + b"\0")
        part.append(sample)
        captions.append(sample.caption)
        if len(part) == ENCODED_AT_ONCE:
            encode()
    if part:
        encode()
    kept = [len(caption.split()) <= run.keep_words for caption in captions]
    if all(kept):
        raise ValueError(
            f"None of the {len(captions)} captions has more than {run.keep_words} words, so nothing would be learnt "
            "from the pictures. Set keep_words lower; 0 learns from all."
        )
    text, llm_values, vectors = [], [], []
    parts = [max(len(one) for one in clip.tokenize(caption).values()) for caption in captions]
    blank = torch.zeros_like(latents[0][:1], dtype=torch.float32)
    for number, (caption, tokens) in enumerate(zip([*captions, ""], even_tokens(clip, (*captions, "")), strict=True)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = model_conds(base, clip.encode_from_tokens(tokens, return_dict=True), blank)
        text.append(conds["c_crossattn"].half().cpu())
        if "y" in conds:
            vectors.append(conds["y"].half().cpu())
        llm_values.append(llm_features(llm, caption, run.tokens, run.prefix).values.half().cpu())
        if number % 50 == 0:
            watch.say(f"{number} captions encoded")
    pairs = [caption_pairs(llm, caption, run) for caption in captions] if run.entity_weight else ()
    lengths = [text[0].shape[1] // max(parts) * count for count in parts]
    encoded = CaptionedLatents(
        torch.cat(latents), torch.cat(text), torch.cat(llm_values), torch.cat(vectors) if vectors else None, pairs,
        lengths, kept,
    )  # fmt: skip
    return encoded, captions, found.hexdigest()


def caption_pairs(llm: comfy.sd.CLIP, caption: str, run: AdapterRun) -> Pairs:
    """The tokens of each entity and of its attribute, as the language model counts them.

    None for encoders that put a prompt into a template, whose features begin somewhere in it.
    """
    text = run.prefix + plain_text(caption)
    if not any(name in tokenizer for tokenizer in llm.tokenize("") for name in ("t5", FOLDER_LLM)):
        return ()

    def count(end: int) -> int:
        # Without the end of the text, which every text has.
        return len(next(iter(llm.tokenize(text[:end].rstrip(), disable_weights=True).values()))[0]) - 1

    def tokens(span: Span) -> list[int]:
        return [token for token in range(count(span.start), count(span.end)) if token < run.tokens]

    found = [(tokens(entity), tokens(attribute)) for entity, attribute in entity_pairs(text)]
    return [(entity, attribute) for entity, attribute in found if entity and attribute]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    """Attention that has a gradient, which those that a host may be started with need not have.

    On a CPU it is two matrix products: the backward pass of torch's fused one takes far longer there.
    """
    if q.device.type != "cpu":
        return comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads, *args, **kwargs)
    return weighted(attention_weights(q, k, heads), v)


def _preview(
    parts: nn.ModuleDict,
    base: Any,
    vae: comfy.sd.VAE,
    data: CaptionedLatents,
    captions: Sequence[str],
    sampling: Any,
    run: AdapterRun,
    watch: Watch,
) -> Progress:
    """Shows the curve now and then, and pictures that the model as it is now draws of the first captions."""
    rows = read_log(run.folder)
    every = max(FEWEST_BETWEEN, run.plan.steps // PREVIEWS)
    count = min(SHOWN, len(captions))

    def show(step: int, row: Mapping[str, float]) -> None:
        rows.append(row)
        if step % every and step != run.plan.steps:
            return
        with torch.no_grad():
            latents = sample_text(parts, sampling, data, list(range(count)), plain_attention)
            drawn = [to_uint8(picture) for picture in vae.decode(base.process_latent_out(latents.cpu()))]
        watch.show(draw_sheet(dict(zip(captions[:count], drawn, strict=True)), rows))

    return show
