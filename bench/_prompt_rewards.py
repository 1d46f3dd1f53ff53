"""Pictures of prompts, what they are worth, and a policy that learns one person's taste from it, on ShapeWorld.

To be imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _people import clip
from _world import HOME, Checkpoint
from assemble import assemble_head
from atelier.feedback.aesthetic import Aesthetic, load_head
from atelier.feedback.combined import combine
from atelier.feedback.reward import PromptistRelevance, promptist_reward
from atelier.feedback.scorers import Scorer
from atelier.feedback.taste import Taste, features, fit_taste
from atelier.llm.promptist import Policy
from atelier.training.host_prompt_rl import Drawing, PictureReward
from atelier.training.policy_files import copy_model
from atelier.training.prompt_rl import ReinforcePlan, reinforce
from shapeworld.caption import Description
from shapeworld.oracle import look
from shapeworld.taste import COLD, PEOPLE, WORLD, engineered, training_inputs
from shapeworld.taste import Taste as Rule
from shapeworld.trial import HELD_OUT, bound
from torch import Tensor
from training.policy_rl import AT_ONCE, CANDIDATES, ENOUGH, KL_LIMIT, KL_WEIGHT, LEARNING_RATE, METHOD

STEPS = 10
"""Steps of each picture: few, as in a training."""
WEIGHT = 4.0
"""What a picture that the taste is sure to like is worth more than one that it is sure to dislike."""


@dataclass(frozen=True)
class Judged:
    """The reward of a prompt, its content in %, and the head's score and the world's mark of each picture."""

    reward: float
    content: float
    scores: list[float]
    marks: list[float]


class Judge:
    """Draws so many pictures of each prompt with the base, and judges them.

    The noise of a picture depends on the prompt's number alone, so that lists of prompts can be compared in pairs.
    """

    def __init__(self, checkpoint: Checkpoint, pictures: int) -> None:
        self.checkpoint, self.pictures = replace(checkpoint, steps=STEPS), pictures
        self.relevance = PromptistRelevance(clip(), ENOUGH)
        self.aesthetic = Aesthetic(clip(), load_head(assemble_head(HOME / "base" / "models")))
        self._known: dict[tuple[str, int], Tensor] = {}

    def reward(self, scorer: Scorer, pictures: int = 1) -> PictureReward:
        """What a prompt's pictures gain by a scorer, and how relevant they are: the pack's own, with other noise."""
        base = self.checkpoint
        drawing = Drawing(base.model, base.clip, base.vae, base.size, STEPS, base.cfg, "euler", "normal")
        return PictureReward(drawing, scorer, self.relevance, pictures)

    @torch.inference_mode()
    def draw(self, prompts: Sequence[str]) -> list[Tensor]:
        """The pictures [n, height, width, 3] of each prompt. What was drawn is kept."""
        wanted = [(prompt, number) for number, prompt in enumerate(prompts)]
        missing = [key for key in wanted if key not in self._known]
        if missing:
            texts = [prompt for prompt, _ in missing for _ in range(self.pictures)]
            numbers = [number * self.pictures + copy for _, number in missing for copy in range(self.pictures)]
            drawn = self.checkpoint.draw(texts, HELD_OUT, numbers=numbers).unflatten(0, (-1, self.pictures))
            self._known |= dict(zip(missing, drawn, strict=True))
        return [self._known[key] for key in wanted]

    @torch.inference_mode()
    def judge(self, prompts: Sequence[str], inputs: Sequence[tuple[str, Description]]) -> list[Judged]:
        """What each prompt is worth to the one who typed the input with its number, and wants what that describes."""
        found = []
        for new, old, (text, wanted) in zip(
            self.draw(prompts), self.draw([text for text, _ in inputs]), inputs, strict=True
        ):
            reward = promptist_reward(new, old, text, self.relevance, self.aesthetic).total
            content = 100 * float(np.mean([bound(picture.numpy(), wanted) for picture in new]))
            marks = [WORLD(look(picture.numpy())) for picture in new]
            found.append(Judged(reward, content, self.aesthetic.score(new, ""), marks))
        return found


def personal(judge: Judge, prompts: Sequence[str]) -> list[list[float]]:
    """The mean mark of each prompt's pictures, by the rule of each person."""
    sights = [[look(picture.numpy()) for picture in pictures] for pictures in judge.draw(prompts)]
    return [[float(np.mean([rule(sight) for sight in seen])) for seen in sights] for rule in PEOPLE]


@torch.inference_mode()
def rate(judge: Judge, rule: Rule, count: int) -> Taste:
    """The taste of a person who has rated `count` pictures of engineered prompts, thumb up for what is liked at all."""
    prompts = [engineered(text, np.random.default_rng(number)) for number, text in enumerate(training_inputs(count))]
    pictures = judge.checkpoint.draw(prompts, 0)
    thumbs = [1 if rule(look(picture.numpy())) > COLD else -1 for picture in pictures]
    said = torch.stack([clip().encode_text(prompt) for prompt in prompts])
    return Taste(clip(), fit_taste(features(clip().encode_images(pictures), said), thumbs))


def learn_taste(judge: Judge, policy: Policy, taste: Taste, prompts: Sequence[str], steps: int, folder: Path) -> Policy:
    """The policy after reinforcement by relevance and by how sure the taste is to like what is drawn."""
    reward = judge.reward(combine((taste, WEIGHT)))
    plan = ReinforcePlan(steps, METHOD, AT_ONCE, CANDIDATES, LEARNING_RATE, KL_WEIGHT, KL_LIMIT)
    learnt = reinforce(policy, prompts, reward, plan, folder, torch.device("cpu"))
    model = copy_model(policy.ready(), learnt.weights)
    return replace(policy, name=f"{policy.name}, taught", ready=lambda: model)
