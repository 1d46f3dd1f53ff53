"""Fine-tuning a loaded model of the host on a data set of edits, with the host's own encoders and memory management."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attention.fabric import model_conds
from ..attention.patches import check_fit, encode_text, join_texts
from .curve import draw_progress, read_log
from .denoising import Sampling
from .edit_shards import EditSample
from .host_unet import EditUnet, edit_unet
from .instruct_pix2pix import EditLatents, Encode, edit_loss
from .loop import EachStep, Plan, Progress, train
from .sample_edit import sample_edit

ENCODED_AT_ONCE = 8
"""Pictures that the VAE gets together."""

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
"""What autocast computes in, by name. The weights that are trained are float32 always."""

PREVIEWS, FEWEST_BETWEEN = 20, 100
"""How often a picture is edited to look at in a whole training, and how many steps lie between two at the least."""


@dataclass(frozen=True)
class EditRun:
    """A data set and how to train on it. `batch` pictures are in one batch; `precision` is a name of PRECISIONS."""

    samples: Iterable[EditSample]
    plan: Plan
    batch: int
    precision: str
    folder: Path

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError("A batch needs 1 picture or more.")


@dataclass(frozen=True)
class Watch:
    """Who looks on: at what is done at the moment in words, at each step, and at a picture now and then.

    What any of these raises stops the training without loss.
    """

    say: Callable[[str], None] = lambda text: None
    each_step: EachStep = lambda step, loss: None
    show: Callable[[Image.Image], None] = lambda picture: None


@dataclass(frozen=True, eq=False)
class EncodedEdits:
    """A data set in memory: fp16 latents on the CPU, the first sample, and a digest of pictures and instructions."""

    latents: EditLatents
    first: EditSample
    digest: str


def auto_precision(device: torch.device) -> str:
    """The fastest precision that the device is made for."""
    if comfy.model_management.should_use_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" and comfy.model_management.should_use_fp16(device) else "fp32"


def train_edits(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE, run: EditRun, watch: Watch
) -> tuple[EditUnet, dict[str, Tensor]]:
    """The edit model and the weights that it has after training, averaged, on the CPU, by name.

    A training of this folder that was cut off goes on. Call it outside inference mode.

    Raises:
        ValueError: Model, encoders or data cannot be used, the folder holds another training, or it came to nothing.
        OSError: There is no room for the state. That of the last save stays.
    """
    edit = edit_unet(model)
    with torch.no_grad():
        check_fit(model, None, [vae.encode(torch.full((1, 64, 64, 3), 0.5))[0]], encode_text(clip, "")["cond"])
        edits = encode_pictures(edit, vae, run.samples, watch)
        encode = encode_instructions(edit, clip, edits.latents, watch)
    about = {"model": edit.start, "data": edits.digest, "batch": run.batch, "precision": run.precision}
    device = comfy.model_management.get_torch_device()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    unet = edit.base.diffusion_model.to(device).train().requires_grad_(True)
    sampling, precision = edit.sampling(device), PRECISIONS[run.precision]
    scaler = torch.amp.GradScaler(device.type) if precision == torch.float16 else None
    show = _preview(edit, vae, edits, sampling, encode, run, watch)

    def loss_at(rng: np.random.Generator) -> dict[str, Tensor]:
        return edit_loss(unet, sampling, edits.latents, encode, rng, run.batch, precision)

    try:
        with torch.enable_grad():
            weights = train(
                unet, loss_at, run.plan, run.folder, json.dumps(about, sort_keys=True), show, watch.each_step, scaler
            )
        return edit, {name: weight.cpu() for name, weight in weights.items()}
    finally:
        unet.requires_grad_(False).eval().to("cpu")
        comfy.model_management.soft_empty_cache()


def _preview(
    edit: EditUnet,
    vae: comfy.sd.VAE,
    edits: EncodedEdits,
    sampling: Sampling,
    encode: Encode,
    run: EditRun,
    watch: Watch,
) -> Progress:
    """Shows the curve now and then, and what the model as it is now makes of the first edit of the data set."""
    rows, first = read_log(run.folder), edits.first
    every = max(FEWEST_BETWEEN, run.plan.steps // PREVIEWS)

    def show(step: int, row: Mapping[str, float]) -> None:
        rows.append(row)
        if step % every and step != run.plan.steps:
            return
        with torch.no_grad():
            latent = sample_edit(
                edit.base.diffusion_model, sampling, edits.latents.before[:1], first.instruction, encode
            )
            drawn = vae.decode(edit.base.process_latent_out(latent.cpu()))[0]
        pictures = {"before": first.before, "the model now": to_uint8(drawn), "to learn": first.after}
        watch.show(draw_progress(first.instruction, pictures, rows))

    return show


def encode_pictures(
    edit: EditUnet, vae: comfy.sd.VAE, samples: Iterable[EditSample], watch: Watch = Watch()
) -> EncodedEdits:
    """The samples as the model sees them.

    Raises:
        ValueError: There is no sample, their sizes differ, or the VAE makes NaN of one.
    """
    before, after, said, found, first = [], [], [], hashlib.blake2b(digest_size=16), None
    for part in _parts(_checked(samples, vae.spacial_compression_encode())):
        first = first or part[0]
        for sample in part:
            found.update(sample.before.tobytes() + sample.after.tobytes() + sample.instruction.encode() + b"\0")
        before.append(edit.base.process_ip2p_image_in(_encoded(vae, part, "before")).half())
        after.append(edit.base.process_latent_in(_encoded(vae, part, "after")).half())
        said.extend(sample.instruction for sample in part)
        watch.say(f"{len(said)} edits encoded")
    if first is None:
        raise ValueError("The data set holds no edit. Make one with Make Edit Dataset.")
    return EncodedEdits(EditLatents(torch.cat(before), torch.cat(after), said), first, found.hexdigest())


def _checked(samples: Iterable[EditSample], step: int) -> Iterator[EditSample]:
    """The samples, whose pictures must all have the first one's size."""
    size = None
    for sample in samples:
        size = size or sample.before.shape
        if sample.before.shape != size or sample.after.shape != size:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (sample.before.shape, sample.after.shape, size)]
            raise ValueError(
                f"Edit {sample.key} has pictures of {sizes[0]} and {sizes[1]}, and the first edit has {sizes[2]}. All "
                "pictures of a data set must have one size. Make it again with one size."
            )
        if min(size[:2]) < step:
            raise ValueError(f"The pictures of the data set are below {step}x{step}, the smallest that the VAE reads.")
        yield sample


def _parts(samples: Iterator[EditSample]) -> Iterator[list[EditSample]]:
    while part := list(itertools.islice(samples, ENCODED_AT_ONCE)):
        yield part


def _encoded(vae: comfy.sd.VAE, part: Sequence[EditSample], which: str) -> Tensor:
    """Latents [N, channels, H, W] of the pictures `which`, before or after, as the VAE gives them."""
    pixels = torch.stack([torch.from_numpy(getattr(sample, which)).float() / 255 for sample in part])
    latents = vae.encode(pixels).float().cpu()
    for sample, latent in zip(part, latents, strict=True):
        if not latent.half().isfinite().all():
            raise ValueError(
                f"The VAE turned the picture {which} of edit {sample.key} into NaN. Start the host with --fp32-vae or "
                "use another VAE."
            )
    return latents


def encode_instructions(edit: EditUnet, clip: comfy.sd.CLIP, data: EditLatents, watch: Watch = Watch()) -> Encode:
    """What the UNet is told by each instruction and by none, as the host makes it; kept in fp16 on the CPU."""
    blank = torch.zeros_like(data.after[:1], dtype=torch.float32)
    known: dict[str, dict[str, Tensor]] = {}
    for number, text in enumerate(dict.fromkeys(["", *data.instructions])):
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = model_conds(edit.base, encode_text(clip, text), blank)
        known[text] = {name: conds[name].half().cpu() for name in ("c_crossattn", "y") if name in conds}
        if number % 20 == 0:
            watch.say(f"{number} instructions encoded")
    device = comfy.model_management.get_torch_device()

    def encode(texts: Sequence[str]) -> dict[str, Any]:
        told = [known[text] for text in texts]
        made: dict[str, Any] = {"context": join_texts([one["c_crossattn"] for one in told]).to(device).float()}
        if "y" in told[0]:
            made["y"] = torch.cat([one["y"] for one in told]).to(device).float()
        return {**made, "transformer_options": {"optimized_attention_override": _plain_attention}}

    return encode


def _plain_attention(_: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """The attention of torch, which has a gradient; those that a host may be started with need not have one."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def to_uint8(picture: Tensor) -> np.ndarray:
    """A picture [H, W, 3] of 0 to 1 as bytes."""
    return (picture.float().cpu().clamp(0, 1) * 255).round().byte().numpy()
