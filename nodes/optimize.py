"""Nodes that rewrite a prompt before it is drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..feedback.scorers import Scorer
from ..llm.backend import LLM
from ..llm.dropout import drop_words
from ..llm.hosting import POLICY_KEY, folder_state, load_policy, policy_folder, policy_names, register_folder
from ..llm.optimize import best_of, optimize
from ..llm.promptist import POLICY_TYPE, Policy
from .drawing import drawing_settings, drawing_sockets, picture_reward
from .llm import NO_MODEL, LLMSocket
from .train import watch

PolicySocket = io.Custom(POLICY_TYPE)
PICTURES = 2
"""Small pictures of each candidate, if none are asked for."""

register_folder(POLICY_KEY, trained=True)


class AtelierLoadPromptPolicy(io.ComfyNode):
    """A GPT-2 that was trained to optimize prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadPromptPolicy",
            display_name="Load Prompt Policy",
            category="Atelier/Optimize",
            description="Loads a Promptist policy from models/prompt_optimizers, for the Prompt Optimizer.",
            search_aliases=["promptist", "gpt-2", "gpt2", "prompt expansion", "prompt generator", "prompt enhancer"],
            inputs=[
                io.Combo.Input(
                    "policy",
                    options=policy_names() or [NO_MODEL],
                    tooltip="A folder in models/prompt_optimizers with config.json, model.safetensors or "
                    "pytorch_model.bin, and tokenizer.json or vocab.json.",
                ),
            ],
            outputs=[PolicySocket.Output(display_name="policy", tooltip="For Prompt Optimizer.")],
        )

    @classmethod
    def fingerprint_inputs(cls, policy: str = NO_MODEL) -> str:
        folder = policy_folder(policy)
        return f"{policy} {folder_state(folder) if folder else ''}"

    @classmethod
    def execute(cls, policy: str) -> io.NodeOutput:
        folder = policy_folder(policy)
        if folder is None:
            what = "No prompt policy is installed" if policy == NO_MODEL else f"There is no prompt policy {policy}"
            raise ValueError(
                f"{what}. Put the folder of one into {' or '.join(folder_paths.get_folder_paths(POLICY_KEY))}, with "
                "config.json, model.safetensors or pytorch_model.bin, and tokenizer.json or vocab.json, then press R."
            )
        return io.NodeOutput(load_policy(folder))


class AtelierPromptOptimizer(io.ComfyNode):
    """Writes a prompt as an image model likes it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPromptOptimizer",
            display_name="Prompt Optimizer",
            category="Atelier/Optimize",
            description="Adds to a prompt what makes pictures better, and keeps all that is in it. "
            "With a Promptist policy, a language model, or both. With a model and a scorer it draws small pictures of "
            "all candidates and takes the best.",
            search_aliases=[
                "promptist",
                "prompt enhancer",
                "prompt expansion",
                "magic prompt",
                "improve prompt",
                "best of n",
            ],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="The prompt. Each of its words, and weights, tags, embeddings, choices and BREAK stay.",
                ),
                PolicySocket.Input(
                    "policy",
                    optional=True,
                    tooltip="The policy of Load Prompt Policy. It styles the prompt; it reads English.",
                ),
                LLMSocket.Input(
                    "llm",
                    optional=True,
                    tooltip="A language model. Alone it styles the prompt; with a policy it makes the prompt clear "
                    "and English first.",
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=32,
                    optional=True,
                    tooltip="Most candidates. There may be fewer: those that lose a word of yours are dropped.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    # Another seed asks everything again, so the front end must not draw one for each run.
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    optional=True,
                    tooltip="Of the language model, in place of its own, and of the noise of the small pictures. A "
                    "policy alone makes no random choices.",
                ),
                io.Int.Input(
                    "beams",
                    default=8,
                    min=1,
                    max=32,
                    optional=True,
                    advanced=True,
                    tooltip="Width of the policy's beam search. It gives no more candidates than beams.",
                ),
                io.Combo.Input(
                    "on_error",
                    options=["go on", "stop"],
                    default="go on",
                    optional=True,
                    advanced=True,
                    tooltip="When the language model gives no usable answer: go on without it and say why in the "
                    "trace, or stop the run.",
                ),
                *drawing_sockets(
                    "Turns the reward on: small pictures of each candidate are drawn, and the candidate whose pictures "
                    "gain most by this scorer over those of your prompt comes first. Link model, clip and vae too.",
                    "Added to the reward: how well the pictures fit your prompt.",
                ),
                *drawing_settings(PICTURES, advanced=True),
            ],
            outputs=[
                io.String.Output("prompt", tooltip="The best candidate; the prompt as it was if there is none."),
                io.String.Output(
                    "candidates",
                    is_output_list=True,
                    tooltip="All candidates, the best first. Nodes behind this output run once for each.",
                ),
                io.String.Output("trace", tooltip="Candidates with scores, what was dropped and why, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        policy: Policy | None = None,
        llm: LLM | None = None,
        count: int = 4,
        seed: int = 0,
        beams: int = 8,
        on_error: str = "go on",
        model: ModelPatcher | None = None,
        clip: CLIP | None = None,
        vae: VAE | None = None,
        scorer: Scorer | None = None,
        relevance: Scorer | None = None,
        pictures: int = PICTURES,
        **drawing: Any,
    ) -> io.NodeOutput:
        voice = replace(llm, seed=seed) if llm is not None else None
        reward = None
        if scorer is not None or relevance is not None:
            say = watch(str(cls.hidden.unique_id), 0).say
            reward = picture_reward(
                "Candidates are drawn and scored.", model, clip, vae, scorer, relevance, say, pictures, **drawing
            )
        made = optimize(prompt, policy, voice, count, beams, strict=on_error == "stop")
        if reward is not None:
            made = best_of(prompt, made, reward, seed)
        trace = json.dumps(asdict(made), ensure_ascii=False, indent=2)
        return io.NodeOutput(made.prompt, [candidate.text for candidate in made.candidates], trace)


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
