"""The templates that read prompts through a language model."""

from __future__ import annotations

from typing import Any

from edit_graphs import USER_CHECKPOINT
from graph_parts import Graph, node, note

USER_LLM, USER_ADAPTER = "flan-t5-xl.safetensors", "my_adapter.safetensors"
"""The adapter's LoRA has its name."""

PROMPT = """The picture shows three shapes on a sand background. There is a red star in the top left. It is medium. Its
surface is plain. Another one is a blue circle on the right. It looks plain. It is medium. One of them is a heart at the
bottom. It lies below the red star. Its colour is green. It is medium. It looks plain."""

HOW_TO_USE = """For long prompts with many things. You need an adapter and the language model it was trained with.

- **Language model**: flan-t5-xl, RankGen or another T5 as one file in `models/text_encoders`.
- **Adapter**: a file in `models/cross_adapters`, LLM4GEN's `projector.pth` or one of Train Cross-Adapter.
- **LoRA**: what was trained along with the adapter. For LLM4GEN's own weights take it out, and load its UNet with the
stock Load Diffusion Model.

Strength 0 is the text encoder alone."""

HOW_TO_TRAIN = """From captioned pictures to an adapter. Put pictures with a text file beside each into a folder, and
write its path into **dataset**; `captions` is one in the output folder. Dense captions teach most.

A training that is cut off goes on when you queue it again. For a real one take thousands of pictures and steps."""


def _models() -> Graph:
    return {
        "checkpoint": node("CheckpointLoaderSimple", "Checkpoint", (0, 0), ckpt_name=USER_CHECKPOINT),
        "llm": node("AtelierLoadLLMEncoder", "Language model", (0, 180), encoder=USER_LLM),
    }


def _dense_prompt() -> Graph:
    parts: dict[str, Any] = {"clip": ["checkpoint", 1], "llm": ["llm", 0], "adapter": ["adapter", 0]}
    return _models() | {
        "adapter": node("AtelierLoadCrossAdapter", "Adapter", (0, 320), adapter=USER_ADAPTER),
        "lora": node(
            "LoraLoaderModelOnly", "LoRA", (0, 460), model=["checkpoint", 0], lora_name=USER_ADAPTER,
            strength_model=1.0,
        ),
        "encode": node(
            "AtelierCrossAdapterEncode", "Prompts", (440, 0), **parts, positive=PROMPT.replace("\n", " "), negative="",
            model=["lora", 0], strength=1.0,
        ),
        "size": node("EmptyLatentImage", "Size", (440, 460), width=512, height=512, batch_size=4),
        "report": node("PreviewAny", "What was read", (440, 660), source=["encode", 3]),
        "sample": node(
            "KSampler", "Sample", (880, 0), model=["encode", 2], positive=["encode", 0], negative=["encode", 1],
            latent_image=["size", 0], seed=1, steps=20, cfg=7.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", "Decode", (1280, 0), samples=["sample", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", "Pictures", (1280, 160), images=["decode", 0], filename_prefix="Atelier_dense"),
        "note": note(HOW_TO_USE, (0, 640)),
    }  # fmt: skip


def _train_adapter() -> Graph:
    return _models() | {
        "train": node(
            "AtelierTrainCrossAdapter", "Train", (440, 0), model=["checkpoint", 0], clip=["checkpoint", 1],
            vae=["checkpoint", 2], llm=["llm", 0], dataset="captions", name="my_adapter", steps=2000, batch_size=4,
            learning_rate=1e-4, seed=1, resolution=512, rank=16,
        ),
        "curve": node("SaveImage", "Curve", (900, 0), images=["train", 4], filename_prefix="Atelier_curve"),
        "note": note(HOW_TO_TRAIN, (0, 360)),
    }  # fmt: skip


ADAPTER_TEMPLATES = {"dense_prompt": _dense_prompt, "train_adapter": _train_adapter}
