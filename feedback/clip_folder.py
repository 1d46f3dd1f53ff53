"""Opens a folder with a CLIP model in whichever layout it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .open_clip_model import Hold, OpenClip, hps_file, is_open_clip_folder, open_hps, open_model
from .scorers import ScorerSetupError
from .transformers_clip import is_transformers_folder, open_transformers

LAYOUTS = (
    "open_clip_config.json with its weights, config.json of a transformers CLIP with its weights and tokenizer, or "
    "HPS_v2*.pt"
)


def is_model_folder(folder: Path) -> bool:
    return _opener(folder) is not None


def open_folder(folder: Path, hold: Hold, check: Callable[[], None] = lambda: None) -> OpenClip:
    """Load the model to the CPU, in float32; the arguments are those of `open_model`.

    Raises:
        ScorerSetupError: the folder is incomplete or damaged, or a package is missing.
    """
    opener = _opener(folder)
    if opener is None:
        raise ScorerSetupError(f"{folder} holds no whole CLIP model. It must hold {LAYOUTS}. Download it again.")
    return opener(folder, hold, check)


def _opener(folder: Path) -> Callable[[Path, Hold, Callable[[], None]], OpenClip] | None:
    if is_open_clip_folder(folder):
        return open_model
    if is_transformers_folder(folder):
        return open_transformers
    return open_hps if hps_file(folder) else None
