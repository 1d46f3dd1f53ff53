"""Nodes that rewrite a prompt before it is drawn."""

from __future__ import annotations

from comfy_api.latest import io

from ..llm.dropout import drop_words


class AtelierPromptDropout(io.ComfyNode):
    """Leaves out random words of a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPromptDropout",
            display_name="Prompt Dropout",
            category="Atelier/Optimize",
            description="Leaves out random words of a prompt, so that pictures differ more. Prompt syntax stays.",
            search_aliases=["word dropout", "random words", "prompt variation", "diversity", "FABRIC"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="The prompt. Weights, tags, embeddings, choices and BREAK in it are never touched.",
                ),
                io.Float.Input(
                    "p",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Probability that a word is left out, for each word by itself. One word always stays.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Start of the random choices. The same seed leaves out the same words.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="How many prompts to make, with the seeds seed, seed + 1 and so on. "
                    "Nodes behind this one run once for each.",
                ),
            ],
            outputs=[
                io.String.Output("prompts", is_output_list=True, tooltip="The prompt without the words, count times."),
                io.String.Output("dropped", is_output_list=True, tooltip="The words that were left out of each."),
            ],
        )

    @classmethod
    def execute(cls, prompt: str, p: float, seed: int, count: int) -> io.NodeOutput:
        made = [drop_words(prompt, p, seed + number) for number in range(count)]
        return io.NodeOutput([one.prompt for one in made], [" ".join(one.words) for one in made])
