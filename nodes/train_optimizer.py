"""The node that trains a prompt policy (Promptist, arXiv 2212.09611)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.utils import ProgressBar
from comfy_api.latest import io
from PIL import Image

from ..feedback.scorers import Scorer, label
from ..feedback.store import default_url, open_store
from ..llm.backend import LLM
from ..llm.content_guard import plain_words
from ..llm.hosting import POLICY_KEY, load_policy, policy_folder
from ..llm.promptist import Policy
from ..training.curve import draw_curve, read_log
from ..training.host_edit import Watch
from ..training.host_prompt_rl import PictureReward
from ..training.host_unet import digest
from ..training.loop import STATE, Plan
from ..training.policy_curve import draw_policy
from ..training.policy_files import Weights, copy_model, save_policy, weights_of
from ..training.prompt_pairs import make_pairs, split_prompt
from ..training.prompt_rl import Example, Method, ReinforcePlan, reinforce
from ..training.prompt_sft import SupervisedRun, fine_tune, kept_pairs
from ..training.prompt_sources import prompts_of_file, prompts_of_pictures, prompts_of_store
from .as_image import as_image
from .drawing import drawing_settings, drawing_sockets, picture_reward
from .llm import LLMSocket
from .optimize import PolicySocket
from .train import places, watch

BOTH, SUPERVISED, REINFORCEMENT = "both", "supervised", "reinforcement"
METHODS: tuple[Method, ...] = ("ppo", "group")
BATCH = 16
"""Pairs in a batch of the supervised stage."""
WARMUP = 20
PICTURES = 3
"""Of each candidate, as in the paper."""


class AtelierTrainPromptOptimizer(io.ComfyNode):
    """A prompt policy that learns from good prompts, and from the scores of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierTrainPromptOptimizer",
            display_name="Train Prompt Optimizer",
            category="Atelier/Train",
            description="Teaches a prompt policy from good prompts, and then from what a scorer or your own taste "
            "says of the pictures that your model draws. A training that was interrupted goes on when it is queued "
            "again.",
            search_aliases=["Promptist", "PPO", "GRPO", "reinforcement learning", "RLHF", "train prompt", "fine-tune"],
            inputs=[*_sources(), *_pictures(), *_settings()],
            outputs=[
                PolicySocket.Output("policy", tooltip="The trained policy, for Prompt Optimizer."),
                io.String.Output("policy_name", tooltip="The name under which Load Prompt Policy has it."),
                io.Image.Output("curve", tooltip="Reward, KL divergence and length over the steps, as a picture."),
                io.String.Output("report", tooltip="What was learned from and how it ended."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, prompts: str | None = None, **_: object) -> str | float:
        """Prompts of a file, a folder or the store can change; a linked text is not known yet."""
        return prompts if prompts and len(prompts.split("\n")) > 1 else float("nan")

    @classmethod
    def execute(
        cls,
        policy: Policy,
        prompts: str,
        name: str,
        stage: str,
        steps: int,
        seed: int,
        model: ModelPatcher | None = None,
        clip: CLIP | None = None,
        vae: VAE | None = None,
        scorer: Scorer | None = None,
        relevance: Scorer | None = None,
        llm: LLM | None = None,
        method: Method = "ppo",
        supervised_steps: int = 1000,
        prompts_per_step: int = 8,
        candidates: int = 4,
        learning_rate: float = 5e-5,
        kl_weight: float = 0.2,
        kl_limit: float = 10.0,
        pictures: int = PICTURES,
        **drawing: Any,
    ) -> io.NodeOutput:
        told = watch(str(cls.hidden.unique_id), steps)
        training = _Training(policy, *_places(name), _read_prompts(prompts), seed, learning_rate, told)
        if stage != SUPERVISED:
            plan = ReinforcePlan(steps, method, prompts_per_step, candidates, learning_rate, kl_weight, kl_limit, seed)
            why = "Reinforcement learning draws and scores pictures."
            reward = picture_reward(why, model, clip, vae, scorer, relevance, told.say, pictures, **drawing)
        comfy.model_management.unload_all_models()
        with torch.inference_mode(False):
            if stage != REINFORCEMENT:
                training.supervise(supervised_steps, llm)
            if stage != SUPERVISED:
                training.reinforce(plan, reward)
        return io.NodeOutput(
            load_policy(training.target), training.target.name, as_image(training.curve), "\n".join(training.report)
        )


@dataclass
class _Training:
    """One training: its policy so far, and where it is kept. `report` and `curve` tell how it went."""

    policy: Policy
    target: Path
    folder: Path
    prompts: Sequence[str]
    seed: int
    learning_rate: float
    watch: Watch

    def __post_init__(self) -> None:
        self.report = [f"{len(self.prompts)} prompts."]
        self.curve: Image.Image | None = None

    def supervise(self, steps: int, llm: LLM | None) -> None:
        folder = self.folder / SUPERVISED
        of = json.dumps([list(self.prompts), self.seed, llm.name if llm is not None else ""])
        pairs = kept_pairs(
            self.folder / "pairs.json",
            of,
            lambda: make_pairs(
                self.prompts, self.seed, llm, check=comfy.model_management.throw_exception_if_processing_interrupted
            ),
        )
        bar = ProgressBar(steps)

        def each_step(step: int, loss: float) -> None:
            bar.update_absolute(step, steps)
            self.watch.say(f"Supervised: step {step} of {steps}, loss {loss:.4f}")

        plan = Plan(steps, self.learning_rate, self.seed, warmup=WARMUP)
        run = SupervisedRun(pairs, plan, BATCH, folder)
        weights = fine_tune(self.policy, run, _device(), self._start(), each_step=each_step)
        if not (self.folder / REINFORCEMENT / STATE).exists():  # what was learned later stays
            self._keep(weights)
        trained = copy_model(self.policy.ready(), weights)
        self.policy = replace(self.policy, ready=lambda: trained)
        rows = read_log(folder)
        self.curve = draw_curve(self.target.name, rows)
        self.report.append(f"Supervised: {len(pairs)} pairs, {steps} steps, loss {rows[-1]['loss']:.4f}.")

    def reinforce(self, plan: ReinforcePlan, reward: PictureReward) -> None:
        folder, bar = self.folder / REINFORCEMENT, ProgressBar(plan.steps)
        rows = read_log(folder)
        shown: list[Example] = []

        def progress(step: int, row: dict[str, float], examples: Sequence[Example]) -> None:
            rows.append(row)
            shown[:] = examples
            bar.update_absolute(step, plan.steps, ("JPEG", draw_policy("", rows, shown), None))
            self.watch.say(f"Step {step} of {plan.steps}, reward {row['reward']:.3f}, KL {row['kl']:.2f}")

        content = [split_prompt(plain_words(prompt))[0] for prompt in self.prompts]
        about = json.dumps([self._start(), *_told(reward)])
        found = reinforce(self.policy, content, reward, plan, folder, _device(), self._keep, progress, about)
        self._keep(found.weights)
        rows = read_log(folder)
        self.curve = draw_policy(self.target.name, rows, shown)
        self.report.append(
            f"Reinforcement: {found.steps} steps; {found.why}. Mean reward of the first step {rows[0]['reward']:.3f}, "
            f"of the last {rows[-1]['reward']:.3f}. The policy that was kept has {found.score:.3f}, less its KL term."
        )
        self.report += [f"{one.reward:+.3f}  {one.prompt} → {one.text}" for one in shown]

    def _keep(self, weights: Weights) -> None:
        save_policy(self.target, self.policy.ready(), self.policy.tokenizer, weights)

    def _start(self) -> str:
        return digest(weights_of(self.policy.ready()).values())


def _told(reward: PictureReward) -> list[str | int | float]:
    """What a reward depends on, but for the weights of the model that draws."""
    draws, relevance = reward.drawing, reward.relevance
    return [
        label(reward.scorer), "" if relevance is None else label(relevance), reward.pictures,
        draws.size, draws.steps, draws.cfg, draws.sampler, draws.scheduler, draws.negative,
    ]  # fmt: skip


def _device() -> torch.device:
    return comfy.model_management.get_torch_device()


def _places(name: str) -> tuple[Path, Path]:
    """The policy's folder in the output folder, where Load Prompt Policy finds it, and that of the training's state.

    Raises:
        ValueError: it is no name, or that of another policy.
    """
    file, folder = places(name, POLICY_KEY)
    target = file.parent / file.name.removesuffix(".safetensors")
    other = policy_folder(target.name)
    states = [folder / stage / STATE for stage in (SUPERVISED, REINFORCEMENT)]
    if other is not None and (other.resolve() != target.resolve() or not any(state.exists() for state in states)):
        raise ValueError(f"There is a prompt policy {target.name} already: {other}. Choose another name.")
    return target, folder


def _read_prompts(text: str) -> Sequence[str]:
    """The prompts of the lines, of the file or folder that the only line names, or of the store if there is no line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return prompts_of_store(open_store(default_url())).prompts
    path = Path(folder_paths.get_output_directory()) / lines[0]
    if len(lines) == 1 and (path.suffix == ".txt" or _exists(path)):
        read: Callable[[Path], object] = prompts_of_pictures if path.is_dir() else prompts_of_file
        return read(path).prompts
    return lines


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a prompt may be too long for a name
        return False


def _sources() -> list[io.Input]:
    return [
        PolicySocket.Input("policy", tooltip="The policy to start from. It stays as it is."),
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            dynamic_prompts=False,
            tooltip="Good prompts, one on each line; or the path of a text file of them, or of a folder of pictures "
            "that hold theirs. Empty: the prompts that you liked. What stands before the first modifier is taken as "
            "what a user would type.",
        ),
        io.String.Input(
            "name",
            default="my_policy",
            tooltip="Name of the policy's folder. It also names the training: the same name and settings go on with "
            "it.",
        ),
        io.Combo.Input(
            "stage",
            options=[BOTH, SUPERVISED, REINFORCEMENT],
            default=BOTH,
            tooltip="Supervised learns to write the good prompts. Reinforcement learns what makes pictures score "
            "higher; it needs a model and a scorer. Both do one after the other.",
        ),
        io.Int.Input("steps", default=200, min=1, max=1_000_000, tooltip="Steps of reinforcement learning."),
        io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="What is drawn when."),
    ]


def _pictures() -> list[io.Input]:
    return [
        *drawing_sockets(
            "What a candidate's pictures should gain over those of the prompt: an aesthetic scorer, or your taste from "
            "Load Taste.",
            "Added to the reward: how well the pictures fit the prompt. Load Scorer has relevance as Promptist rewards "
            "it.",
        ),
        LLMSocket.Input(
            "llm", optional=True, tooltip="Rephrases good prompts as a beginner would, for more supervised pairs."
        ),
        *drawing_settings(PICTURES),
    ]


def _settings() -> list[io.Input]:
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="ppo",
            optional=True,
            advanced=True,
            tooltip="ppo is the paper's. group compares the candidates of a prompt with each other, and has no value "
            "head.",
        ),
        io.Int.Input(
            "supervised_steps",
            default=1000,
            min=1,
            max=1_000_000,
            optional=True,
            advanced=True,
            tooltip=f"Steps of supervised learning, of {BATCH} pairs each.",
        ),
        io.Int.Input(
            "prompts_per_step",
            default=8,
            min=1,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Prompts that a step of reinforcement learning tries.",
        ),
        io.Int.Input(
            "candidates",
            default=4,
            min=1,
            max=8,
            optional=True,
            advanced=True,
            tooltip="Candidates of each prompt that are drawn, of the 8 beams.",
        ),
        io.Float.Input(
            "learning_rate",
            default=5e-5,
            min=1e-8,
            max=1.0,
            step=1e-8,
            optional=True,
            advanced=True,
            tooltip="How far a step changes the weights.",
        ),
        io.Float.Input(
            "kl_weight",
            default=0.2,
            min=0.0,
            max=100.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="How much reward it costs to write other than the policy at the start, per nat.",
        ),
        io.Float.Input(
            "kl_limit",
            default=10.0,
            min=0.01,
            max=1000.0,
            step=0.1,
            optional=True,
            advanced=True,
            tooltip="The training stops when candidates differ from the start's by more, in nats for each.",
        ),
    ]
