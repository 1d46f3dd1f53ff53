"""The templates that write prompts as an image model likes them."""

from __future__ import annotations

from typing import Any

from edit_graphs import USER_CHECKPOINT, USER_SCORER
from graph_parts import Graph, node, note

USER_POLICY, USER_HEAD = "promptist", "sac+logos+ava1-l14-linearMSE.pth"
PROMPT = "a red heart"
TRAINED_ON = """a red star, oil painting, highly detailed
a blue circle, digital art, sharp focus
a green square, watercolor, soft light
a yellow triangle, oil painting, sharp focus"""

HOW_TO_OPTIMIZE = """One prompt, drawn twice with the same noise: as you typed it, and as Prompt Optimizer writes it.

- **Policy**: the folder of Promptist in `models/prompt_optimizers`, or one of Train Prompt Optimizer.
- **Aesthetic** and **Fits the prompt**: a CLIP ViT-L/14 in `models/clip_scorers`, and the public head in
`models/aesthetic_heads`. They decide among the candidates by small pictures.

Unlink scorer and relevance to take the policy's own first candidate, at once. Your thumbs can decide too: put Load
Taste in the place of Aesthetic."""

HOW_TO_TRAIN = """Teaches a policy what scores high, with your own model. Write good prompts into **prompts**, one on
each line, or the path of a text file or of a folder of your best pictures; empty takes the prompts that you liked.

To learn your taste, put Load Taste in the place of Aesthetic. The policy is kept under its name for Load Prompt Policy.
A training that is cut off goes on when you queue it again. For a real one take hundreds of prompts and steps."""


def _scorers(place: tuple[int, int]) -> Graph:
    x, y = place
    model = {"clip_model": USER_SCORER}
    return {
        "aesthetic": node(
            "AtelierLoadScorer", "Aesthetic", (x, y), scorer="aesthetic", **model, aesthetic_head=USER_HEAD
        ),
        "fits": node(
            "AtelierLoadScorer", "Fits the prompt", (x, y + 240), scorer="relevance, as Promptist rewards it", **model,
            aesthetic_head="none",
        ),
    }  # fmt: skip


def _drawing() -> dict[str, Any]:
    return {
        "model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "scorer": ["aesthetic", 0],
        "relevance": ["fits", 0],
    }  # fmt: skip


def _drawn(text: list[Any], title: str, place: tuple[int, int]) -> Graph:
    """A picture of a prompt."""
    (x, y), name = place, title.split()[0].lower()
    return {
        f"{name}_text": node("CLIPTextEncode", f"{title} text", (x, y), clip=["checkpoint", 1], text=text),
        f"{name}_sample": node(
            "KSampler", f"{title} sample", (x, y + 140), model=["checkpoint", 0], positive=[f"{name}_text", 0],
            negative=["negative", 0], latent_image=["size", 0], seed=1, steps=20, cfg=7.0, sampler_name="euler",
            scheduler="normal", denoise=1.0,
        ),
        f"{name}_decode": node(
            "VAEDecode", f"{title} decode", (x + 420, y), samples=[f"{name}_sample", 0], vae=["checkpoint", 2]
        ),
        f"{name}_save": node(
            "SaveImage", title, (x + 420, y + 140), images=[f"{name}_decode", 0], filename_prefix=f"Atelier_{name}"
        ),
    }  # fmt: skip


def _optimize_prompt() -> Graph:
    return {
        "checkpoint": node("CheckpointLoaderSimple", "Checkpoint", (0, 0), ckpt_name=USER_CHECKPOINT),
        "policy": node("AtelierLoadPromptPolicy", "Policy", (0, 180), policy=USER_POLICY),
        **_scorers((0, 320)),
        "prompt": node("PrimitiveStringMultiline", "Prompt", (440, 0), value=PROMPT),
        "optimize": node(
            "AtelierPromptOptimizer", "Prompt Optimizer", (440, 240), prompt=["prompt", 0], policy=["policy", 0],
            **_drawing(), count=4,
        ),
        "trace": node("PreviewAny", "Candidates and scores", (440, 760), source=["optimize", 2]),
        "size": node("EmptyLatentImage", "Size", (0, 800), width=512, height=512, batch_size=4),
        "negative": node("CLIPTextEncode", "Negative", (0, 980), clip=["checkpoint", 1], text=""),
        **_drawn(["prompt", 0], "Before", (900, 0)),
        **_drawn(["optimize", 0], "After", (900, 660)),
        "note": note(HOW_TO_OPTIMIZE, (0, 1180)),
    }  # fmt: skip


def _train_prompt_optimizer() -> Graph:
    return {
        "checkpoint": node("CheckpointLoaderSimple", "Checkpoint", (0, 0), ckpt_name=USER_CHECKPOINT),
        "policy": node("AtelierLoadPromptPolicy", "Policy", (0, 180), policy=USER_POLICY),
        **_scorers((0, 320)),
        "train": node(
            "AtelierTrainPromptOptimizer", "Train", (440, 0), policy=["policy", 0], prompts=TRAINED_ON,
            name="my_policy", stage="both", steps=200, seed=1, **_drawing(), supervised_steps=200,
        ),
        "curve": node("SaveImage", "Curve", (900, 0), images=["train", 2], filename_prefix="Atelier_curve"),
        "report": node("PreviewAny", "Report", (900, 540), source=["train", 3]),
        "note": note(HOW_TO_TRAIN, (0, 820)),
    }  # fmt: skip


OPTIMIZER_TEMPLATES = {"optimize_prompt": _optimize_prompt, "train_prompt_optimizer": _train_prompt_optimizer}
