"""Binds the models that scorers use to the host: their folder, its memory, its CLIP_VISION."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comfy.model_management as memory
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..feedback.open_clip_model import BATCH, CONFIG, OpenClip, is_model_folder, open_model
from ..feedback.scorers import weights_version

FOLDER_KEY = "clip_scorers"


def register_folder() -> None:
    """Make `models/clip_scorers` known to the host, beside what extra_model_paths.yaml names. Safe to call twice."""
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER_KEY, ([], set()))
    own = str(Path(folder_paths.models_dir) / FOLDER_KEY)
    paths = [*paths, *([] if own in paths else [own])]
    # A key from the yaml file has no extensions, and that would list every file.
    folder_paths.folder_names_and_paths[FOLDER_KEY] = (paths, set(extensions) | {".safetensors"})


def model_names() -> list[str]:
    """The folders under `models/clip_scorers` that hold an open_clip model."""
    bases = [Path(base) for base in folder_paths.get_folder_paths(FOLDER_KEY)]
    return sorted(
        {file.parent.name for base in bases for file in base.glob(f"*/{CONFIG}") if is_model_folder(file.parent)}
    )


def model_folder(name: str) -> Path | None:
    """The folder of a listed model, None if it is not there."""
    folders = [Path(base) / name for base in folder_paths.get_folder_paths(FOLDER_KEY)]
    return next((folder for folder in folders if name in model_names() and is_model_folder(folder)), None)


def folder_state(folder: Path) -> str:
    """Changes when the files of a model do."""
    return "/".join(str(file.stat().st_mtime_ns) for file in sorted(folder.iterdir()) if file.is_file())


def load(folder: Path) -> OpenClip:
    """Load a model folder. The host moves it out when something else needs the memory. Raises ScorerSetupError."""
    device, offload = memory.text_encoder_device(), memory.text_encoder_offload_device()

    def hold(model: torch.nn.Module) -> Callable[[], torch.nn.Module]:
        patcher = ModelPatcher(model, load_device=device, offload_device=offload)

        def ready() -> torch.nn.Module:
            memory.load_models_gpu([patcher], force_full_load=True)
            return model

        return ready

    return open_model(folder, hold, memory.throw_exception_if_processing_interrupted)


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
