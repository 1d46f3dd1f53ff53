"""Encoders of the T5 family as the host's CLIP, from files that the stock loader takes for something else.

The host's own loader gives the widths of T5-XL to another model with another tokenizer. Here the widths are read from
the weights, and flan-t5, t5-v1_1, t5 and RankGen (arXiv 2205.09726) of any size run on the host's T5 class with the
tokenizer that it carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.t5
import comfy.utils
import torch
from torch import Tensor
from transformers import T5TokenizerFast

from .layout import check_layout

NAME = "t5"
TABLE = "shared.weight"
VOCABULARY = 32100
"""Tokens of T5's tokenizer. The table may have more rows."""

RANKGEN = "t5_encoder."
_TOKENIZER = Path(comfy.text_encoders.t5.__file__).parent / "t5_tokenizer"
_FIRST = "encoder.block.0.layer."


def load_t5(
    files: Sequence[Path], embeddings: list[str] | None = None, dtype: torch.dtype | None = None
) -> comfy.sd.CLIP:
    """The encoder in one or more weight files as a CLIP, under the host's memory management.

    Args:
        embeddings: the host's folders of textual inversions.
        dtype: what the weights are held in; the host's choice where it is None. The arithmetic is in float32.

    Raises:
        ValueError: The weights are not those of a T5 encoder, or belong to another tokenizer.
    """
    state = encoder_weights(_read(files))
    config = t5_config(state)
    options = {"dtype": dtype or _dtype(state[TABLE])}

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                textmodel_json_config=dict(config),
                dtype=dtype,
                special_tokens={"end": 1, "pad": 0},
                model_class=comfy.text_encoders.t5.T5,
                enable_attention_masks=True,
                model_options=model_options or {},
            )

    class Model(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device, dtype, model_options or {}, name=NAME, clip_model=Encoder)

    target = comfy.supported_models_base.ClipTarget(tokenizer(config["d_model"]), Model)
    size = sum(weight.numel() for weight in state.values())
    return comfy.sd.CLIP(target, embeddings, parameters=size, state_dict=[state], model_options=options)


def tokenizer(width: int) -> type[comfy.sd1_clip.SD1Tokenizer]:
    """The class of the tokenizer for an encoder of this width."""

    class Pieces(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                str(_TOKENIZER),
                embedding_directory=embedding_directory,
                pad_with_end=False,
                embedding_size=width,
                embedding_key=NAME,
                tokenizer_class=T5TokenizerFast,
                has_start_token=False,
                pad_to_max_length=False,
                max_length=10**8,
                min_length=1,
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: Any = None) -> None:
            super().__init__(embedding_directory, tokenizer_data or {}, name=NAME, tokenizer=Pieces)

    return Tokenizer


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of the weights of a T5 model, an encoder alone, or RankGen, by the host's names."""
    if any(name.startswith(RANKGEN) for name in state):
        state = {name.removeprefix(RANKGEN): weight for name, weight in state.items() if name.startswith(RANKGEN)}
    table = state.get(TABLE, state.get("encoder.embed_tokens.weight"))
    kept = {
        name: weight
        for name, weight in state.items()
        if name.startswith("encoder.") and name != "encoder.embed_tokens.weight"
    }
    return kept if table is None else {**kept, TABLE: table}


def t5_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the host's T5 class has to know, read from the weights of an encoder.

    Raises:
        ValueError: They are not those of a T5 encoder, or the tokenizer is another.
    """
    first = {part: state.get(f"{_FIRST}0.SelfAttention.{part}.weight") for part in ("q", "relative_attention_bias")}
    gated = f"{_FIRST}1.DenseReluDense.wi_0.weight" in state
    inner = state.get(f"{_FIRST}1.DenseReluDense.{'wi_0' if gated else 'wi'}.weight")
    table = state.get(TABLE)
    if table is None or inner is None or any(part is None or part.ndim != 2 for part in first.values()):
        raise ValueError(
            "This is no encoder of the T5 family. Take flan-t5, t5-v1_1 or RankGen as safetensors, the whole model or "
            "its encoder, or load the file with the stock CLIP loader."
        )
    if not VOCABULARY <= len(table) <= VOCABULARY + 128:
        raise ValueError(
            f"The encoder's table has {len(table)} tokens, and T5's tokenizer has {VOCABULARY}. It is a relative of "
            "T5, such as mT5, UMT5 or ByT5, and reads other tokens."
        )
    heads = first["relative_attention_bias"].shape[1]
    layers = sum(name.endswith(".layer.0.SelfAttention.q.weight") for name in state)
    config = {
        "d_model": table.shape[1],
        "d_kv": first["q"].shape[0] // heads,
        "num_heads": heads,
        "d_ff": inner.shape[0],
        "num_layers": layers,
        "is_gated_act": gated,
        "dense_act_fn": "gelu_pytorch_tanh" if gated else "relu",
        "model_type": "t5",
        "vocab_size": len(table),
    }
    check_layout(state, _shapes(config), "a T5 encoder")
    return config


def _shapes(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of the weights of the host's T5 class."""
    empty = comfy.text_encoders.t5.T5(config, torch.float32, torch.device("meta"), comfy.ops.disable_weight_init)
    return {name: weight.shape for name, weight in empty.state_dict().items()}


def _dtype(weight: Tensor) -> torch.dtype:
    """The host's choice for weights like this one."""
    memory = comfy.model_management
    device = memory.text_encoder_device()
    return memory.pick_weight_dtype(weight.dtype, memory.text_encoder_dtype(device), device)


def _read(files: Sequence[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_weights(file)[0]
    return state


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a weight file, and what the file says of itself. Pickled code in it is never run.

    Raises:
        ValueError: The file is corrupt, cut off, holds more than tensors, or is not there.
    """
    try:
        state, about = comfy.utils.load_torch_file(str(file), safe_load=True, return_metadata=True)
    except Exception as error:  # what the readers of both formats raise
        why = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{file.name} cannot be read: {why}. Download it again; only safetensors and files of plain tensors are "
            f"opened. It is in {file.parent}."
        ) from error
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file.name} in {file.parent} holds no tensors.")
    return tensors, about or {}
