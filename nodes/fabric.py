"""The node that lets a model listen to feedback (FABRIC, arXiv 2307.10159)."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..attention.patches import FabricSchedule, apply_fabric, check_model, encode_pictures, encode_text
from ..attention.schedule import DEPTHS, MERGE_ABOVE, SHAPES
from ..feedback.pictures import Feedback
from .feedback import FeedbackSocket

OWN = "own values"
PRESETS = {
    "paper, one round": FabricSchedule(0.8, 0.33, 0.66, 0.05, 0.5),
    "paper, evaluation": FabricSchedule(0.3, 0.0, 0.8, 0.0, 0.5),
}
"""Settings of the paper's experiments, from the official code: github.com/sd-fabric/fabric."""


class AtelierFabric(io.ComfyNode):
    """FABRIC on a MODEL: liked pictures pull, disliked pictures push."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierFabric",
            display_name="FABRIC Feedback",
            category="Atelier/Feedback",
            description="Makes new pictures more like those you liked and less like those you disliked.",
            search_aliases=[
                "FABRIC",
                "feedback attention",
                "reference attention",
                "like",
                "dislike",
                "personalize",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.x, 2.x or XL model."),
                io.Clip.Input(
                    "clip",
                    tooltip="The model's text encoder. The model reads the pictures with the empty prompt.",
                ),
                io.Vae.Input("vae", tooltip="The model's VAE. It encodes the feedback pictures."),
                FeedbackSocket.Input(
                    "feedback",
                    tooltip="Liked and disliked pictures. Empty feedback leaves the model as it is.",
                ),
                io.Float.Input(
                    "weight",
                    default=0.8,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much feedback counts in the window. 0 is off; 1 counts it in full.",
                ),
                io.Float.Input(
                    "negative_scale",
                    default=0.5,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="The weight is multiplied by this for disliked pictures.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where the window begins, as a share of sampling: 0 is pure noise.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where the window ends, as a share of sampling: 1 is the finished picture.",
                ),
                io.Float.Input(
                    "weight_outside",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How much feedback counts outside the window. At 0 these steps cost nothing.",
                ),
                io.Combo.Input(
                    "reference_noise",
                    options=["fixed", "seed"],
                    default="fixed",
                    optional=True,
                    advanced=True,
                    tooltip="The noise on your pictures: always the same, so that later runs need not read them again, "
                    "or another with each seed.",
                ),
                io.Int.Input(
                    "cache_percent",
                    default=10,
                    min=0,
                    max=50,
                    optional=True,
                    advanced=True,
                    tooltip="With fixed noise: the share of the machine's memory, in percent, for what the model has "
                    "read of your pictures.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[OWN, *PRESETS],
                    default=OWN,
                    optional=True,
                    advanced=True,
                    tooltip="The paper's settings. They replace weight, negative_scale, start_percent, end_percent and "
                    "weight_outside.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(SHAPES),
                    default="constant",
                    optional=True,
                    advanced=True,
                    tooltip="How the weight goes in the window: it stays, or falls to weight_outside at the window's "
                    "end.",
                ),
                io.Combo.Input(
                    "depth",
                    options=list(DEPTHS),
                    default="all",
                    optional=True,
                    advanced=True,
                    tooltip="Which layers listen: all, those of low resolution (coarse), those of high resolution "
                    "(fine), or rising from none outside to full in the middle of the network.",
                ),
                io.Float.Input(
                    "exploration",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="The share of a batch that is drawn without feedback, so that rounds do not all become "
                    "alike: the last pictures of it.",
                ),
                io.Int.Input(
                    "renew_every",
                    default=1,
                    min=1,
                    max=8,
                    optional=True,
                    advanced=True,
                    tooltip="The model reads your pictures at each n-th step of the window. More is faster and less "
                    "exact.",
                ),
                io.Boolean.Input(
                    "experimental",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Take Flux-, SD3-, Qwen-Image- and Z-Image-class models too. What feedback does to their "
                    "pictures is unmeasured.",
                ),
                io.Boolean.Input(
                    "merge_tokens",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Where a layer has more than 1024 tokens for one of your pictures, four neighbours become "
                    "one. Faster and less exact; for SD and SDXL.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, listening to the feedback.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        feedback: Feedback,
        weight: float,
        negative_scale: float,
        start_percent: float,
        end_percent: float,
        weight_outside: float,
        reference_noise: str = "fixed",
        cache_percent: int = 10,
        preset: str = OWN,
        shape: str = "constant",
        depth: str = "all",
        exploration: float = 0.0,
        renew_every: int = 1,
        experimental: bool = False,
        merge_tokens: bool = False,
    ) -> io.NodeOutput:
        check_model(model, experimental)
        own = FabricSchedule(weight, start_percent, end_percent, weight_outside, negative_scale)
        schedule = replace(
            PRESETS.get(preset, own),
            shape=shape,
            depth=depth,
            exploration=exploration,
            renew_every=renew_every,
            merge_above=MERGE_ABOVE if merge_tokens else None,
        )
        if not feedback.liked and not feedback.disliked:
            return io.NodeOutput(model.clone())
        liked = encode_pictures(vae, feedback.liked, "liked")
        disliked = encode_pictures(vae, feedback.disliked, "disliked")
        fixed = reference_noise == "fixed"
        cache_bytes = int(comfy.model_management.total_ram * 2**20 * cache_percent / 100)
        prompt = encode_text(clip, "")
        return io.NodeOutput(
            apply_fabric(
                model, liked, disliked, prompt, schedule, fixed, cache_bytes,
                feedback.liked_weights, feedback.disliked_weights, experimental,
            )
        )  # fmt: skip
