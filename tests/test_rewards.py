"""Rewards: Promptist's equations, the aesthetic head, diversity, sums of scorers, and that they share one pass."""

from __future__ import annotations

import copy
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from assemble import assemble_scorer
from atelier.feedback.aesthetic import Aesthetic, AestheticHead, fold, load_head
from atelier.feedback.combined import Combined, combine
from atelier.feedback.open_clip_model import BATCH, OpenClip, open_model
from atelier.feedback.ratings import Store
from atelier.feedback.records import Score
from atelier.feedback.reward import PromptistRelevance, aesthetic_gain, promptist_reward, relevance
from atelier.feedback.scorers import (
    ClipRelevance,
    Diversity,
    ScorerSetupError,
    TargetSimilarity,
    diversity,
    label,
    score_each,
)
from atelier.nodes.clip_models import HEADS_KEY, NO_HEAD, NO_MODEL, head_names
from atelier.nodes.clip_models import head_file as installed_head
from atelier.nodes.score import score_batch
from atelier.nodes.scorers import AESTHETIC, DIVERSITY, AtelierCombineScorers, AtelierLoadScorer
from comfy_api_client import ComfyClient, GraphError
from graphs import DEMO_SCORER
from PIL import Image
from small_clips import head_file, head_weights
from torch import Tensor

NAN = float("nan")


class Counted:
    """An encoder that gives its vectors in turn and counts what it encodes."""

    def __init__(self, vectors: Sequence[Sequence[float]], name: str = "counted", version: str = "v1") -> None:
        self.vectors = torch.nn.functional.normalize(torch.tensor(vectors, dtype=torch.float32), dim=-1)
        self.name, self.version, self.scale, self.calls = name, version, 100.0, 0

    def encode_images(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.vectors[images[:, 0, 0, 0].long()]

    def encode_text(self, text: str) -> Tensor:
        return torch.tensor([1.0, 0.0])


def pictures(*numbers: int) -> Tensor:
    """Pictures that `Counted` gives the vectors with these numbers."""
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)


def head(weight: Sequence[float], bias: float = 0.0) -> AestheticHead:
    return AestheticHead("head", "h1", torch.tensor(weight), torch.tensor(bias))


# --- Promptist's equations ---------------------------------------------------------------------------------


def test_relevance_by_hand() -> None:
    # 20 * 0.30 - 5.6 = 0.4, which is cut to 0; 20 * 0.18 - 5.6 = -2; 20 * -0.1 - 5.6 = -7.6.
    assert relevance(torch.tensor([0.30, 0.18, -0.1])).item() == pytest.approx(-3.2, abs=1e-5)
    assert relevance(torch.tensor([[0.28, 0.9], [0.23, 0.27]])).tolist() == pytest.approx([0.0, -0.6], abs=1e-5)


def test_another_clip_has_another_cosine_that_is_enough() -> None:
    encoder = Counted([[0.5, 0.75**0.5], [0.3, 0.91**0.5]])
    strict = PromptistRelevance(encoder, 0.45)
    assert strict.score(pictures(0, 1), "x") == pytest.approx([0.0, -3.0], abs=1e-5)
    assert strict.version != PromptistRelevance(encoder).version == encoder.version
    with pytest.raises(ScorerSetupError, match="between -1 and 1, not at 20"):
        PromptistRelevance(encoder, 20)


def test_aesthetic_gain_by_hand() -> None:
    # (6 + 5 + 7) / 3 - (4 + 5) / 2 = 1.5
    assert aesthetic_gain(torch.tensor([6.0, 5.0, 7.0]), torch.tensor([4.0, 5.0])).item() == pytest.approx(1.5)


def test_the_reward_by_hand() -> None:
    """Vectors are (cos, sin), the prompt is (1, 0), and the head gives 10 times the second coordinate plus 1."""
    encoder = Counted([[0.2, 0.96**0.5], [0.6, 0.8], [0.28, 0.96], [0.8, 0.6]])
    rewarded = promptist_reward(
        pictures(0, 1), pictures(2, 3), "x", PromptistRelevance(encoder), Aesthetic(encoder, head([0.0, 10.0], 1.0))
    )
    # Relevance: (20 * 0.2 - 5.6 + 0) / 2 = -0.8. Aesthetic: (9.798 + 8) / 2 - (9.6 + 6) / 2; the 1 falls out.
    assert rewarded.relevance == pytest.approx(-0.8, abs=1e-5)
    assert rewarded.aesthetic == pytest.approx(1.09898, abs=1e-4)
    assert rewarded.total == pytest.approx(0.29898, abs=1e-4)
    assert encoder.calls == 2, "the pictures of y and of x, each once"


@pytest.mark.parametrize(
    ("images_y", "images_x", "weight", "message"),
    [
        (pictures(), pictures(0), 1.0, "no optimized pictures"),
        (pictures(0), pictures(), 1.0, "no first pictures"),
        (pictures(0) * NAN, pictures(0), 1.0, "Optimized picture 1 of 1 holds values"),
        (pictures(0), pictures(0) + torch.inf, 1.0, "First picture 1 of 1 holds values"),
        (pictures(0), pictures(0), NAN, "aesthetic/head/counted gave a picture no number"),
    ],
)
def test_a_reward_is_never_nan(images_y: Tensor, images_x: Tensor, weight: float, message: str) -> None:
    encoder = Counted([[1, 0]])
    with pytest.raises(ValueError, match=message):
        promptist_reward(images_y, images_x, "x", PromptistRelevance(encoder), Aesthetic(encoder, head([weight, 0.0])))


# --- the aesthetic head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [768, 128])
def test_the_fold_equals_the_layers(width: int) -> None:
    weights = head_weights(width)
    layers = torch.nn.Module()
    sizes = [weights[f"layers.{number}.bias"].shape[0] for number in (0, 2, 4, 6, 7)]
    parts: list[torch.nn.Module] = []
    for size, before in zip(sizes, [width, *sizes], strict=False):
        parts += [torch.nn.Linear(before, size), torch.nn.Dropout(0.2)]
    layers.layers = torch.nn.Sequential(*parts[:6], *parts[6:7], parts[8])
    layers.load_state_dict(weights)
    vectors = torch.nn.functional.normalize(torch.randn(50, width), dim=-1)
    with torch.no_grad():
        theirs = layers.eval().layers(vectors)[:, 0]
    weight, bias = fold(weights)
    assert (weight.dtype, bias.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(vectors @ weight + bias, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_head_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    loaded = load_head(head_file(tmp_path / f"linear{suffix}", 32))
    weight, bias = fold(head_weights(32))
    assert torch.equal(loaded.weight, weight) and torch.equal(loaded.bias, bias) and loaded.name == "linear"


def changed(**weights: Tensor | None) -> dict[str, Tensor]:
    """A head of width 8 with other weights, or without those that are None."""
    new = head_weights(8) | {name.replace("_", "."): weight for name, weight in weights.items()}
    return {name: weight for name, weight in new.items() if weight is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it must hold layers.N.weight"),
        (changed(layers_4_bias=None), "it must hold layers.N.weight"),
        (changed(other=torch.zeros(1)), "it must hold layers.N.weight"),
        (changed(layers_2_weight=torch.zeros(128, 7)), r"layer 0 has the shapes \(1024, 8\) and \(1024,\).*takes 7"),
        (changed(layers_7_weight=torch.zeros(2, 16)), "layer 7 has the shapes"),
        (changed(layers_0_weight=torch.full((1024, 8), NAN)), "not numbers"),
        ([1, 2], "it holds no table of weights"),
        ({"layers.0.weight": print}, "cannot be loaded: .*Download it again"),
        (b"PK half a file", "cannot be loaded: .*Download it again"),
    ],
)
def test_a_file_that_is_no_head_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "head.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ScorerSetupError, match=f"(?s){message}"):
        load_head(file)


def test_a_head_of_another_width_names_both() -> None:
    scorer = Aesthetic(Counted([[1, 0]]), AestheticHead("linear", "h", torch.zeros(768), torch.tensor(0.0)))
    with pytest.raises(ScorerSetupError, match="linear takes embeddings of 768 numbers, and counted gives 2"):
        scorer.score(pictures(0), "")


# --- diversity ---------------------------------------------------------------------------------------------


def test_diversity_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    each = diversity(vectors)  # cosines of the pairs: 0.6, 0, 0.8
    assert each.tolist() == pytest.approx([1 - 0.3, 1 - 0.7, 1 - 0.4])
    assert each.mean().item() == pytest.approx(1 - (0.6 + 0 + 0.8) / 3)
    assert diversity(vectors[:1].expand(3, -1)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_diversity_of_one_picture_says_nothing() -> None:
    scorer = Diversity(Counted([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match=r"gave none of the 1 pictures a number\. Diversity needs more"):
        score_batch(pictures(0), scorer, "")
    assert score_batch(pictures(0, 1), scorer, "") == pytest.approx([1, 1])


# --- sums and the shared pass ------------------------------------------------------------------------------


def test_a_sum_is_the_sum_of_its_terms_and_of_sums() -> None:
    encoder = Counted([[0.6, 0.8], [1, 0]])
    relevant, target = ClipRelevance(encoder), TargetSimilarity(encoder, torch.tensor([[0.0, 1.0]]))
    two = combine((relevant, 2.0), (target, -0.5))
    assert two.score(pictures(0, 1), "x") == pytest.approx([2 * 0.6 - 0.5 * 0.8, 2.0])
    nested = combine((two, 10.0), (target, 1.0))
    assert nested.score(pictures(0, 1), "x") == pytest.approx([10 * 0.8 + 0.8, 20.0])
    assert nested.terms == ((relevant, 20.0), (target, -5.0), (target, 1.0))
    assert two.name == "combined/2 clip_relevance/counted + -0.5 target_similarity/counted"
    assert two.needs_prompt and not combine((target, 1.0), (relevant, 0.0)).needs_prompt


def test_a_sum_has_the_version_of_its_terms_and_weights() -> None:
    relevant, other = ClipRelevance(Counted([[1, 0]])), ClipRelevance(Counted([[1, 0]], version="v2"))
    made = [combine((relevant, 1.0)), combine((relevant, 1.0 + 1e-9)), combine((other, 1.0)), combine((relevant, 1.0))]
    assert len({part.version for part in made}) == 3 and made[0].version == made[3].version


def test_the_label_of_a_long_sum_fits_the_store() -> None:
    parts = [(ClipRelevance(Counted([[1, 0]], name=f"{i}" * 200)), float(i)) for i in range(1, 9)]
    name = label(combine(*parts))
    assert name.startswith("combined/8 scorers ") and Score("0" * 64, name, 1.0)
    assert Score("0" * 64, label(combine(parts[0])), 1.0).scorer.startswith("combined/1 clip_relevance/111")


def test_weights_of_zero_leave_nothing() -> None:
    with pytest.raises(ValueError, match="All weights are 0"):
        combine((ClipRelevance(Counted([[1, 0]])), 0.0))
    with pytest.raises(ValueError, match="All weights are 0"):
        AtelierCombineScorers.execute(ClipRelevance(Counted([[1, 0]])), 0.0, Diversity(Counted([[1, 0]])), 0.0)


def test_a_picture_without_one_of_the_numbers_has_none() -> None:
    encoder = Counted([[1, 0], [NAN, NAN]])
    scores = combine((ClipRelevance(encoder), 1.0), (Aesthetic(encoder, head([1.0, 0.0])), 1.0)).score(
        pictures(0, 1), "x"
    )
    assert scores[0] == pytest.approx(2.0) and scores[1] != scores[1]


class Outsider:
    """A scorer without an encoder."""

    name, version, needs_prompt = "outsider", "1", False

    def score(self, images: Tensor, prompt: str) -> list[float]:
        return [7.0] * len(images)


def test_scorers_on_one_encoder_share_a_pass() -> None:
    vectors = [[0.6, 0.8], [1, 0], [0, 1]]
    encoder, same, other = Counted(vectors), Counted(vectors), Counted(vectors, version="v2")
    parts = [
        ClipRelevance(encoder), PromptistRelevance(encoder), Diversity(same), Outsider(),
        Aesthetic(encoder, head([1.0, 2.0])), TargetSimilarity(other, torch.tensor([[0.0, 1.0]])),
    ]  # fmt: skip
    images = pictures(0, 1, 2)
    alone = [scorer.score(images, "x") for scorer in parts]
    encoder.calls = same.calls = other.calls = 0
    together = score_each(parts, images, "x")
    assert (encoder.calls, same.calls, other.calls) == (1, 0, 1)
    assert [pytest.approx(scores) for scores in alone] == together
    combine(*((part, 1.0) for part in parts)).score(images, "x")
    assert (encoder.calls, same.calls, other.calls) == (2, 0, 2)


# --- with the demo's CLIP ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    return open_model(assemble_scorer(tmp_path_factory.mktemp("models")), lambda model: lambda: model)


def test_each_batch_passes_the_model_once(demo: OpenClip) -> None:
    model, passes = demo.ready(), []
    hook = model.visual.register_forward_hook(lambda _, inputs, __: passes.append(len(inputs[0])))
    parts: list[tuple[Any, float]] = [
        (ClipRelevance(demo), 1.0), (PromptistRelevance(copy.copy(demo)), 1.0), (Diversity(demo), 1.0),
        (Aesthetic(demo, head([0.1] * 128)), 1.0),
    ]  # fmt: skip
    try:
        combine(*parts).score(torch.rand(BATCH + 2, 24, 24, 3), "a red star")
    finally:
        hook.remove()
    assert passes == [BATCH, 2]


def test_the_node_loads_what_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import folder_paths

    with pytest.raises(ValueError, match=r"An aesthetic score needs a head.*aesthetic_heads.*press R"):
        AtelierLoadScorer.execute(AESTHETIC, NO_MODEL, aesthetic_head=NO_HEAD)
    with pytest.raises(ValueError, match="There is no aesthetic head"):
        AtelierLoadScorer.execute(AESTHETIC, NO_MODEL, aesthetic_head="../conftest.py")
    with pytest.raises(ValueError, match="reads no text, so it cannot score PickScore"):
        AtelierLoadScorer.execute("PickScore", NO_MODEL, clip_vision=object())
    head_file(tmp_path / "linear.pth")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "aesthetic_heads", ([str(tmp_path)], {".pth"}))
    with pytest.raises(ValueError, match="No CLIP model for scoring is installed"):
        AtelierLoadScorer.execute(AESTHETIC, NO_MODEL, aesthetic_head="linear.pth")
    assert AtelierLoadScorer.execute(DIVERSITY, DEMO_SCORER).args[0].name == f"diversity/{DEMO_SCORER}"


def test_heads_are_listed_and_a_folder_may_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import folder_paths

    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "never"]
    for folder in folders[:2]:
        folder.mkdir()
        head_file(folder / "same.pth")
        (folder / "notes.txt").write_text("x")
    head_file(folders[1] / "other.safetensors")
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, HEADS_KEY, ([str(folder) for folder in folders], {".pth", ".safetensors"})
    )
    assert head_names() == ["other.safetensors", "same.pth"]
    assert installed_head("same.pth") == folders[0] / "same.pth"
    shutil.rmtree(folders[0])
    assert head_names() == ["other.safetensors", "same.pth"]
    shutil.rmtree(folders[1])
    assert head_names() == []


def test_two_loaders_share_a_model() -> None:
    first, second = (AtelierLoadScorer.execute(kind, DEMO_SCORER).args[0] for kind in (DIVERSITY, "HPS v2"))
    assert first.encoder is second.encoder


# --- over the API ------------------------------------------------------------------------------------------


@pytest.fixture
def heads(server: ComfyClient, tmp_path: Path) -> Iterator[dict[int, str]]:
    """Installed heads for embeddings of 128 and of 768 numbers."""
    folder, mark = server.base / "models" / "aesthetic_heads", uuid.uuid4().hex[:8]
    made_now = not folder.exists()
    folder.mkdir(exist_ok=True)
    names = {width: f"test-{mark}-{width}.pth" for width in (128, 768)}
    for width, name in names.items():
        head_file(folder / name, width)
    yield names
    shutil.rmtree(folder) if made_now else [(folder / name).unlink() for name in names.values()]


def graph(server: ComfyClient, one: dict[str, Any], two: dict[str, Any], **weights: float) -> dict[str, Any]:
    """Two pictures scored by a sum of two scorers."""
    names = [server.upload(Image.new("RGB", (32, 32), colour), f"{uuid.uuid4().hex}.png") for colour in ("red", "blue")]
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "red": ("LoadImage", {"image": names[0]}),
        "blue": ("LoadImage", {"image": names[1]}),
        "both": ("ImageBatch", {"image1": ["red", 0], "image2": ["blue", 0]}),
        "one": ("AtelierLoadScorer", {"clip_model": DEMO_SCORER, **one}),
        "two": ("AtelierLoadScorer", {"clip_model": DEMO_SCORER, **two}),
        "sum": (
            "AtelierCombineScorers",
            {"scorer_1": ["one", 0], "weight_1": 1.0, "scorer_2": ["two", 0], "weight_2": 1.0, **weights},
        ),
        "score": ("AtelierScoreImages", {"images": ["both", 0], "scorer": ["sum", 0], "prompt": "red"}),
        "scores": ("PreviewAny", {"source": ["score", 0]}),
        "report": ("PreviewAny", {"source": ["score", 1]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


PROMPTIST = {"scorer": "relevance, as Promptist rewards it"}


def test_a_sum_scores_over_the_api(server: ComfyClient, heads: dict[int, str], demo: OpenClip) -> None:
    made = graph(server, PROMPTIST, {"scorer": "aesthetic", "aesthetic_head": heads[128]}, weight_2=0.5)
    session = made["score"]["inputs"]["session"] = f"sum {uuid.uuid4().hex}"
    outputs = server.queue(made)["outputs"]
    images = torch.stack([torch.tensor([1.0, 0, 0]).expand(32, 32, 3), torch.tensor([0, 0, 1.0]).expand(32, 32, 3)])
    weight, bias = fold(head_weights(128))
    sum_of_both = Combined(
        ((PromptistRelevance(demo), 1.0), (Aesthetic(demo, AestheticHead("h", "v", weight, bias)), 0.5))
    )
    wanted = sum_of_both.score(images, "red")
    assert [float(text) for text in outputs["scores"]["text"]] == pytest.approx(wanted, abs=5e-3)
    stem = heads[128].removesuffix(".pth")
    said = f"combined/1 promptist_relevance/{DEMO_SCORER} + 0.5 aesthetic/{stem}/{DEMO_SCORER} "
    written = outputs["report"]["text"][0].splitlines()[0]
    assert written.startswith(said)
    store = Store(f"sqlite:///{next((server.base / 'user').rglob('ratings.sqlite3'))}")
    try:
        (one,) = store.rounds(session, 6)
    finally:
        store.close()
    assert [list(picture.scores) for picture in one.pictures] == [[written], [written]], "name and version are kept"


def test_bad_sums_are_refused_over_the_api(server: ComfyClient, heads: dict[int, str]) -> None:
    for one, two, weights, message in (
        ({"scorer": "aesthetic", "aesthetic_head": heads[768]}, PROMPTIST, {}, "768 numbers, and .* gives 128"),
        ({"scorer": "aesthetic"}, PROMPTIST, {}, "An aesthetic score needs a head"),
        ({"scorer": "aesthetic", "aesthetic_head": "none.pth"}, PROMPTIST, {}, "none.pth"),
        (PROMPTIST, PROMPTIST, {"weight_1": 0.0, "weight_2": 0.0}, "All weights are 0"),
        (PROMPTIST, PROMPTIST, {"weight_1": 1e9}, "weight_1"),
    ):
        with pytest.raises(GraphError, match=message):
            server.queue(graph(server, one, two, **weights))
