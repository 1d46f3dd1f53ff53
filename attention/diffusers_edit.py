"""Edit UNets in diffusers' layout, which the host knows with 4 input channels and not with 8."""

from __future__ import annotations

import comfy.model_detection
import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .edit import check_edit_model

CONV_IN = "conv_in.weight"


def load_edit_model(path: str) -> ModelPatcher:
    """The InstructPix2Pix model of a UNet file, in diffusers' layout or in the host's own.

    Raises:
        ValueError: The file is no UNet that the host knows, or one without input for a picture.
    """
    weights, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    model = comfy.sd.load_diffusion_model_state_dict(host_layout(weights), metadata=metadata)
    if model is None:
        raise ValueError("The file holds no UNet that the host knows. Take unet/diffusion_pytorch_model.safetensors.")
    check_edit_model(model)
    return model


def host_layout(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in diffusers' layout with 8 input channels, renamed; all others as they are."""
    if CONV_IN not in weights or weights[CONV_IN].shape[1] != 8:
        return weights
    known = comfy.model_detection.unet_config_from_diffusers_unet({**weights, CONV_IN: weights[CONV_IN][:, :4]})
    if known is None:
        return weights
    names = comfy.utils.unet_to_diffusers(known)
    return {names[name]: weight for name, weight in weights.items() if name in names}
