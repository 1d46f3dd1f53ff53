"""Binds language models to the host: folders, memory, interruption, progress. Nothing else here knows it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import comfy.model_management as memory
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar

from .backend import Hooks
from .gpt2_files import WEIGHTS
from .local import LocalModel, open_model
from .promptist import Policy, open_policy

FOLDER_KEY = "LLM"
POLICY_KEY = "prompt_optimizers"
NO_MODEL = "none installed"
"""What a list of models offers when it is empty."""
ModelT = TypeVar("ModelT", bound=torch.nn.Module)
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


def register_folder(
    key: str = FOLDER_KEY, extensions: Collection[str] = (".safetensors",), *, trained: bool = False
) -> None:
    """Make `models/<key>` known to the host, beside what extra_model_paths.yaml names. Safe to call twice.

    Args:
        extensions: of the files that are listed.
        trained: Files of `<key>` in the output folder, which were trained here, are listed too.
    """
    paths, known = folder_paths.folder_names_and_paths.get(key, ([], set()))
    bases = [folder_paths.models_dir, *([folder_paths.get_output_directory()] if trained else [])]
    own = [str(Path(base) / key) for base in bases]
    # A key from the yaml file has no extensions, and that would list every file.
    every = [*paths, *(path for path in own if path not in paths)]
    folder_paths.folder_names_and_paths[key] = (every, set(known) | set(extensions))


def folder_files(key: str) -> dict[str, Path]:
    """The files of `models/<key>` by name, such as `a.safetensors` or `mine/a.safetensors`.

    Looked up each time: the host's own list fails for good once a folder that was there is gone.
    """
    paths, extensions = folder_paths.folder_names_and_paths[key]
    found: dict[str, Path] = {}
    for base in map(Path, paths):
        for file in sorted(base.rglob("*")) if base.is_dir() else ():
            if file.suffix.lower() in extensions and file.is_file():
                found.setdefault(file.relative_to(base).as_posix(), file)
    return found


def model_names() -> list[str]:
    """The folders under `models/LLM` that hold a language model, as `model` or `owner/model`."""
    return [name for name in _folder_names(FOLDER_KEY, "config.json") if model_folder(name) is not None]


def model_folder(name: str) -> Path | None:
    """The folder of a listed model, None if it is not there."""
    for base in folder_paths.get_folder_paths(FOLDER_KEY):
        folder = Path(base) / name
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    return None


def policy_names() -> list[str]:
    """The folders in `models/prompt_optimizers` that hold a policy, or a part of one; loading tells what is missing."""
    return _folder_names(POLICY_KEY, "config.json", *WEIGHTS)


def policy_folder(name: str) -> Path | None:
    """The folder of a listed policy, None if it is not there."""
    if name not in policy_names():
        return None
    bases = [Path(base) for base in folder_paths.get_folder_paths(POLICY_KEY)]
    return next((base / name for base in bases if (base / name).is_dir()), None)


def _folder_names(key: str, *files: str) -> list[str]:
    """The folders that hold one of the files, one or two levels below the folders of a key, as `name` or `owner/name`.

    Looked up each time: the host's own list fails for good once a folder that was there is gone.
    """
    bases = [Path(base) for base in folder_paths.get_folder_paths(key)]
    patterns = [f"{depth}/{file}" for depth in ("*", "*/*") for file in files]
    found = ((base, path.parent) for base in bases for pattern in patterns for path in base.glob(pattern))
    return sorted({folder.relative_to(base).as_posix() for base, folder in found})


def folder_state(folder: Path) -> str:
    """Changes when the files of a model do."""
    return "/".join(str(file.stat().st_mtime_ns) for file in sorted(folder.iterdir()) if file.is_file())


def load(folder: Path) -> Callable[[], LocalModel]:
    """Load a model folder and return what puts it on its device.

    The host moves it out when something else needs the memory, and it goes with the last reference to the result.
    """
    local = open_model(folder, language_dtype())
    load_model = hold(local.model)

    def ready() -> LocalModel:
        load_model()
        return local

    return ready


def load_policy(folder: Path) -> Policy:
    """Load the folder of a prompt policy, as `load` does. Raises PolicySetupError."""
    return open_policy(folder, hold, HOST_HOOKS)


def hold(model: ModelT) -> Callable[[], ModelT]:
    """Give a model to the host's memory management; what comes back puts it on its device and returns it."""
    device, offload = memory.text_encoder_device(), memory.text_encoder_offload_device()
    patcher = ModelPatcher(_Held(model), load_device=device, offload_device=offload)

    def ready() -> ModelT:
        memory.load_models_gpu([patcher], force_full_load=True)
        return model

    return ready


def language_dtype() -> torch.dtype:
    """Half precision where the text encoders' device computes in it; bfloat16 first, in which most are trained."""
    device = memory.text_encoder_device()
    if memory.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if memory.should_use_fp16(device) else torch.float32


def profiles_folder() -> Path:
    """The host's folder for this pack that is not served over HTTP."""
    return Path(folder_paths.get_system_user_directory("atelier"))
