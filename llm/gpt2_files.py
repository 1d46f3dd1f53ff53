"""A GPT-2 in a folder: its tokenizer, its weights and its config, each checked, nothing fetched and no code run.

Folders of GPT-2 come with a `tokenizer.json`, with `vocab.json` and `merges.txt`, or with `vocab.json` alone. The
last is enough: byte pair encoding gives each merge the next free number, so the numbers tell the order of the merges,
and what is merged follows from the merges before it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPT2LMHeadModel

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MASKS = (".attn.bias", ".attn.masked_bias")
"""Constants that older files hold next to the weights."""


class PolicySetupError(ValueError):
    """A policy cannot be made; the message says what to do."""


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`. Raises PolicySetupError if it is not that of a GPT-2."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except FileNotFoundError:
        raise PolicySetupError(f"{folder} has no config.json. Copy the whole folder of the model.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise PolicySetupError(f"{folder / 'config.json'} cannot be read ({error}). Copy it again.") from error
    if kind != "gpt2":
        raise PolicySetupError(f"{folder} holds a model of the type {kind}. A prompt policy is a GPT-2.")
    return config


def read_model(folder: Path, config: dict[str, Any]) -> GPT2LMHeadModel:
    """The model in float32 on the CPU, so that it ranks alike everywhere.

    Raises:
        PolicySetupError: the weights are missing, cannot be read, or are not those of this config.
    """
    state = _read_weights(folder)
    body = {name.removeprefix("transformer."): tensor for name, tensor in state.items() if not name.endswith(_MASKS)}
    head = body.pop("lm_head.weight", None)
    try:
        model = new_model(config)
        model.transformer.load_state_dict(body)
        if head is not None and not model.config.tie_word_embeddings:
            model.lm_head.load_state_dict({"weight": head})
    except Exception as error:  # what a config of strange values raises depends on the value
        raise PolicySetupError(
            f"The weights in {folder} are not those of its config.json ({_short(error)}). Copy the whole folder again."
        ) from error
    return model.eval()


def new_model(config: dict[str, Any]) -> GPT2LMHeadModel:
    """A GPT-2 whose weights are to be loaded. Those that it draws first leave torch's generator as it was."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        return GPT2LMHeadModel(GPT2Config.from_dict(config))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise PolicySetupError(f"{folder} has no weights. It needs {' or '.join(WEIGHTS)}.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise PolicySetupError(
            f"{path} cannot be read as weights ({_short(error)}). Copy it again. A file that holds pickled code is "
            "refused: it would run on this machine."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise PolicySetupError(f"{path} holds more than the weights of a model. Save its state_dict alone.")
    return state


def read_tokenizer(folder: Path, end: int) -> Tokenizer:
    """The folder's tokenizer. Special tokens in a text are plain text to it.

    Args:
        folder: holds `tokenizer.json`, or `vocab.json` with or without `merges.txt`.
        end: number of the token that ends a text.

    Raises:
        PolicySetupError: there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.json").is_file():
            tokenizer = _byte_pairs(folder, end)
        else:
            raise PolicySetupError(f"{folder} has no tokenizer. It needs tokenizer.json or vocab.json.")
    except PolicySetupError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise PolicySetupError(f"The tokenizer in {folder} cannot be read ({_short(error)}). Copy it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_pairs(folder: Path, end: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    listed = folder / "merges.txt"
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    else:
        merges = derive_merges(vocabulary, end)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def derive_merges(vocabulary: dict[str, int], end: int) -> list[tuple[str, str]]:
    """The merges of a byte pair encoding in their order, from its vocabulary alone.

    The merge that made a token joins the two parts that are left of it when all earlier merges are done. A token that
    falls into more parts was made by no merge: it is a special one.

    Args:
        vocabulary: token to number. Single characters first, then the merges in their order.
        end: number of the token that ends a text, which no merge made.
    """
    ordered = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = []
    for token in ordered:
        if len(token) > 1 and vocabulary[token] != end:
            parts = _merged(list(token), vocabulary, vocabulary[token])
            if len(parts) == 2 and parts[0] in vocabulary and parts[1] in vocabulary:
                merges.append((parts[0], parts[1]))
    return merges


def _merged(parts: list[str], vocabulary: dict[str, int], before: int) -> list[str]:
    """The parts after all merges whose token has a number below `before`, the lowest first."""
    while True:
        best, at = before, -1
        for i in range(len(parts) - 1):
            number = vocabulary.get(parts[i] + parts[i + 1], before)
            if number < best:
                best, at = number, i
        if at < 0:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
