"""Training of a prompt policy in the host: the picture step, and the node over the API."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from atelier.feedback.scorers import EncoderScorer
from atelier.training.host_prompt_rl import PictureReward
from comfy_api_client import ComfyClient, GraphError
from safetensors.torch import load_file
from small_policies import save_policy, small_model
from torch import Tensor

SCORER = "shapeworld"
PROMPTS = "a red star, oil painting, highly detailed\na blue circle, chalk drawing, sharp focus"

# --- the reward ------------------------------------------------------------------------------------------------


class Red(EncoderScorer):
    """How red a picture is; `seen` are the prompts that it was asked about."""

    name, version, needs_prompt = "red", "1", True

    def __init__(self) -> None:
        self.encoder, self.seen = self, []

    def encode_images(self, images: Tensor) -> Tensor:
        return images.mean((1, 2))[:, :1]

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        self.seen.append(prompt)
        return vectors[:, 0]


class Painted:
    """Draws plain pictures: a prompt's first number is how red they are; "broken" gives no numbers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []

    def draw(self, prompts: list[str], seed: int, numbers: list[int]) -> Tensor:
        self.asked += [(prompt, seed, number) for prompt, number in zip(prompts, numbers, strict=True)]
        reds = [math.nan if prompt == "broken" else float(prompt) for prompt in prompts]
        return torch.tensor(reds)[:, None, None, None].expand(-1, 4, 4, 3)


def test_a_reward_is_the_gain_over_the_prompts_own_pictures_and_the_relevance() -> None:
    drawing, gain, fit = Painted(), Red(), Red()
    reward = PictureReward(drawing, gain, fit, pictures=2)
    pairs = [("0.25", "0.5"), ("0.25", "0.125"), ("0.75", "broken"), ("0.75", "1.0")]
    found = reward(pairs, 7)
    assert found[:2] == pytest.approx([0.25 + 0.5, -0.125 + 0.125])
    assert math.isnan(found[2]) and found[3] == pytest.approx(0.25 + 1.0)
    assert gain.seen == fit.seen == ["0.25", "0.75"]
    alone = PictureReward(drawing, gain, None, pictures=2)(pairs, 7)
    assert [alone[0], alone[3]] == pytest.approx([0.25, 0.25])
    assert reward([("0.25", "0.25")], 7) == pytest.approx([0.25]) and len(drawing.asked) == 26, "drawn once"
    noises = {prompt: sorted(n for p, _, n in drawing.asked[:12] if p == prompt) for prompt, _, _ in drawing.asked}
    assert noises["0.25"] == noises["0.5"] == noises["0.125"] == [0, 1]
    assert noises["0.75"] == noises["1.0"] == [2, 3]


# --- the node --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(server: Any) -> Iterator[str]:
    """A small policy of random weights, as it is listed."""
    folder = Path(server.base) / "output" / "prompt_optimizers"
    save_policy(folder / "tiny", small_model())
    yield "tiny"
    shutil.rmtree(folder)


def graph(name: str, **changes: Any) -> dict[str, Any]:
    inputs = {
        "policy": ["policy", 0], "prompts": PROMPTS, "name": name, "stage": "both", "steps": 1, "seed": 0,
        "model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2], "scorer": ["scorer", 0],
        "relevance": ["scorer", 0], "size": 64, "pictures": 1, "sampler_steps": 1, "cfg": 1.0, "sampler_name": "euler",
        "scheduler": "normal", "supervised_steps": 2, "prompts_per_step": 1, "candidates": 2, **changes,
    }  # fmt: skip
    kind = {"scorer": "relevance, as Promptist rewards it", "clip_model": SCORER, "aesthetic_head": "none"}
    return {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "policy": {"class_type": "AtelierLoadPromptPolicy", "inputs": {"policy": "tiny"}},
        "scorer": {"class_type": "AtelierLoadScorer", "inputs": kind},
        "train": {
            "class_type": "AtelierTrainPromptOptimizer",
            "inputs": {key: value for key, value in inputs.items() if value is not None},
        },
        "name": {"class_type": "PreviewAny", "inputs": {"source": ["train", 1]}},
        "curve": {"class_type": "PreviewImage", "inputs": {"images": ["train", 2]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["train", 3]}},
    }


def test_a_policy_is_trained_and_its_folder_opens(server: Any, start: str) -> None:
    write = {"prompt": "a red star", "policy": ["train", 0]}
    queued = {
        **graph("first one"),
        "write": {"class_type": "AtelierPromptOptimizer", "inputs": write},
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["write", 0]}},
    }
    entry = server.queue(queued)
    assert entry["outputs"]["name"]["text"] == ["first one"]
    (report,) = entry["outputs"]["report"]["text"]
    assert report.startswith("2 prompts.\nSupervised: ") and "Reinforcement: 1 steps; all steps are done." in report
    assert server.images(entry, "curve")[0].size[0] == 768
    output = Path(server.base) / "output"
    saved = load_file(output / "prompt_optimizers" / "first one" / "model.safetensors")
    state = torch.load(output / "atelier_training" / "first one" / "reinforcement" / "state.pt", weights_only=True)
    assert all(torch.equal(weight, state["kept"][name]) for name, weight in saved.items())
    again = {
        "policy": {"class_type": "AtelierLoadPromptPolicy", "inputs": {"policy": "first one"}},
        "write": {"class_type": "AtelierPromptOptimizer", "inputs": {**write, "policy": ["policy", 0]}},
        "text": queued["text"],
    }
    assert server.queue(again)["outputs"]["text"] == entry["outputs"]["text"]


def test_an_interrupted_training_goes_on_and_keeps_its_policy(server: Any, start: str) -> None:
    folder = Path(server.base) / "output" / "atelier_training" / "long one" / "reinforcement"
    stops: list[threading.Thread] = []

    def stop(step: Any) -> None:
        if step.node_type == "AtelierTrainPromptOptimizer" and (folder.exists() and step.value >= 1) and not stops:
            stops.append(threading.Thread(target=server.post, args=("/interrupt", {})))
            stops[0].start()

    many = {"steps": 300, "method": "group"}
    with pytest.raises(GraphError, match="was interrupted"):
        server.queue(graph("long one", **many), on_progress=stop)
    stops[0].join()
    kept = Path(server.base) / "output" / "prompt_optimizers" / "long one" / "model.safetensors"
    assert kept.exists()
    reached = torch.load(folder / "state.pt", weights_only=True)["step"]
    assert 1 <= reached < 300
    server.queue(graph("long one", method="group", steps=reached + 1))
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == reached + 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scorer": None, "vae": None}, r"Link vae, scorer\."),
        ({"prompts": "nothing here.txt"}, r"nothing here\.txt cannot be read"),
        ({"prompts": "a star\na circle", "stage": "supervised"}, "There is no pair to learn from"),
        ({"name": "../away"}, "is no name for a prompt optimizer"),
        ({"name": "tiny"}, "There is a prompt policy tiny already"),
        ({"method": "group", "candidates": 1}, "set 2 candidates or more"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_input_is_refused_by_name(server: ComfyClient, start: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GraphError, match=says):
        server.queue(graph(**{"name": "refused", **changes}))
