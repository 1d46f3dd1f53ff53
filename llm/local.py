"""A transformers causal language model in a folder, held to the answer's form by a grammar while it decodes.

llguidance (the engine behind Guidance; github.com/guidance-ai/llguidance) turns the JSON schema into a mask of the
tokens that may come next, so the reply is valid JSON and a closed choice is one of its options whatever the weights
say. The host's memory management stays outside: `ready` hands over the model on its device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backend import SEEING, Hooks, LLMSetupError, Message, Reply, Request

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor, dtype
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

INSTALL_HINT = "LLM Local needs the grammar engine. Run in ComfyUI's Python environment: pip install llguidance"
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line. With free white space a weak model can write blanks until its tokens run out."""


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A loaded model with its tokenizer and the same vocabulary as llguidance reads it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    vocabulary: LLTokenizer


@dataclass(frozen=True)
class LocalLLM:
    """A model of `models/LLM`.

    Args:
        folder: the model's folder. It names the model in messages.
        state: changes when the files do.
        ready: puts the model on its device and returns it.
        max_tokens: longest reply.
    """

    folder: Path
    state: str
    ready: Callable[[], LocalModel] = field(repr=False, compare=False)
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 512
    hooks: Hooks = field(default=Hooks(), repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.folder.name

    def identity(self) -> tuple[Hashable, ...]:
        return str(self.folder), self.state, self.max_tokens

    def complete(self, request: Request) -> Reply:
        import torch

        if any(message.picture for message in request.messages):
            raise LLMSetupError(f"{self.name} reads text only. {SEEING}")
        local = self.ready()
        prompt = encode_chat(local.tokenizer, request.messages).to(local.model.device)
        grammar = Grammar(local.vocabulary, request.schema, prompt.shape[1])
        self._check_length(local.model, prompt.shape[1])
        devices = [prompt.device] if prompt.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):  # generate draws from the global generator
            torch.manual_seed(self.seed)
            tokens = local.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=self._generation(local),
                logits_processor=[grammar],
                stopping_criteria=[self._watcher(prompt.shape[1])],
            )[0, prompt.shape[1] :].tolist()
        done = bool(tokens) and tokens[-1] in local.vocabulary.eos_tokens
        text = local.tokenizer.decode(tokens, skip_special_tokens=True)
        return Reply(text, "grammar", "done" if done else "limit", prompt.shape[1], len(tokens))

    def _generation(self, local: LocalModel) -> Any:
        """Greedy at temperature 0, else plain sampling; the model folder's own sampling habits are left out."""
        from transformers import GenerationConfig

        sampling = {"temperature": self.temperature, "top_k": 0} if self.temperature > 0 else {}
        ends = local.vocabulary.eos_tokens
        return GenerationConfig(
            max_new_tokens=self.max_tokens,
            do_sample=self.temperature > 0,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **sampling,
        )

    def _watcher(self, length: int) -> Callable[..., bool]:
        """Called after each token: shows progress, and lets the host cancel."""
        show = self.hooks.progress(self.max_tokens)

        def watch(tokens: Tensor, scores: Tensor, **_: Any) -> Tensor:
            self.hooks.check()
            show(tokens.shape[1] - length)
            return tokens.new_zeros(tokens.shape[0], dtype=bool)

        return watch

    def _check_length(self, model: PreTrainedModel, length: int) -> None:
        most = getattr(model.config, "max_position_embeddings", None)
        if most is not None and length + self.max_tokens > most:
            raise LLMSetupError(
                f"The question has {length} tokens and the answer may have {self.max_tokens}, but {self.name} "
                f"takes {most} in all. Lower max_tokens, or take a model with a longer context."
            )


class Grammar:
    """A transformers logits processor that allows only what the JSON schema allows next.

    Args:
        vocabulary: the model's tokens.
        schema: JSON schema of the answer.
        length: tokens of the prompt; the grammar begins after them.
    """

    def __init__(self, vocabulary: LLTokenizer, schema: dict[str, Any], length: int) -> None:
        from llguidance import LLMatcher

        text = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
        self.matcher: LLMatcher = LLMatcher(vocabulary, text)
        if self.matcher.is_error():
            raise LLMSetupError(f"The answer's form is too much for the grammar: {self.matcher.get_error()}")
        self.seen = length

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """tokens [1, n] so far and scores [1, vocabulary] in; scores out, -inf where the grammar ends."""
        import numpy as np
        import torch

        self.matcher.consume_tokens(tokens[0, self.seen :].tolist())
        self.seen = tokens.shape[1]
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: scores.shape[1]]
        # A model's table is often padded beyond its vocabulary.
        allowed = np.pad(allowed, (0, scores.shape[1] - len(allowed))).astype(bool)
        return scores.masked_fill(torch.from_numpy(~allowed).to(scores.device), float("-inf"))


def open_model(folder: Path, dtype: dtype) -> LocalModel:
    """Load a model folder to the CPU: safetensors only, no code from the folder, no network.

    Raises:
        LLMSetupError: a package is missing, or the folder holds no model that can be used.
    """
    try:
        from llguidance.hf import from_tokenizer
    except ImportError:
        raise LLMSetupError(INSTALL_HINT) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=dtype, **safe).eval()
    except Exception as error:  # what a damaged folder raises depends on where it is damaged
        raise LLMSetupError(
            f"{folder} cannot be loaded as a language model ({_first_line(error)}). It needs config.json, "
            "*.safetensors and tokenizer.json of a text model that transformers knows without code of its own."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise LLMSetupError(f"{folder} has no fast tokenizer. Download its tokenizer.json as well.")
    ends = _ends(model, tokenizer)
    if not ends:
        raise LLMSetupError(f"{folder} names no token that ends a reply. Download its generation_config.json as well.")
    vocabulary = from_tokenizer(tokenizer, n_vocab=max(len(tokenizer), model.config.vocab_size), eos_token=ends)
    return LocalModel(model, tokenizer, vocabulary)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that end a reply: chat models often have two, that of the turn and that of the text."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return [end for end in dict.fromkeys([*ends, tokenizer.eos_token_id]) if end is not None]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def encode_chat(tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...]) -> Tensor:
    """The conversation as tokens [1, n] up to where the model speaks, in the model's own chat template.

    Special tokens of this tokenizer that stand in a message lose their meaning. A template that takes no system
    role gets that text as the start of the first user turn; without a template the turns are plain paragraphs.
    """
    turns = [{"role": turn.role, "content": _plain(tokenizer, turn.content)} for turn in messages]
    if tokenizer.chat_template is None:
        text = "\n\n".join(turn["content"] for turn in turns) + "\n\n"
        return tokenizer(text, return_tensors="pt").input_ids
    options = {"add_generation_prompt": True, "enable_thinking": False, "return_dict": True, "return_tensors": "pt"}
    try:
        return tokenizer.apply_chat_template(turns, **options)["input_ids"]
    except Exception:  # what a template raises is up to the template
        merged = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return tokenizer.apply_chat_template([merged, *turns[2:]], **options)["input_ids"]


def _plain(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The text with a space in each string that this vocabulary holds as one added token, as `neutralise` does.

    Plain words and runs of blanks that were added to a vocabulary are no markers; they stay.
    """
    for added in tokenizer.added_tokens_decoder.values():
        token = str(added)
        if len(token) > 2 and not token.isalnum() and not token.isspace():
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
