"""The edit plan node: a compound wish becomes single instructions."""

from __future__ import annotations

import json
from dataclasses import asdict

from comfy_api.latest import io

from ..llm.backend import LLM
from ..llm.edit_plan import plan_edit
from ..llm.llm_parser import OnError
from .llm import LLMSocket


class AtelierEditPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierEditPlan",
            display_name="Edit Plan",
            category="Atelier/Edit",
            description="Splits a wish for several changes into single edit instructions, in order.",
            search_aliases=[
                "edit planning",
                "split instructions",
                "compound edit",
                "sequential edits",
                "instruct pix2pix",
                "multi-turn edit",
            ],
            inputs=[
                io.String.Input(
                    "wish",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="make it night and turn the car red, then put it in Paris",
                    tooltip="What to change in the picture, in your own words; as many changes as you like.",
                ),
                LLMSocket.Input(
                    "llm",
                    optional=True,
                    tooltip="The language model that splits the wish. Without one, rules split it, in English.",
                ),
                io.Boolean.Input(
                    "keep_weak",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keep what InstructPix2Pix does badly in the plan: counting, moving things, "
                    "another viewpoint. The report warns of it. Off: it is left out.",
                ),
                io.Combo.Input(
                    "on_error",
                    options=["rules", "stop"],
                    default="rules",
                    optional=True,
                    advanced=True,
                    tooltip="When the language model gives no usable answer: "
                    "let the rules split the wish and say why in the report, or stop the run.",
                ),
            ],
            outputs=[
                io.String.Output("instructions", tooltip="The single instructions, one per line, in order."),
                io.Int.Output("count", tooltip="How many instructions there are: 1 to 8."),
                io.String.Output("report", tooltip="The plan, and what was left out of it and why."),
                io.String.Output("trace", tooltip="The same and the calls of the language model, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls, wish: str, llm: LLM | None = None, keep_weak: bool = False, on_error: OnError = "rules"
    ) -> io.NodeOutput:
        plan = plan_edit(wish, llm, on_error, keep_weak)
        trace = json.dumps(asdict(plan), ensure_ascii=False, indent=2)
        return io.NodeOutput("\n".join(plan.steps), len(plan.steps), plan.report, trace)
