"""The parser node: a wish in plain words becomes a prompt."""

from __future__ import annotations

import json
from dataclasses import asdict

from comfy_api.latest import io

from ..llm.parser import parse


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
                "diffusiongpt",
            ],
            inputs=[
                io.String.Input(
                    "wish",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="I want a picture of a red star above a blue square, without text",
                    tooltip="What you want to see, in your own words: "
                    "a prompt, an instruction, a mood, a what-if.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt", tooltip="What to show. A wish that is a prompt comes out unchanged."
                ),
                io.String.Output(
                    "negative", tooltip="What to leave out, for the negative prompt. Often empty."
                ),
                io.String.Output("kind", tooltip="prompt, instruction, inspiration or hypothesis."),
                io.String.Output("trace", tooltip="The outputs and the rules that led to them, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, wish: str) -> io.NodeOutput:
        parsed = parse(wish)
        trace = json.dumps(asdict(parsed), ensure_ascii=False, indent=2)
        return io.NodeOutput(parsed.prompt, parsed.negative, parsed.kind, trace)
