"""An edit model from a loaded model of the host, ready for training, and from its weights a checkpoint of the host.

The host knows two kinds of edit models, of SD1.5's and of SDXL's layout, by the 8 channels of the first convolution.
What is made here is one of these, by the host's own detection, so whatever can be trained can be opened again.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.lora
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..attention.patches import is_picture_unet
from .denoising import Sampling
from .instruct_pix2pix import FIRST, widen
from .loop import replace_file

_UNET = "diffusion_model."
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class EditUnet:
    """An edit model to train.

    base: the host's own edit model, float32, on the CPU; its `diffusion_model` [N, 8, H, W] -> [N, 4, H, W] is trained.
    host_sampling: noise levels and what the UNet predicts, as the connected model has them.
    marks: what a checkpoint says of that, by key.
    start: digest of the weights, before training.
    """

    base: comfy.model_base.BaseModel
    host_sampling: torch.nn.Module
    marks: Mapping[str, Tensor]
    start: str

    def sampling(self, device: torch.device) -> Sampling:
        """The noise levels on a device, by number: `sigma(n)` is `sigmas[n]`."""
        return training_levels(self.host_sampling, device)


def training_levels(host_sampling: torch.nn.Module, device: torch.device) -> Sampling:
    """A copy of the host's noise levels on a device, by number: `sigma(n)` is `sigmas[n]`."""
    levels = copy.deepcopy(host_sampling).to(device)
    if isinstance(levels, comfy.model_sampling.ModelSamplingContinuousEDM):
        levels.sigma = lambda number: levels.sigmas[number]
    return levels


def edit_unet(model: comfy.model_patcher.ModelPatcher) -> EditUnet:
    """The edit model of a text-to-image model, whose pictures it draws at first; a copy of it if it is one already.

    LoRAs and merges of the model are part of its weights. Other patches, such as FABRIC, are not.

    Raises:
        ValueError: The model is of another class, or predicts neither noise nor velocity.
    """
    name = type(model.model).__name__
    if not is_picture_unet(model):
        raise ValueError(
            f"An edit model is made from a Stable Diffusion 1.5 or XL model; the connected model is {name}. Connect "
            "an SD1.5 or SDXL checkpoint."
        )
    weights = baked_weights(model)
    channels = weights[FIRST].shape[1]
    if channels != 4 and not isinstance(model.model, comfy.model_base.IP2P):
        raise ValueError(
            f"The connected {name} takes {channels} channels. Connect a text-to-image model, which takes 4, or an "
            "InstructPix2Pix model, which takes 8. Inpainting models cannot be trained to edit."
        )
    start = digest(weights.values())
    if channels == 4:
        weights[FIRST] = widen(weights[FIRST])
    sampling = model.get_model_object("model_sampling")
    marks = _marks(sampling)
    base = host_model(weights, marks)
    if not isinstance(base, comfy.model_base.IP2P):
        raise ValueError(
            f"ComfyUI opens edit models of the SD1.5 and SDXL layouts only, and the connected {name} is of neither. "
            "SD2.x, SSD-1B, the SDXL refiner and other relatives cannot be trained to edit."
        )
    return EditUnet(base, copy.deepcopy(sampling).to(_CPU), marks, start)


def baked_weights(model: comfy.model_patcher.ModelPatcher) -> dict[str, Tensor]:
    """The UNet's weights by name, float32 on the CPU, with the LoRAs that are patched on the model."""
    weights = {}
    for key, ((weight, convert), *patches) in model.get_key_patches(_UNET).items():
        start = comfy.model_management.cast_to_device(weight, _CPU, torch.float32, copy=True)
        weights[key.removeprefix(_UNET)] = comfy.lora.calculate_weight(patches, convert(start, inplace=True), key)
    return weights


def host_model(weights: Mapping[str, Tensor], marks: Mapping[str, Tensor]) -> comfy.model_base.BaseModel | None:
    """The model that the host makes of a UNet's weights, float32 on the CPU; None if it knows no such model."""
    state = {**weights, **marks}
    config = comfy.model_detection.model_config_from_unet(state, "")
    if config is None:
        return None
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model(state, "", device=_CPU)
    base.load_model_weights(dict(weights), "")
    return base


def _marks(sampling: torch.nn.Module) -> dict[str, Tensor]:
    """What a checkpoint says of its model's noise levels and prediction, by the keys that the host's loader reads."""
    discrete = isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)
    levels = isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM)
    velocity = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
    noise = isinstance(sampling, comfy.model_sampling.EPS)
    # The host derives these from noise prediction, and they are not.
    other = isinstance(sampling, comfy.model_sampling.EDM | comfy.model_sampling.X0)
    if other or not ((noise and discrete) or (velocity and levels)):
        raise ValueError(
            "Only models that predict noise or velocity can be trained to edit, and the connected one predicts "
            "something else. Take out the node that changes its sampling, or connect another checkpoint."
        )
    if levels:
        return {
            "edm_vpred.sigma_max": sampling.sigma_max.detach().clone().float().cpu(),
            "edm_vpred.sigma_min": sampling.sigma_min.detach().clone().float().cpu(),
        }
    if not velocity:
        return {}
    return {"v_pred": torch.tensor([])} | ({"ztsnr": torch.tensor([])} if sampling.zsnr else {})


def save_edit_checkpoint(
    file: Path, edit: EditUnet, weights: Mapping[str, Tensor], clip: comfy.sd.CLIP, vae: comfy.sd.VAE
) -> None:
    """Write a whole checkpoint, fp16 safetensors, that the stock loader opens as an edit model.

    Call it in the mode in which `clip` was loaded; the host loads in inference mode.

    Args:
        weights: those of the UNet that were trained, by name. The others are as at the start.

    Raises:
        OSError: It cannot be written. The file that was there stays.
    """
    unet = {**edit.base.diffusion_model.state_dict(), **weights}
    text = {name: value.to("cpu") for name, value in clip.state_dict_for_saving().items()}
    state = edit.base.state_dict_for_saving(unet, text, vae.get_sd())
    state = {name: _half(value) for name, value in state.items()} | dict(edit.marks)
    large = isinstance(edit.base, comfy.model_base.SDXL)
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{'xl-v1' if large else 'v1'}-edit",
        "modelspec.implementation": "sgm",
        "modelspec.title": file.stem,
        "modelspec.predict_key": "v" if edit.marks else "epsilon",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda part: comfy.utils.save_torch_file(state, part, metadata=metadata))


def _half(value: Tensor) -> Tensor:
    dtype = torch.float16 if value.is_floating_point() else value.dtype
    return value.detach().to(_CPU, dtype, copy=True).contiguous()


def open_edit_checkpoint(file: Path, edit: EditUnet) -> comfy.model_patcher.ModelPatcher:
    """The model of a checkpoint that `save_edit_checkpoint` wrote, by the host's own loader.

    SD1.5's loader reads no marks. Where it takes other noise levels or another prediction than the model was trained
    with, the model gets the right ones, as from the node ModelSamplingDiscrete.
    """
    model = comfy.sd.load_checkpoint_guess_config(str(file), output_vae=False, output_clip=False)[0]
    if not _alike(model.get_model_object("model_sampling"), edit.host_sampling):
        model.add_object_patch("model_sampling", copy.deepcopy(edit.host_sampling))
    return model


def opens_alike(edit: EditUnet) -> bool:
    """Whether the stock loader gives the checkpoint the noise levels and the prediction that it was trained with."""
    return _alike(edit.base.model_sampling, edit.host_sampling)


def _alike(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    levels = one.sigmas.cpu(), other.sigmas.cpu()
    if levels[0].shape != levels[1].shape or not torch.allclose(*levels):
        return False
    sigma, noisy, output = levels[0][:1], torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25)
    return torch.allclose(
        one.calculate_denoised(sigma, output, noisy), other.calculate_denoised(sigma, output, noisy)
    ) and torch.allclose(one.calculate_input(sigma, noisy), other.calculate_input(sigma, noisy))


def digest(tensors: Iterable[Tensor]) -> str:
    """A name for these numbers: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
