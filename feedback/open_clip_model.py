"""An open_clip model in a folder as an encoder of pictures and texts. Needs the package open_clip_torch.

The folder holds `open_clip_config.json` and the weights, as model hubs offer it. Nothing is fetched: a model whose
config names parts elsewhere is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .scorers import weights_version

if TYPE_CHECKING:
    from open_clip import CLIP

CONFIG = "open_clip_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
BATCH = 16
"""Pictures in one pass."""


class ScorerSetupError(ValueError):
    """A scorer cannot be made; the message says what to do."""


@dataclass(frozen=True, eq=False)
class OpenClip:
    """A loaded model, its tokenizer, and its own way of preparing a picture.

    `ready` puts the model on its device and returns it; `check` is called before each pass and may raise.
    """

    name: str
    version: str
    prepare: Callable[[Any], Tensor] = field(repr=False)
    tokenize: Callable[[str], Tensor] = field(repr=False)
    ready: Callable[[], CLIP] = field(repr=False)
    check: Callable[[], None] = field(repr=False)

    def encode_images(self, images: Tensor) -> Tensor:
        from PIL import Image

        model, out = self.ready(), []
        for part in images.split(BATCH):
            self.check()
            pixels = (part * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            batch = torch.stack([self.prepare(Image.fromarray(picture)) for picture in pixels])
            with torch.inference_mode():
                out.append(model.encode_image(batch.to(_device(model)), normalize=True).float().cpu())
        return torch.cat(out)

    def encode_text(self, text: str) -> Tensor:
        model = self.ready()
        with torch.inference_mode():
            return model.encode_text(self.tokenize(text).to(_device(model)), normalize=True)[0].float().cpu()


def is_model_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def open_model(
    folder: Path, hold: Callable[[CLIP], Callable[[], CLIP]], check: Callable[[], None] = lambda: None
) -> OpenClip:
    """Load a model folder to the CPU, in float32, so that scores are the same on every device.

    Args:
        folder: the model's folder; its name becomes the encoder's.
        hold: takes the loaded model and returns what puts it on its device.
        check: raises when the user interrupts.

    Raises:
        ScorerSetupError: the package is missing, or the folder holds no model that can be used.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ScorerSetupError(
            f"This scorer needs the package {error.name}. Run in ComfyUI's Python environment: "
            "pip install open_clip_torch"
        ) from None
    _check_config(folder)
    place = f"local-dir:{folder}"
    try:
        model, prepare = open_clip.create_model_from_pretrained(place)
        tokenize = open_clip.get_tokenizer(place)
    except Exception as error:  # open_clip raises what the layers below it raise
        why = " ".join(str(error).split())[:500]
        raise ScorerSetupError(f"The model folder {folder} cannot be loaded: {why}. Download it again.") from error
    version = weights_version(model.state_dict())
    return OpenClip(folder.name, version, prepare, tokenize, hold(model.eval()), check)


def _check_config(folder: Path) -> None:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        elsewhere = config["text_cfg"].get("hf_model_name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ScorerSetupError(f"{folder / CONFIG} is no open_clip configuration. Download the folder again.") from None
    if elsewhere:
        raise ScorerSetupError(
            f"The text tower of {folder.name} is {elsewhere}, which open_clip would fetch from the network. "
            "Take a model that is whole in its folder."
        )


def _device(model: CLIP) -> torch.device:
    return next(model.parameters()).device
