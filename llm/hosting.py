"""Binds language models to the host: folders, memory, interruption, progress. Nothing else here knows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.model_management as memory
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar

from .backend import Hooks
from .local import LocalModel, open_model

FOLDER_KEY = "LLM"
HOST_HOOKS = Hooks(
    check=memory.throw_exception_if_processing_interrupted,
    progress=lambda total: ProgressBar(total).update_absolute,
)
"""Cancel by the host's interrupt; show progress on the node that runs."""


class _Held(torch.nn.Module):
    """A plain module around a transformers model, whose `device` the host could not set."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


def register_folder() -> None:
    """Make `models/LLM` known to the host, beside what extra_model_paths.yaml names. Safe to call twice."""
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER_KEY, ([], set()))
    own = str(Path(folder_paths.models_dir) / FOLDER_KEY)
    paths = [*paths, *([] if own in paths else [own])]
    # A key from the yaml file has no extensions, and that would list every file.
    folder_paths.folder_names_and_paths[FOLDER_KEY] = (paths, set(extensions) | {".safetensors"})


def model_names() -> list[str]:
    """The folders under `models/LLM` that hold a language model, as `model` or `owner/model`.

    Looked up each time: the host's own list fails for good once a folder that was there is gone.
    """
    bases = [Path(base) for base in folder_paths.get_folder_paths(FOLDER_KEY)]
    configs = [
        (base, config) for base in bases for depth in ("*", "*/*") for config in base.glob(f"{depth}/config.json")
    ]
    names = sorted({config.parent.relative_to(base).as_posix() for base, config in configs})
    return [name for name in names if model_folder(name) is not None]


def model_folder(name: str) -> Path | None:
    """The folder of a listed model, None if it is not there."""
    for base in folder_paths.get_folder_paths(FOLDER_KEY):
        folder = Path(base) / name
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    return None


def folder_state(folder: Path) -> str:
    """Changes when the files of a model do."""
    return "/".join(str(file.stat().st_mtime_ns) for file in sorted(folder.iterdir()) if file.is_file())


def load(folder: Path) -> Callable[[], LocalModel]:
    """Load a model folder and return what puts it on its device.

    The host moves it out when something else needs the memory, and it goes with the last reference to the result.
    """
    device, offload = memory.text_encoder_device(), memory.text_encoder_offload_device()
    local = open_model(folder, _dtype(device))
    patcher = ModelPatcher(_Held(local.model), load_device=device, offload_device=offload)

    def ready() -> LocalModel:
        memory.load_models_gpu([patcher], force_full_load=True)
        return local

    return ready


def _dtype(device: torch.device) -> torch.dtype:
    """Half precision where the device computes in it; bfloat16 first, since language models are trained in it."""
    if memory.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if memory.should_use_fp16(device) else torch.float32


def profiles_folder() -> Path:
    """The host's folder for this pack that is not served over HTTP."""
    return Path(folder_paths.get_system_user_directory("atelier"))
