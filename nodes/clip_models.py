"""Binds the models that scorers use to the host: their folders, its memory, its CLIP_VISION."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

import comfy.model_management as memory
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..feedback.aesthetic import SUFFIXES
from ..feedback.clip_folder import LAYOUTS, is_model_folder, open_folder
from ..feedback.open_clip_model import BATCH, OpenClip
from ..feedback.scorers import weights_version
from ..llm.hosting import NO_MODEL, folder_files, folder_state, hold, register_folder

FOLDER_KEY, HEADS_KEY = "clip_scorers", "aesthetic_heads"
NO_HEAD = "none"

_open: WeakValueDictionary[str, OpenClip] = WeakValueDictionary()
"""Models that some node's output holds, so that two loaders of one folder share it. It keeps none alive itself."""


def register_folders() -> None:
    """Make our model folders known to the host, beside what extra_model_paths.yaml names. Safe to call twice."""
    register_folder(FOLDER_KEY)
    register_folder(HEADS_KEY, SUFFIXES)


def model_names() -> list[str]:
    """The folders under `models/clip_scorers` that hold a CLIP model."""
    bases = [Path(base) for base in folder_paths.get_folder_paths(FOLDER_KEY)]
    return sorted(
        {folder.name for base in bases if base.is_dir() for folder in base.iterdir() if is_model_folder(folder)}
    )


def model_folder(name: str) -> Path | None:
    """The folder of a listed model, None if it is not there."""
    folders = [Path(base) / name for base in folder_paths.get_folder_paths(FOLDER_KEY)]
    return next((folder for folder in folders if name in model_names() and is_model_folder(folder)), None)


def installed_folder(name: str) -> Path:
    """The folder of a listed model. Raises ValueError, which says how to get one."""
    folder = model_folder(name)
    if folder is None:
        what = "No CLIP model for scoring is installed" if name == NO_MODEL else f"There is no CLIP model {name}"
        raise ValueError(
            f"{what}. Put the folder of one into {' or '.join(folder_paths.get_folder_paths(FOLDER_KEY))}, with "
            f"{LAYOUTS}, then press R."
        )
    return folder


def head_names() -> list[str]:
    """The files of `models/aesthetic_heads`."""
    return sorted(folder_files(HEADS_KEY))


def head_file(name: str) -> Path:
    """The file of an aesthetic head. Raises ValueError, which says how to get one."""
    file = folder_files(HEADS_KEY).get(name)
    if file is None:
        what = "An aesthetic score needs a head" if name == NO_HEAD else f"There is no aesthetic head {name}"
        raise ValueError(
            f"{what}. Put one with layers.0.weight and so on, as .safetensors or .pth, into "
            f"{' or '.join(folder_paths.get_folder_paths(HEADS_KEY))}, press R and choose it as aesthetic_head."
        )
    return file


def load(folder: Path) -> OpenClip:
    """Load a model folder. The host moves it out when something else needs the memory. Raises ScorerSetupError."""
    key = f"{folder} {folder_state(folder)}"
    model = _open.get(key)
    if model is None:
        model = _open[key] = open_folder(folder, hold, memory.throw_exception_if_processing_interrupted)
    return model


@dataclass(frozen=True, eq=False)
class HostVision:
    """The host's CLIP_VISION as an encoder of pictures."""

    vision: ClipVisionModel
    name = "clip_vision"

    @cached_property
    def version(self) -> str:
        return weights_version(self.vision.get_sd())

    def encode_images(self, images: Tensor) -> Tensor:
        out = []
        for part in images.split(BATCH):
            memory.throw_exception_if_processing_interrupted()
            out.append(self.vision.encode_image(part)["image_embeds"].float().cpu())
        return torch.nn.functional.normalize(torch.cat(out), dim=-1)
