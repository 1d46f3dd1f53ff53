"""An open_clip model in a folder as an encoder of pictures and texts. Needs the package open_clip_torch.

The folder holds `open_clip_config.json` and the weights, as model hubs offer it, or the one file of HPS v2 (arXiv
2306.09341). Nothing is fetched: a model whose config names parts elsewhere is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .scorers import ScorerSetupError, weights_version

if TYPE_CHECKING:
    from open_clip import CLIP
    from PIL.Image import Image

CONFIG = "open_clip_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
HPS_FILES, HPS_MODEL = ("HPS_v2*.pt", "HPS_v2*.safetensors"), "ViT-H-14"
"""The weights of HPS v2 come without a config; this is the model of open_clip that they are for."""
BATCH = 16
"""Pictures in one pass."""
CHANGED_AT_ONCE = 2**20
"""Numbers of pictures that become bytes at once."""
TEXTS_KEPT = 64

Hold = Callable[[torch.nn.Module], Callable[[], torch.nn.Module]]
"""Takes a loaded model and returns what puts it on its device."""


@dataclass(frozen=True, eq=False)
class OpenClip:
    """A loaded model, its tokenizer, and its own way of preparing a picture.

    `ready` puts the model on its device and returns it; `check` is called before each pass and may raise. `scale` is
    the model's `logit_scale.exp()`.
    """

    name: str
    version: str
    scale: float
    prepare: Callable[[Any], Tensor] = field(repr=False)
    tokenize: Callable[[str], Tensor] = field(repr=False)
    ready: Callable[[], CLIP] = field(repr=False)
    check: Callable[[], None] = field(repr=False)
    _said: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def encode_images(self, images: Tensor) -> Tensor:
        model, out = self.ready(), []
        each, together = _in_two(self.prepare)
        for part in images.split(BATCH):
            self.check()
            batch = together(torch.stack([each(picture) for picture in _pictures(part)]))
            with torch.inference_mode():
                out.append(model.encode_image(batch.to(_device(model)), normalize=True).float().cpu())
        return torch.cat(out)

    def encode_text(self, text: str) -> Tensor:
        """Unit vector [d]. Those of the last texts are kept: scorers ask for the same one, batch after batch."""
        if text not in self._said:
            model = self.ready()
            with torch.inference_mode():
                vector = model.encode_text(self.tokenize(text).to(_device(model)), normalize=True)[0].float().cpu()
            if len(self._said) == TEXTS_KEPT:
                del self._said[next(iter(self._said))]
            self._said[text] = vector
        return self._said[text]


def is_open_clip_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any(any(folder.glob(pattern)) for pattern in WEIGHTS)


def hps_file(folder: Path) -> Path | None:
    """The weights of HPS v2 in the folder, None if there are none."""
    return next((file for pattern in HPS_FILES for file in sorted(folder.glob(pattern))), None)


def open_model(folder: Path, hold: Hold, check: Callable[[], None] = lambda: None) -> OpenClip:
    """Load a model folder to the CPU, in float32, so that scores are the same on every device.

    Args:
        folder: the model's folder; its name becomes the encoder's.
        hold: takes the loaded model and returns what puts it on its device.
        check: raises when the user interrupts.

    Raises:
        ScorerSetupError: the package is missing, or the folder holds no model that can be used.
    """
    open_clip = _package()
    _check_config(folder)
    place = f"local-dir:{folder}"
    try:
        model, prepare = open_clip.create_model_from_pretrained(place)
        tokenize = open_clip.get_tokenizer(place)
    except Exception as error:  # open_clip raises what the layers below it raise
        raise cannot_load(folder, error) from error
    return encoder(folder.name, model, prepare, tokenize, hold, check)


def open_hps(folder: Path, hold: Hold, check: Callable[[], None] = lambda: None, model: str = HPS_MODEL) -> OpenClip:
    """Load the weights of HPS v2, as `open_model` does. HPS v2 sees the whole picture, with borders, uncropped."""
    open_clip = _package()
    file = hps_file(folder)
    try:
        loaded, prepare = open_clip.create_model_from_pretrained(model, str(file), image_resize_mode="longest")
        tokenize = open_clip.get_tokenizer(model)
    except Exception as error:  # as above
        raise cannot_load(file or folder, error) from error
    return encoder(folder.name, loaded, prepare, tokenize, hold, check)


def encoder(
    name: str,
    model: torch.nn.Module,
    prepare: Callable[[Any], Tensor],
    tokenize: Callable[[str], Tensor],
    hold: Hold,
    check: Callable[[], None],
) -> OpenClip:
    """A loaded model, with the methods of open_clip's, as an encoder."""
    version, scale = weights_version(model.state_dict()), float(model.logit_scale.detach().exp())
    return OpenClip(name, version, scale, prepare, tokenize, hold(model.eval()), check)


def cannot_load(place: Path, error: Exception) -> ScorerSetupError:
    why = " ".join(str(error).split())[:500]
    return ScorerSetupError(f"The model {place} cannot be loaded: {why}. Download it again.")


def _package() -> ModuleType:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ScorerSetupError(
            f"This scorer needs the package {error.name}. Run in ComfyUI's Python environment: "
            "pip install open_clip_torch"
        ) from None
    return open_clip


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


def _pictures(images: Tensor) -> Iterator[Image]:
    """Pictures [n, height, width, 3] in 0..1 as those of Pillow. Large ones are changed one by one: new memory for
    all of them would take longer than the arithmetic."""
    from PIL import Image

    for part in images.split(max(1, CHANGED_AT_ONCE // images[0].numel())):
        yield from map(Image.fromarray, (part * 255).add_(0.5).clamp_(0, 255).to(torch.uint8).cpu().numpy())


def _in_two(prepare: Callable[[Any], Tensor]) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Tensor]]:
    """A preparation as what is done to each picture, and what can be done to a batch: open_clip's last step."""
    from torchvision.transforms import Compose, Normalize

    steps = getattr(prepare, "transforms", [None])
    if isinstance(steps[-1], Normalize):
        return Compose(steps[:-1]), steps[-1]
    return prepare, lambda batch: batch


def _device(model: CLIP) -> torch.device:
    return next(model.parameters()).device
