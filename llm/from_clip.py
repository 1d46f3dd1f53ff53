"""The generation-capable text encoder that a workflow has already loaded, as an LLM.

The host's CLIP object can generate if its text model is a decoder (Qwen3, Gemma, Ministral). Chat turns are written
here, because the host's own templates have no system turn and would read markers in user text as turns
(a prompt that begins with a marker switches them off). The object is used through `tokenize`, `generate` and
`decode` only, as the host's own text generation node does.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import uuid
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .backend import SEEING, Hooks, LLMSetupError, Message, Picture, Reply, Request

CANNOT_GENERATE = (
    "This text encoder cannot write text: it only encodes. Load one that can with Load CLIP, for example a Qwen3, "
    "Qwen3-VL or Qwen3.5 model, Gemma 2, 3 or 4, or Ministral 3, as they come with Z-Image, Flux.2 Klein, "
    "Lumina 2 and LTX-2. Or take the LLM Server or the LLM Local node."
)


@dataclass(frozen=True)
class ChatFormat:
    """How a family of models writes turns. `marker` is a token that its vocabulary has."""

    marker: str
    system: str
    user: str
    assistant: str
    opening: str
    """What the model's own turn begins with; an empty thought keeps a thinking model from thinking."""
    picture: str = ""
    """What stands in a turn for its picture; the host's tokenizer puts the picture there."""


FORMATS = (
    ChatFormat(
        "<|turn>",
        "<|turn>system\n{}<turn|>\n",
        "<|turn>user\n{}<turn|>\n",
        "<|turn>model\n{}<turn|>\n",
        "<|turn>model\n<|channel>thought\n<channel|>",
        "<|image><|image|><image|>\n\n",
    ),
    ChatFormat(
        "<start_of_turn>",
        "<start_of_turn>system\n{}<end_of_turn>\n",
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n{}<end_of_turn>\n",
        "<start_of_turn>model\n",
        "<image_soft_token>\n\n",
    ),
    ChatFormat(
        "<|im_start|>",
        "<|im_start|>system\n{}<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n",
        "<|im_start|>assistant\n{}<|im_end|>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    ChatFormat("[INST]", "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]", "[INST]{}[/INST]", "{}</s>", ""),
)
PLAIN = ChatFormat("", "{}\n\n", "{}\n\n", "{}\n\n", "")

_EMBEDDING = re.compile(r"(?<=\s)embedding:")
_MARKER = re.compile(r"<\|?/?\w+\|?>|\[/?[A-Z_]+\]")
"""What a token looks like that structures a conversation."""


@functools.cache
def _names() -> WeakKeyDictionary[Any, str]:
    """A name for each text encoder that is alive, so that cached answers of a dead one are never taken."""
    return WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class ClipLLM:
    """A host CLIP that can generate. `max_tokens` is the longest reply."""

    clip: Any = field(repr=False)
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 512
    hooks: Hooks = field(default=Hooks(), repr=False)

    @property
    def name(self) -> str:
        return f"The text encoder {type(find_generator(self.clip)).__name__}"

    def identity(self) -> tuple[Hashable, ...]:
        model = self.clip.cond_stage_model
        return _names().setdefault(model, uuid.uuid4().hex), str(self.clip.patcher.patches_uuid), self.max_tokens

    def complete(self, request: Request) -> Reply:
        tokens, generator = encode_chat(self.clip, request.messages), find_generator(self.clip)
        shown = sum(message.picture is not None for message in request.messages)
        # Tokenizers and models that know no pictures leave them out without a word.
        if shown and (_pictures(tokens) != shown or not hasattr(generator, "preprocess_embed")):
            raise LLMSetupError(f"{self.name} reads text only. {SEEING}")
        with _watched(generator, self.hooks.check):
            # The host shows progress by itself while it generates.
            written = self.clip.generate(
                tokens,
                do_sample=self.temperature > 0,
                max_length=self.max_tokens,
                temperature=self.temperature or 1.0,
                top_k=0,
                top_p=1.0,
                seed=self.seed,
            )
        ended = "limit" if len(written) >= self.max_tokens else "done"
        return Reply(self.clip.decode(written), "text", ended, len(next(iter(tokens.values()))[0]), len(written))


def find_generator(clip: Any) -> Any:
    """The part of a text encoder that writes text.

    Raises:
        LLMSetupError: it has none.
    """
    if clip is None:
        raise LLMSetupError("No text encoder came in: that checkpoint holds none. Load one with Load CLIP.")
    for module in clip.cond_stage_model.modules():
        # The wrappers around a model have `generate` in any case; only a decoder has logits to draw from.
        if callable(getattr(module, "generate", None)) and callable(getattr(module, "logits", None)):
            return module
    raise LLMSetupError(CANNOT_GENERATE)


def encode_chat(clip: Any, messages: tuple[Message, ...]) -> dict[str, list[list[tuple[Any, ...]]]]:
    """The conversation as host tokens, up to where the model speaks. One picture at the most is among them.

    Raises:
        LLMSetupError: a message holds something that this vocabulary reads as the structure of a conversation.
    """
    vocabulary = _vocabulary(clip)
    chat = next((known for known in FORMATS if known.marker in vocabulary.values()), PLAIN)

    pictures = [turn.picture for turn in messages if turn.picture is not None]
    media = {"image": _pixels(pictures[0])} if pictures else {}

    def tokenize(turns: tuple[Message, ...]) -> dict[str, list[list[tuple[Any, ...]]]]:
        said = [(turn.role, (chat.picture if turn.picture else "") + turn.content) for turn in turns]
        text = "".join(getattr(chat, role).format(content) for role, content in said) + chat.opening
        return clip.tokenize(_verbatim(text), llama_template="{}", skip_template=True, min_length=1, **media)

    def structure(tokens: dict[str, list[list[tuple[Any, ...]]]]) -> int:
        marks = {number for number, text in vocabulary.items() if _MARKER.fullmatch(text)}
        return sum(not isinstance(item[0], int) or item[0] in marks for item in next(iter(tokens.values()))[0])

    tokens = tokenize(messages)
    # Markers are taken apart before they come here. Should one be unknown there, its tokens give it away.
    if structure(tokens) != structure(tokenize(tuple(replace(turn, content="x") for turn in messages))):
        raise LLMSetupError("The text holds a marker of this model's conversations, such as <|im_start|>. Take it out.")
    return tokens


def _pixels(picture: Picture) -> Tensor:
    """A picture as the host has it: float [1, height, width, 3] from 0 to 1."""
    with Image.open(io.BytesIO(picture.jpeg)) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"), dtype=np.float32) / 255.0)[None]


def _pictures(tokens: dict[str, list[list[tuple[Any, ...]]]]) -> int:
    """How many pictures are among the tokens."""
    return sum(isinstance(item[0], dict) and item[0].get("type") == "image" for item in next(iter(tokens.values()))[0])


def _vocabulary(clip: Any) -> dict[int, str]:
    """Token number -> text of the tokenizer inside the host's wrappers."""
    wrapper = clip.tokenizer
    inner = getattr(wrapper, getattr(wrapper, "clip", ""), wrapper)
    return getattr(inner, "inv_vocab", {})


def _verbatim(text: str) -> str:
    """The text so that the host's prompt syntax has no effect on it.

    The host reads `(word:1.2)` as a weight in some encoders and takes the backslash off brackets in all, so each
    bracket gets one; `embedding:` after a blank would put a file in, so it gets an invisible joint.
    """
    return _EMBEDDING.sub("embedding\u2060:", re.sub(r"[()]", r"\\\g<0>", text))


@contextlib.contextmanager
def _watched(generator: Any, check: Callable[[], None]) -> Iterator[None]:
    """Let the host cancel before each token: it embeds the last one every time."""
    hook = generator.model.embed_tokens.register_forward_pre_hook(lambda *_: check())
    try:
        yield
    finally:
        hook.remove()
