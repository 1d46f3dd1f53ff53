"""tiny-sd for the host: SD1.5's architecture at a fraction of its width, in SD1.5's single-file layout."""

from __future__ import annotations

import comfy.supported_models
from comfy import model_base, sd1_clip, supported_models_base

TEXT_CONFIG = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "projection_dim": 128,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
HEADS = 4


class TinyClip(sd1_clip.SDClipModel):
    """A two-layer CLIP text encoder, 128 wide."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config=dict(TEXT_CONFIG), model_options=model_options or {}
        )


class TinyClipModel(sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=TinyClip)


class TinyTokenizer(sd1_clip.SDTokenizer):
    """CLIP's tokenizer; it tells textual inversion that embeddings are 128 wide."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory, embedding_size=128, tokenizer_data=tokenizer_data or {}
        )


class TinySD1Tokenizer(sd1_clip.SD1Tokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=TinyTokenizer
        )


class TinySD(comfy.supported_models.SD15):
    """SD1.5 with 64 channels and a text width of 128, that predicts the velocity as SD2.x does."""

    unet_config = {**comfy.supported_models.SD15.unet_config, "context_dim": 128, "model_channels": 64}
    unet_extra_config = {"num_heads": HEADS, "num_head_channels": -1}

    def model_type(self, state_dict, prefix=""):
        return model_base.ModelType.V_PREDICTION

    def clip_target(self, state_dict=None):
        return supported_models_base.ClipTarget(TinySD1Tokenizer, TinyClipModel)


class TinyEdit(TinySD):
    """TinySD with 8 input channels, of which 4 take the picture to edit."""

    unet_config = {**TinySD.unet_config, "in_channels": 8}

    def get_model(self, state_dict, prefix="", device=None):
        return model_base.SD15_instructpix2pix(self, self.model_type(state_dict, prefix), device)


def register() -> None:
    """Tells the host's checkpoint loader about the tiny models. Calling it twice is harmless."""
    known = comfy.supported_models.models
    names = {model.__name__ for model in known}
    # The host takes the first that fits, and TinySD fits any number of input channels.
    known += [model for model in (TinyEdit, TinySD) if model.__name__ not in names]
