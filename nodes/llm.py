"""Nodes that make a language model available to the pack's other nodes, through one LLM socket."""

from __future__ import annotations

import folder_paths
from comfy.sd import CLIP
from comfy_api.latest import io

from ..llm.backend import LLM_TYPE
from ..llm.from_clip import ClipLLM, find_generator
from ..llm.hosting import (
    FOLDER_KEY,
    HOST_HOOKS,
    NO_MODEL,
    folder_state,
    load,
    model_folder,
    model_names,
    profiles_folder,
    register_folder,
)
from ..llm.local import LocalLLM
from ..llm.server import ServerLLM

LLMSocket = io.Custom(LLM_TYPE)

register_folder()


def _output() -> io.Output:
    return LLMSocket.Output(display_name="llm", tooltip="The language model, for the LLM input of other Atelier nodes.")


def _temperature() -> io.Input:
    return io.Float.Input(
        "temperature",
        default=0.0,
        min=0.0,
        max=2.0,
        step=0.05,
        tooltip="How varied the answers are. 0 always takes the likeliest word.",
    )


def _seed() -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFF,
        # Another seed asks everything again, so the front end must not draw one for each run.
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="Start of the random choices. The same seed and question are asked once, then remembered.",
    )


def _max_tokens(default: int) -> io.Input:
    return io.Int.Input(
        "max_tokens",
        default=default,
        min=16,
        max=131072,
        advanced=True,
        tooltip="The longest answer, in tokens. Reasoning counts too.",
    )


class AtelierLLMServer(io.ComfyNode):
    """A model on an OpenAI-compatible server."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLLMServer",
            display_name="LLM Server",
            category="Atelier/LLM",
            description="A language model on any OpenAI-compatible server: Ollama, LM Studio, llama.cpp, vLLM, hosted.",
            search_aliases=["ollama", "lm studio", "llama.cpp", "vllm", "openai", "chatgpt", "language model", "api"],
            inputs=[
                io.String.Input(
                    "base_url",
                    default="http://127.0.0.1:11434/v1",
                    tooltip="Address of the server, up to and with /v1. May be empty if the profile names the server.",
                ),
                io.String.Input(
                    "model",
                    default="",
                    placeholder="qwen3:4b",
                    tooltip="The model's name on that server.",
                ),
                io.String.Input(
                    "profile",
                    default="",
                    placeholder="none",
                    tooltip="Name of the profile that holds the key, never the key itself. Empty sends no key.",
                ),
                _temperature(),
                _seed(),
                io.Float.Input(
                    "timeout",
                    default=120.0,
                    min=1.0,
                    max=3600.0,
                    step=1.0,
                    tooltip="Seconds that one call may take, waiting for a busy server included.",
                ),
                io.Int.Input(
                    "keep_alive",
                    default=-1,
                    min=-1,
                    max=86400,
                    advanced=True,
                    tooltip="Only for Ollama: seconds that the model stays loaded after an answer. "
                    "0 unloads it at once and frees the VRAM; -1 leaves it to the server.",
                ),
                _max_tokens(2048),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(
        cls,
        base_url: str,
        model: str,
        profile: str,
        temperature: float,
        seed: int,
        timeout: float,
        keep_alive: int,
        max_tokens: int,
    ) -> io.NodeOutput:
        llm = ServerLLM(
            base_url=base_url.strip().rstrip("/"),
            model=model.strip(),
            profile=profile.strip(),
            temperature=temperature,
            seed=seed,
            timeout=timeout,
            max_tokens=max_tokens,
            keep_alive=keep_alive,
            profiles_folder=profiles_folder(),
            hooks=HOST_HOOKS,
        )
        llm.check()
        return io.NodeOutput(llm)


class AtelierLLMLocal(io.ComfyNode):
    """A transformers model folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLLMLocal",
            display_name="LLM Local",
            category="Atelier/LLM",
            description="A language model from models/LLM. Its answers always have the right form.",
            search_aliases=["transformers", "local llm", "qwen", "llama", "language model", "offline", "grammar"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_names() or [NO_MODEL],
                    tooltip="A folder in models/LLM with config.json, safetensors and tokenizer.json.",
                ),
                _temperature(),
                _seed(),
                _max_tokens(512),
            ],
            outputs=[_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str = NO_MODEL, **inputs: object) -> str:
        folder = model_folder(model)
        return f"{folder_state(folder) if folder else ''} {model} {sorted(inputs.items())}"

    @classmethod
    def execute(cls, model: str, temperature: float, seed: int, max_tokens: int) -> io.NodeOutput:
        folder = model_folder(model)
        if folder is None:
            what = "No language model is installed" if model == NO_MODEL else f"There is no language model {model}"
            raise ValueError(
                f"{what}. Put the folder of one into {' or '.join(folder_paths.get_folder_paths(FOLDER_KEY))}, with "
                "config.json, *.safetensors and tokenizer.json, then press R. A GGUF file needs a server such as "
                "Ollama or llama.cpp, and the LLM Server node."
            )
        llm = LocalLLM(
            folder=folder,
            state=folder_state(folder),
            ready=load(folder),
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
            hooks=HOST_HOOKS,
        )
        return io.NodeOutput(llm)


class AtelierLLMFromClip(io.ComfyNode):
    """The text encoder that is loaded anyway."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLLMFromClip",
            display_name="LLM from CLIP",
            category="Atelier/LLM",
            description="Uses a loaded text encoder that can write text as language model. Needs no further memory.",
            search_aliases=["text encoder", "generate text", "qwen3", "gemma", "ministral", "language model"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="A text encoder that can write: Qwen3, Qwen3-VL, Qwen3.5, Gemma 2 to 4, Ministral 3.",
                ),
                _temperature(),
                _seed(),
                _max_tokens(512),
            ],
            outputs=[_output()],
        )

    @classmethod
    def execute(cls, clip: CLIP, temperature: float, seed: int, max_tokens: int) -> io.NodeOutput:
        find_generator(clip)
        return io.NodeOutput(ClipLLM(clip, temperature, seed, max_tokens, HOST_HOOKS))
