"""The parser node: a wish in plain words becomes a prompt."""

from __future__ import annotations

import json
from dataclasses import asdict

from comfy_api.latest import io

from ..llm.backend import LLM
from ..llm.llm_parser import OnError, read_wish
from .llm import LLMSocket


class AtelierPromptParser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPromptParser",
            display_name="LLM Prompt Parser",
            category="Atelier/Parse",
            description="Reads a wish in plain words and tells what to show and what to leave out.",
            search_aliases=[
                "wish",
                "prompt parser",
                "instruction to prompt",
                "negative prompt",
                "translate prompt",
                "diffusiongpt",
            ],
            inputs=[
                io.String.Input(
                    "wish",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="I want a picture of a red star above a blue square, without text",
                    tooltip="What you want to see, in your own words: a prompt, an instruction, a mood, a what-if.",
                ),
                LLMSocket.Input(
                    "llm",
                    optional=True,
                    tooltip="The language model that reads the wish. Without one, rules read it, in English.",
                ),
                io.Combo.Input(
                    "on_error",
                    options=["rules", "stop"],
                    default="rules",
                    optional=True,
                    advanced=True,
                    tooltip="When the language model gives no usable answer: "
                    "let the rules read the wish and say why in the trace, or stop the run.",
                ),
            ],
            outputs=[
                io.String.Output("prompt", tooltip="What to show. A wish that is a prompt comes out unchanged."),
                io.String.Output("negative", tooltip="What to leave out, for the negative prompt. Often empty."),
                io.String.Output("kind", tooltip="prompt, instruction, inspiration or hypothesis."),
                io.String.Output("trace", tooltip="The outputs and how they came about, as JSON."),
                io.String.Output("style_words", tooltip="How it is to be drawn, separated by commas. Often empty."),
                io.String.Output(
                    "edit_instruction",
                    tooltip="What to change in a picture that is there already. Empty for a wish for a new one.",
                ),
                io.String.Output(
                    "language", tooltip="The language of the wish as a BCP-47 code; und if it cannot be told."
                ),
                io.String.Output(
                    "english",
                    tooltip="The prompt in English. Another language is translated by the language model; "
                    "without one, this is empty.",
                ),
            ],
        )

    @classmethod
    def execute(cls, wish: str, llm: LLM | None = None, on_error: OnError = "rules") -> io.NodeOutput:
        read = read_wish(wish, llm, on_error)
        return io.NodeOutput(
            read.prompt,
            read.negative,
            read.kind,
            json.dumps(asdict(read), ensure_ascii=False, indent=2),
            ", ".join(read.style_words),
            read.edit_instruction,
            read.language,
            read.english,
        )
