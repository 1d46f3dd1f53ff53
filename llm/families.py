"""Families of base models: which LoRA goes with which checkpoint.

A family is written in many ways: `stable-diffusion-xl-v1-base/lora` in a header, `sdxl_base_v1-0` by kohya's trainer,
"SDXL 1.0" on Civitai, "SDXL" in the web UI of AUTOMATIC1111. Here it has one short name, such as `sdxl`.

Some families are fine-tunes of an architecture (`pony` of `sdxl`). Their LoRAs load into one another, but do their
best on their own family. Versions within a family, such as SD 3 and SD 3.5, are not told apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import ModelRecord

_PATTERNS = tuple(
    (re.compile(pattern), family)
    for pattern, family in (
        (r"pony ?v? ?7|\baura ?flow", "auraflow"),
        (r"noob", "noobai"),
        (r"illustrious", "illustrious"),
        (r"\bpony", "pony"),
        (r"\bflux ?2", "flux2"),
        (r"\bchroma", "chroma"),
        (r"\bflux", "flux"),
        (r"\b(sd|stable diffusion) ?xl", "sdxl"),
        (r"\b(sd|stable diffusion) ?v?3", "sd3"),
        (r"\b(sd|stable diffusion) ?v?2", "sd2"),
        (r"\b(sd|stable diffusion) ?v?1", "sd15"),
        (r"\bhunyuan ?video", "hunyuan-video"),
        (r"\bhunyuan", "hunyuan"),
        (r"\bqwen", "qwen-image"),
        (r"\bz ?image", "z-image"),
        (r"\bwan", "wan"),
        (r"\bltx", "ltx"),
        (r"\bcogvideo", "cogvideo"),
        (r"\bpixart", "pixart"),
        (r"\blumina", "lumina"),
        (r"\bkolors", "kolors"),
        (r"\bhidream", "hidream"),
    )
)
"""Looked for in this order in a text of lower-case words."""

_BUILT_ON = {"pony": "sdxl", "illustrious": "sdxl", "noobai": "sdxl"}

_NO_FAMILY = frozenset(("", "base", "none", "other", "unknown"))

_CROSS_KEY = re.compile(
    r"(?:input|down|output|up|middle|mid)_block.*attn2[._]to_k[._](?:lora_down\.|lora_A\.|lora\.down\.)?weight$"
)
"""The key projection of a UNet's cross-attention, or a LoRA's first factor of it: as wide as the text encoding."""

_BY_TEXT_WIDTH = {768: "sd15", 1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}

_BY_TENSOR = (
    ("time_stack", "svd"),
    ("encoder_hid_proj", "kolors"),
    ("distilled_guidance_layer", "chroma"),
    ("double_stream_modulation_img", "flux2"),
    ("individual_token_refiner", "hunyuan-video"),
    ("joint_blocks", "sd3"),
    # LoRAs of a few other families have these names too, but their trainers name the family in the header.
    ("double_blocks", "flux"),
    ("single_transformer_blocks", "flux"),
)
"""Parts of tensor names that only one family has. The first that occurs decides."""


def family_of(text: str) -> str:
    """The family that a base model's name stands for: a known one, else the name itself in lower-case words."""
    words = _words(text)
    rest = re.sub(r"\b(lora|textual inversion)$", "", words).strip()
    return known_family(text) or ("" if rest in _NO_FAMILY else rest)


def known_family(text: str) -> str:
    """The known family that is named somewhere in a text, or an empty text."""
    words = _words(text)
    return next((family for pattern, family in _PATTERNS if pattern.search(words)), "")


def family_of_tensors(names: Sequence[str], shape: Callable[[str], Sequence[int]]) -> str:
    """The family that a file's tensors show, or an empty text. `shape` gives a tensor's shape by name."""
    everything = "\n".join(names)
    for part, family in _BY_TENSOR:
        if part in everything:
            return family
    for name in names:
        if _CROSS_KEY.search(name):
            return _BY_TEXT_WIDTH.get(shape(name)[-1], "")
    return ""


def narrowed(family: str, hints: Iterable[str]) -> str:
    """What the first hint of this architecture names: the family itself or a fine-tune of it."""
    found = (known_family(hint) for hint in hints)
    return next((name for name in found if name and architecture(name) == family), family)


def architecture(family: str) -> str:
    """The family that a fine-tune is built on; any other family is its own."""
    return _BUILT_ON.get(family, family)


def fit(lora: ModelRecord, base: ModelRecord) -> int:
    """How well a LoRA goes with a checkpoint or diffusion model: 2 same family, 1 same architecture, 0 not at all.

    An unknown family fits nothing.
    """
    if lora.kind != "lora" or base.kind == "lora" or not lora.family:
        return 0
    if lora.family == base.family:
        return 2
    return int(architecture(lora.family) == architecture(base.family))


def _words(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()
