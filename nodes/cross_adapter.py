"""The nodes that put a language model's features beside the text encoder's (LLM4GEN, arXiv 2407.00737)."""

from __future__ import annotations

import json
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..attention.cross_adapter import HEADS, is_cross_adapter, read_adapter
from ..attention.ella import TimeResampler, is_ella, read_ella
from ..attention.ella_patch import apply_ella
from ..attention.folder_encoder import load_folder
from ..attention.llm_features import (
    ELLA_TOKENS,
    RELEASED_PREFIX,
    RELEASED_TOKENS,
    LoadedAdapter,
    Read,
    check_model,
    encode_pair,
    hold,
)
from ..attention.t5_encoder import load_t5, read_weights
from ..llm.hosting import NO_MODEL, folder_files, folder_state, language_dtype, register_folder
from ..llm.hosting import model_folder as llm_folder
from ..llm.hosting import model_names as llm_names

FOLDER_KEY = "cross_adapters"
EXTENSIONS = {".safetensors", ".pth", ".pt", ".bin"}
CrossAdapterSocket = io.Custom("ATELIER_CROSS_ADAPTER")
IN_FOLDER = "folder: "
"""What stands before the name of a transformers folder in the list of encoders."""


register_folder(FOLDER_KEY, EXTENSIONS, trained=True)


def state_of(file: Path | None) -> str:
    """Changes when the file does."""
    return str(file.stat().st_mtime_ns) if file else ""


class AtelierLoadCrossAdapter(io.ComfyNode):
    """An adapter from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadCrossAdapter",
            display_name="Load Cross-Adapter",
            category="Atelier/LLM4GEN",
            description="Loads a Cross-Adapter (LLM4GEN) or ELLA's connector from models/cross_adapters.",
            search_aliases=["LLM4GEN", "ELLA", "cross adapter", "projector", "llm features", "t5 adapter"],
            inputs=[
                io.Combo.Input(
                    "adapter",
                    options=sorted(folder_files(FOLDER_KEY)) or [NO_MODEL],
                    tooltip="A file in models/cross_adapters: LLM4GEN's projector.pth, ELLA's safetensors, or one "
                    "that Train Cross-Adapter has made.",
                )
            ],
            outputs=[CrossAdapterSocket.Output("adapter", tooltip="The adapter, for Cross-Adapter Encode.")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str) -> str:
        return state_of(folder_files(FOLDER_KEY).get(adapter))

    @classmethod
    def execute(cls, adapter: str) -> io.NodeOutput:
        file = folder_files(FOLDER_KEY).get(adapter)
        if file is None:
            folders = " or ".join(folder_paths.get_folder_paths(FOLDER_KEY))
            raise ValueError(
                f"There is no adapter {adapter}. Put projector.pth or another one into {folders}, press R."
            )
        return io.NodeOutput(open_adapter(file))


def open_adapter(file: Path) -> LoadedAdapter:
    """The adapter in a file. Raises ValueError when it is none, naming what does not fit."""
    weights, about = read_weights(file)
    if is_ella(weights):
        return hold(file.name, read_ella(weights), ELLA_TOKENS, "")
    if not is_cross_adapter(weights):
        raise ValueError(
            f"{file.name} is no adapter: it has neither CrossFusionModule nor connector weights, but "
            f"{', '.join(sorted(weights)[:3])} and others. A LoRA goes into models/loras."
        )
    module = read_adapter(weights, int(about.get("atelier.heads", HEADS)))
    tokens = int(about.get("atelier.llm_tokens", RELEASED_TOKENS))
    return hold(file.name, module, tokens, about.get("atelier.llm_prefix", RELEASED_PREFIX))


class AtelierLoadLLMEncoder(io.ComfyNode):
    """A language model as a text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadLLMEncoder",
            display_name="Load LLM Encoder",
            category="Atelier/LLM4GEN",
            description="Loads flan-t5, t5-v1_1 or RankGen of any size, which the stock loader takes for something "
            "else, or a language model in a transformers folder, for its features.",
            search_aliases=["T5", "flan-t5", "RankGen", "t5 xl", "text encoder", "LLM4GEN", "ELLA", "clip loader"],
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=encoder_names() or [NO_MODEL],
                    tooltip="A T5 file in models/text_encoders, or a transformers folder in models/LLM.",
                )
            ],
            outputs=[io.Clip.Output("llm", tooltip="The language model, for Cross-Adapter Encode, as a CLIP.")],
        )

    @classmethod
    def fingerprint_inputs(cls, encoder: str) -> str:
        if encoder.startswith(IN_FOLDER):
            folder = llm_folder(encoder.removeprefix(IN_FOLDER))
            return folder_state(folder) if folder else ""
        return state_of(folder_files("text_encoders").get(encoder))

    @classmethod
    def execute(cls, encoder: str) -> io.NodeOutput:
        if encoder.startswith(IN_FOLDER):
            folder = llm_folder(encoder.removeprefix(IN_FOLDER))
            if folder is not None:
                return io.NodeOutput(open_folder(folder))
        elif file := folder_files("text_encoders").get(encoder):
            return io.NodeOutput(load_t5([file], _embeddings()))
        folders = " or ".join(folder_paths.get_folder_paths("text_encoders"))
        raise ValueError(
            f"There is no encoder {encoder}. Put a T5 file into {folders}, or a transformers folder into models/LLM, "
            "and press R."
        )


def encoder_names() -> list[str]:
    """The files that may hold a T5 encoder, and the transformers folders."""
    return [*sorted(folder_files("text_encoders")), *(IN_FOLDER + name for name in llm_names())]


def open_folder(folder: Path) -> CLIP:
    """A transformers folder as a CLIP. T5's relatives run on the host's class, all others on transformers."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    if kind == "t5":
        return load_t5(sorted(folder.glob("*.safetensors")), _embeddings())
    return load_folder(folder, language_dtype())


def _embeddings() -> list[str]:
    return folder_paths.get_folder_paths("embeddings")


class AtelierCrossAdapterEncode(io.ComfyNode):
    """Two prompts through text encoder, language model and adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierCrossAdapterEncode",
            display_name="Cross-Adapter Encode",
            category="Atelier/LLM4GEN",
            description="Encodes a positive and a negative prompt with a language model's features beside the text "
            "encoder's, so that long prompts with many things are drawn as they say.",
            search_aliases=["LLM4GEN", "ELLA", "dense prompt", "long prompt", "attribute binding", "CLIPTextEncode"],
            inputs=[*_sockets(), *_prompts(), *_settings()],
            outputs=[
                io.Conditioning.Output("positive", tooltip="For the sampler."),
                io.Conditioning.Output("negative", tooltip="For the sampler. It has the length of the positive one."),
                io.Model.Output("model", tooltip="The model. With ELLA it is patched; else it is as it came."),
                io.String.Output("report", tooltip="How many tokens the language model read, and what was cut off."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: CLIP,
        llm: CLIP,
        adapter: LoadedAdapter,
        positive: str,
        negative: str,
        model: ModelPatcher | None = None,
        strength: float = 1.0,
        layer: int = 0,
    ) -> io.NodeOutput:
        for what, given in (("clip", clip), ("llm", llm)):
            if given is None:
                raise ValueError(f"The input {what} holds no text encoder. The checkpoint may have none.")
        if model is not None:
            check_model(model, adapter)
        conds = encode_pair(clip, llm, adapter, (positive, negative), strength, layer)
        if isinstance(adapter.module, TimeResampler) and strength != 0.0:
            if model is None:
                raise ValueError(
                    f"{adapter.name} is of ELLA, whose tokens change from step to step. Connect the model to this "
                    "node, and this node's model to the sampler."
                )
            model = apply_ella(model, adapter.patcher)
        return io.NodeOutput(conds[0], conds[1], model, _report(conds[2]))


def _sockets() -> list[io.Input]:
    return [
        io.Clip.Input("clip", tooltip="The model's own text encoder, with LoRAs if you like."),
        io.Clip.Input(
            "llm",
            tooltip="The language model that the adapter was trained with: Load LLM Encoder, or any text encoder of "
            "the host, such as Qwen, Gemma, Llama or T5.",
        ),
        CrossAdapterSocket.Input("adapter", tooltip="From Load Cross-Adapter."),
    ]


def _prompts() -> list[io.Input]:
    return [
        io.String.Input(
            "positive",
            default="",
            multiline=True,
            dynamic_prompts=True,
            tooltip="What you want to see. Weights and embeddings count for the text encoder alone.",
        ),
        io.String.Input(
            "negative",
            default="",
            multiline=True,
            dynamic_prompts=True,
            tooltip="What you do not want to see. It goes through the adapter too, as in the released code.",
        ),
    ]


def _settings() -> list[io.Input]:
    return [
        io.Model.Input("model", optional=True, tooltip="The model. ELLA needs it; LLM4GEN only checks that it fits."),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            optional=True,
            tooltip="How much the language model's tokens count. 0 is the text encoder alone. ELLA is on or off.",
        ),
        io.Int.Input(
            "layer",
            default=0,
            min=-128,
            max=0,
            optional=True,
            advanced=True,
            tooltip="Whose layer's features to take, from the end: -1 is the last. 0 is the encoder's own choice, "
            "which is the last for T5.",
        ),
    ]


def _report(read: tuple[Read, Read] | None) -> str:
    if read is None:
        return "Strength 0: the text encoder alone."
    lines = []
    for name, found in zip(("positive", "negative"), read, strict=True):
        lost = f"; {found.lost} more were cut off" if found.lost else ""
        lines.append(f"{name}: {found.used} tokens of {found.tokens}{lost}")
    return "\n".join(lines)
