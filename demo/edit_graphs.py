"""The templates that edit pictures by instruction."""

from __future__ import annotations

from typing import Any

from graph_parts import Graph, node, note

USER_CHECKPOINT, USER_SCORER = "v1-5-pruned-emaonly-fp16.safetensors", "ViT-L-14"
USER_EDITOR, DEMO_EDITOR = "instruct-pix2pix-00-22000.safetensors", "shapeworld-edit.safetensors"

HOW_TO_EDIT = """Choose an InstructPix2Pix checkpoint and a picture, and say what to change, as an order.

- Nothing changes: lower **image_scale** towards 1, or raise **text_scale**.
- Too much changes: raise **image_scale**."""

HOW_TO_MASK = """Right-click the picture, open the mask editor and paint where it may change. Everything else comes back
exact to the pixel.

Without a painted mask nothing changes."""

HOW_TO_COMPARE = """The grid shows one edit at many pairs of scales. Take the pair that you like into the guider, where
you choose noise, sampler and sigmas yourself. For Kontext and Qwen-Image-Edit the guider is the same: load the model
with its own loaders."""


def _edit(place: tuple[int, int], instruction: Any, **more: Any) -> dict[str, Any]:
    return node(
        "AtelierInstructPix2Pix", "Edit", place, model=["checkpoint", 0], clip=["checkpoint", 1],
        vae=["checkpoint", 2], image=["image", 0], instruction=instruction, seed=1, steps=20, text_scale=7.5,
        image_scale=1.5, resolution=512, **more,
    )  # fmt: skip


def _start() -> Graph:
    return {
        "checkpoint": node("CheckpointLoaderSimple", "Edit model", (0, 0), ckpt_name=USER_EDITOR),
        "image": node("LoadImage", "Picture", (0, 180), image="example.png"),
    }


def _restored(x: int) -> Graph:
    """The decoded edit at the input's size."""
    return {
        "decode": node("VAEDecode", "Decode", (x, 0), samples=["edit", 0], vae=["checkpoint", 2]),
        "size": node("GetImageSize", "Size of the picture", (x, 160), image=["image", 0]),
        "restore": node(
            "ImageScale", "At its size", (x, 340), image=["decode", 0], upscale_method="lanczos", width=["size", 0],
            height=["size", 1], crop="disabled",
        ),
    }  # fmt: skip


def _compared(source: str, x: int) -> Graph:
    return {
        "pair": node(
            "ImageStitch", "Before and after", (x, 0), image1=["image", 0], image2=[source, 0], direction="right",
            match_image_size=True, spacing_width=8, spacing_color="white",
        ),
        "save": node("SaveImage", "Pictures", (x + 400, 0), images=["pair", 0], filename_prefix="Atelier_edit"),
    }  # fmt: skip


def _edit_by_instruction() -> Graph:
    graph = _start() | {"edit": _edit((440, 0), "make it night")} | _restored(900) | _compared("restore", 1300)
    return graph | {"note": note(HOW_TO_EDIT, (0, 560))}


def _edit_with_mask() -> Graph:
    graph = _start() | {"edit": _edit((440, 0), "make it night", mask=["image", 1])} | _restored(900)
    graph["keep"] = node(
        "ImageCompositeMasked", "The rest as it was", (1300, 0), destination=["image", 0], source=["restore", 0], x=0,
        y=0, resize_source=False, mask=["image", 1],
    )  # fmt: skip
    return graph | _compared("keep", 1700) | {"note": note(HOW_TO_MASK, (0, 560))}


def _edit_in_steps() -> Graph:
    graph = _start() | {
        "plan": node("AtelierEditPlan", "Plan", (0, 560), wish="make it night, then redraw it in chalk"),
        "report": node("PreviewAny", "The plan", (440, 780), source=["plan", 2]),
        "edit": _edit((440, 0), ["plan", 0], apply="in turn"),
    }
    return graph | _restored(900) | _compared("restore", 1300)


def _guidance_grid() -> Graph:
    common = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "image": ["image", 0]}
    graph = _start() | {
        "grid": node(
            "AtelierGuidanceGrid", "Grid", (440, 0), **common, instruction="make it night", seed=1, steps=20,
            text_scales="2.5, 5, 7.5, 10", image_scales="1, 1.25, 1.5, 2", resolution=512,
        ),
        "sheet": node("PreviewImage", "One edit at many scales", (880, 0), images=["grid", 0]),
        "positive": node("CLIPTextEncode", "Instruction", (440, 620), text="make it night", clip=["checkpoint", 1]),
        "negative": node("CLIPTextEncode", "Empty", (440, 840), text="", clip=["checkpoint", 1]),
        "latent": node("VAEEncode", "Encode", (440, 1060), pixels=["image", 0], vae=["checkpoint", 2]),
        "guider": node(
            "AtelierDualCFGGuider", "Guider", (880, 620), model=["checkpoint", 0], positive=["positive", 0],
            negative=["negative", 0], text_scale=7.5, image_scale=1.5, image=["latent", 0],
        ),
        "noise": node("RandomNoise", "Noise", (880, 1060), noise_seed=1),
        "sampler": node("KSamplerSelect", "Sampler", (1300, 860), sampler_name="euler"),
        "sigmas": node(
            "BasicScheduler", "Sigmas", (1300, 1000), model=["checkpoint", 0], scheduler="normal", steps=20,
            denoise=1.0,
        ),
        "edit": node(
            "SamplerCustomAdvanced", "Sample", (1300, 620), noise=["noise", 0], guider=["guider", 0],
            sampler=["sampler", 0], sigmas=["sigmas", 0], latent_image=["latent", 0],
        ),
        "decode": node("VAEDecode", "Decode", (1700, 620), samples=["edit", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", "Picture", (1700, 780), images=["decode", 0], filename_prefix="Atelier_edit"),
    }  # fmt: skip
    return graph | {"note": note(HOW_TO_COMPARE, (0, 560))}


HOW_TO_TRAIN = """From a text-to-image checkpoint to one that edits. Write captions, one for each line.

1. **Make data** invents edits, draws each pair of pictures by Prompt-to-Prompt and keeps those that the scorer finds
good. It goes on where it was cut off. For a real training make thousands of pairs, best with an LLM linked.
2. **Train** widens the model and trains it on the pairs. It goes on too; queue it again with the same settings.

The trained checkpoint is in the output folder. Put it into `models/checkpoints` to use it."""


def _train_editor() -> Graph:
    parts = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2]}
    return {
        "checkpoint": node("CheckpointLoaderSimple", "Checkpoint", (0, 0), ckpt_name=USER_CHECKPOINT),
        "scorer": node(
            "AtelierLoadScorer", "Scorer", (0, 180), scorer="relevance to the prompt", clip_model=USER_SCORER,
            aesthetic_head="none",
        ),
        "data": node(
            "AtelierMakeEditDataset", "Make data", (440, 0), **parts, scorer=["scorer", 0],
            captions="a red circle, on a white background\na blue star, on a sand background", samples_per_edit=8,
            keep=4, steps=20, cfg=7.5, size=512, seed=1, name="edits",
        ),
        "report": node("PreviewAny", "What was made", (440, 620), source=["data", 2]),
        "pairs": node("SaveImage", "Pairs", (880, 620), images=["data", 1], filename_prefix="Atelier_pairs"),
        "train": node(
            "AtelierTrainInstructPix2Pix", "Train", (880, 0), **parts, dataset=["data", 0], name="my_edit_model",
            steps=2000, batch_size=4, accumulate=4, learning_rate=5e-5, seed=1,
        ),
        "curve": node("SaveImage", "Curve", (1340, 0), images=["train", 2], filename_prefix="Atelier_curve"),
        "note": note(HOW_TO_TRAIN, (0, 420)),
    }  # fmt: skip


EDIT_TEMPLATES = {
    "edit_by_instruction": _edit_by_instruction,
    "edit_with_mask": _edit_with_mask,
    "edit_in_steps": _edit_in_steps,
    "guidance_grid": _guidance_grid,
    "train_editor": _train_editor,
}
