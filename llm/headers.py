"""What a model file says of itself: the text and the tensor names in a safetensors header.

The text stands under `__metadata__`: `modelspec.*` (Stability AI's Model Metadata Standard), `ss_*` (kohya's trainer)
and `atelier.example_prompts`, a JSON list of prompts that show what the model is for. No tensor is read. A file of
another format has no header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from safetensors import safe_open

from .families import family_of, family_of_tensors

LARGEST_HEADER = 32 * 1024**2
"""Bytes of a header that are read. The largest in use are a few MB; the format allows 100 MB."""


_FIRST = ("model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
"""Where a UNet's first convolution is: in a checkpoint, alone, and in diffusers' layout."""


@dataclass(frozen=True)
class Header:
    """The text of a header, the family that the tensors show, and the channels that a UNet takes, 0 if it is none."""

    text: Mapping[str, str] = field(default_factory=dict)
    tensor_family: str = ""
    channels: int = 0

    @property
    def family(self) -> str:
        """The family that the text names, else the one that the tensors show."""
        for key in ("modelspec.architecture", "ss_base_model_version"):
            if family := family_of(self.text.get(key, "")):
                return family
        # Before `ss_base_model_version` came, kohya's trainer only said whether it was Stable Diffusion 2.
        return "sd2" if self.text.get("ss_v2") == "True" else self.tensor_family


def read_header(path: str) -> Header:
    """Read a file's header.

    Raises:
        ValueError: the header is larger than `LARGEST_HEADER`.
        OSError, safetensors.SafetensorError: the file cannot be read, or its header and its size do not agree.
    """
    if not path.lower().endswith((".safetensors", ".sft")):
        return Header()
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise ValueError(
            f"it claims a header of {length:,} bytes, and at most {LARGEST_HEADER:,} are read: "
            "it is damaged, or not a safetensors file"
        )
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        family = family_of_tensors(names, lambda name: file.get_slice(name).get_shape())
        first = next((file.get_slice(name).get_shape() for name in _FIRST if name in names), (0, 0))
        return Header(file.metadata() or {}, family, first[1])
