"""CLIP models in the layouts that users have: transformers folders (PickScore), the file of HPS v2, half of either."""

from __future__ import annotations

import pickle
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atelier.feedback.clip_folder import is_model_folder, open_folder
from atelier.feedback.open_clip_model import OpenClip, open_hps
from atelier.feedback.scorers import HpsV2, PickScore, ScorerSetupError
from comfy_api_client import ComfyClient, GraphError
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clips import hps_folder, pickscore_folder, register_tiny_hps


def hold(model: torch.nn.Module) -> Any:
    return lambda: model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pickscore_folder(tmp_path_factory.mktemp("clip") / "PickScore_v1")


@pytest.fixture(scope="module")
def clip(folder: Path) -> OpenClip:
    return open_folder(folder, hold)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Wide pictures, so that preparing them cuts something off."""
    return np.random.default_rng(0).integers(0, 256, (3, 40, 70, 3), dtype=np.uint8)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).float() / 255


# --- PickScore ---------------------------------------------------------------------------------------------


def test_pickscore_is_what_its_authors_compute(folder: Path, clip: OpenClip, pixels: np.ndarray) -> None:
    """Against transformers' own processor, in PIL as at the time, and the model card's formula."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    side = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    model, prompt = CLIPModel.from_pretrained(folder).eval(), "a red star, " * 60
    words = AutoTokenizer.from_pretrained(folder)(prompt, truncation=True, max_length=77, return_tensors="pt")
    seen = CLIPImageProcessorPil(**side)(images=[Image.fromarray(p) for p in pixels], return_tensors="pt")
    with torch.no_grad():
        theirs = model(**words, **seen).logits_per_image[:, 0]
    scorer = PickScore(clip)
    assert scorer.score(as_images(pixels), prompt) == pytest.approx(theirs.tolist(), abs=1e-4)
    assert scorer.name == "pickscore/PickScore_v1" and scorer.needs_prompt
    assert clip.scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_pictures_are_prepared_as_open_clip_prepares_them(clip: OpenClip, pixels: np.ndarray) -> None:
    from open_clip.transform import image_transform

    theirs = image_transform(32, is_train=False)
    for picture in pixels:
        assert torch.equal(clip.prepare(Image.fromarray(picture)), theirs(Image.fromarray(picture)))


def test_the_folders_own_colours_count(folder: Path, clip: OpenClip, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "m")
    (place / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    white = Image.new("RGB", (32, 32), "white")
    assert torch.allclose(open_folder(place, hold).prepare(white), torch.ones(3, 32, 32))
    assert not torch.allclose(clip.prepare(white), torch.ones(3, 32, 32))


def half_copied(folder: Path, place: Path, damage: str) -> Path:
    shutil.copytree(folder, place)
    file = place / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:3000])
    elif damage == "a weight is missing":
        weights = load_file(file)
        save_file({k: v for k, v in weights.items() if k != "visual_projection.weight"}, file, {"format": "pt"})
    elif damage == "another shape":
        save_file(load_file(file) | {"visual_projection.weight": torch.zeros(3, 3)}, file, {"format": "pt"})
    elif damage == "no weights":
        file.unlink()
    elif damage == "no tokenizer":
        (place / "merges.txt").unlink()
    elif damage == "pickled code":
        file.unlink()
        (place / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    elif damage == "config cut":
        (place / "config.json").write_text((place / "config.json").read_text()[:50])
    else:
        (place / "config.json").write_text('{"model_type": "bert"}')
    return place


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "cannot be loaded: .*Download it again"),
        ("a weight is missing", "1 weights are missing, such as visual_projection"),
        ("another shape", "cannot be loaded: .*Download it again"),
        ("pickled code", "cannot be loaded: .*Download it again"),
        ("no tokenizer", "has no tokenizer. Put tokenizer.json"),
        ("no weights", "holds no whole CLIP model"),
        ("config cut", "holds no whole CLIP model"),
        ("another model", "holds no whole CLIP model"),
    ],
)
def test_a_half_copied_folder_is_refused(folder: Path, tmp_path: Path, damage: str, message: str) -> None:
    place = half_copied(folder, tmp_path / "m", damage)
    assert is_model_folder(place) == ("whole" not in message)
    with pytest.raises(ScorerSetupError, match=message):
        open_folder(place, hold)


# --- HPS v2 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    place = tmp_path_factory.mktemp("hps")
    name = register_tiny_hps(place)
    return name, hps_folder(place / "HPS_v2", name)


def test_hps_is_the_cosine_with_the_whole_picture(hps: tuple[str, Path], pixels: np.ndarray) -> None:
    import open_clip

    name, folder = hps
    model = open_clip.create_model(name, pretrained=str(folder / "HPS_v2_compressed.pt")).eval()
    prepare = open_clip.transform.image_transform(32, is_train=False, resize_mode="longest")
    with torch.no_grad():
        seen = model.encode_image(torch.stack([prepare(Image.fromarray(p)) for p in pixels]), normalize=True)
        said = model.encode_text(open_clip.get_tokenizer(name)("a red star"), normalize=True)[0]
    scorer = HpsV2(open_hps(folder, hold, model=name))
    assert scorer.score(as_images(pixels), "a red star") == pytest.approx((seen @ said).tolist(), abs=1e-5)
    assert scorer.name == "hps_v2/HPS_v2" and is_model_folder(folder)


def test_hps_weights_for_another_model_or_with_code_are_refused(hps: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = hps
    file = tmp_path / "HPS_v2.1_compressed.pt"
    for content in ({"state_dict": {"text_projection": torch.zeros(2, 2)}}, {"state_dict": print}):
        torch.save(content, file)
        with pytest.raises(ScorerSetupError, match=r"HPS_v2\.1_compressed\.pt cannot be loaded: .*Download it again"):
            open_hps(tmp_path, hold, model=name)


def test_hps_without_the_package_names_it(hps: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ScorerSetupError, match="pip install open_clip_torch"):
        open_folder(hps[1], hold)


def test_pickscore_needs_no_open_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert open_folder(folder, hold).encode_text("a star").shape == (8,)


# --- over the API ------------------------------------------------------------------------------------------


@pytest.fixture
def installed(server: ComfyClient, folder: Path) -> Iterator[str]:
    """The tiny PickScore among the server's models."""
    name = f"tiny-pickscore-{uuid.uuid4().hex[:8]}"
    shutil.copytree(folder, server.base / "models" / "clip_scorers" / name)
    yield name
    shutil.rmtree(server.base / "models" / "clip_scorers" / name)


def test_pickscore_over_the_api(server: ComfyClient, installed: str, clip: OpenClip) -> None:
    picture = Image.new("RGB", (40, 32), (200, 40, 40))
    graph = {
        "load": {"class_type": "LoadImage", "inputs": {"image": server.upload(picture, f"{installed}.png")}},
        "scorer": {"class_type": "AtelierLoadScorer", "inputs": {"scorer": "PickScore", "clip_model": installed}},
        "score": {
            "class_type": "AtelierScoreImages",
            "inputs": {"images": ["load", 0], "scorer": ["scorer", 0], "prompt": "a red star"},
        },
        "scores": {"class_type": "PreviewAny", "inputs": {"source": ["score", 0]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["score", 1]}},
    }
    outputs = server.queue(graph)["outputs"]
    wanted = PickScore(clip).score(as_images(np.array(picture)[None]), "a red star")
    assert [float(text) for text in outputs["scores"]["text"]] == pytest.approx(wanted, abs=1e-3)
    assert outputs["report"]["text"][0].startswith(f"pickscore/{installed} ")
    place = server.base / "models" / "clip_scorers" / installed / "merges.txt"
    place.unlink()
    with pytest.raises(GraphError, match="has no tokenizer"):
        server.queue(graph | {"scorer": graph["scorer"] | {"_meta": {"title": "again"}}})
