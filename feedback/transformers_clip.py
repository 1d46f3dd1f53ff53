"""A CLIP model in a transformers folder as an encoder of pictures and texts: PickScore and others (arXiv 2305.01569).

The folder holds `config.json`, the weights and the tokenizer. Nothing is fetched. Pictures are prepared as CLIP's own
code does: the shorter side to the model's size (bicubic), the middle cut out, the colours normalised.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .open_clip_model import Hold, OpenClip, cannot_load, encoder
from .scorers import ScorerSetupError

if TYPE_CHECKING:
    from transformers import CLIPModel

CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.bin")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either of these is a tokenizer."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's colours, where the folder has no `preprocessor_config.json`."""


def is_transformers_folder(folder: Path) -> bool:
    return _read(folder / CONFIG).get("model_type") == "clip" and any(any(folder.glob(name)) for name in WEIGHTS)


def open_transformers(folder: Path, hold: Hold, check: Callable[[], None] = lambda: None) -> OpenClip:
    """Load a model folder to the CPU, in float32; the arguments are those of `open_model`.

    Raises:
        ScorerSetupError: a part of the folder is missing or damaged.
    """
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise ScorerSetupError(
            f"{folder} has no tokenizer. Put tokenizer.json, or vocab.json and merges.txt, beside the weights; for "
            "PickScore they are those of CLIP-ViT-H-14-laion2B-s32B-b79K."
        )
    from transformers import AutoTokenizer, CLIPModel

    try:
        model, found = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises what the layers below it raise
        raise cannot_load(folder, error) from error
    if found["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(found["missing_keys"])
        error = ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
        raise cannot_load(folder, error) from None
    tokenize = partial(_tokens, tokenizer, model.config.text_config.max_position_embeddings)
    return encoder(folder.name, AsOpenClip(model.float()), _preparation(folder, model), tokenize, hold, check)


class AsOpenClip(torch.nn.Module):
    """A transformers CLIP with the methods of an open_clip model."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.logit_scale = clip.logit_scale

    def encode_image(self, pixels: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings [n, d] of prepared pictures [n, 3, size, size]."""
        vectors = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings [n, d] of tokens [n, length]."""
        vectors = self.clip.text_projection(self.clip.text_model(input_ids=tokens).pooler_output)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors


def _tokens(tokenizer: Any, length: int, text: str) -> Tensor:
    return tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"]


def _preparation(folder: Path, model: CLIPModel) -> Callable[[Any], Tensor]:
    # Not transformers' own: its default resizes tensors, and with other numbers than CLIP's code.
    from torchvision import transforms

    said, size = _read(folder / "preprocessor_config.json"), model.config.vision_config.image_size
    return transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(said.get("image_mean", MEAN), said.get("image_std", STD)),
        ]
    )


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, empty if the file holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
