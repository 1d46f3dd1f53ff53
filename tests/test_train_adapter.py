"""Training a Cross-Adapter: pairs of words, captions on disk, the loss, low-rank weights, and the node over the API."""

from __future__ import annotations

import io
import tarfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_sampling
import comfy.sd
import comfy.taesd.taesd
import numpy as np
import pytest
import torch
from atelier.attention.cross_adapter import AdapterShape, CrossAdapter, read_adapter
from atelier.training.captions import Captioned, read_captions
from atelier.training.cross_adapter import KEPT_WEIGHT, CaptionedLatents, EntityMaps, adapter_loss, entity_loss
from atelier.training.entities import entity_pairs
from atelier.training.host_adapter import AdapterRun, encode_captions, plain_attention
from atelier.training.host_edit import Watch
from atelier.training.loop import Plan
from atelier.training.low_rank import add_low_rank, lora_file, start_low_rank, without_low_rank
from comfy_api_client import ComfyClient, GraphError
from PIL import Image
from safetensors.torch import load_file
from shapeworld.caption import describe, write
from shapeworld.dense import dense_scene, write_dense
from shapeworld.render import render
from small_unets import TEXT_WIDTH, fill, normal, sd15
from torch import Tensor, nn

# --- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a red star and a large striped blue heart", "star-red heart-large heart-striped heart-blue"),
        ("There is a star on the left. It is red. Its surface is shiny.", "star-red star-shiny"),
        ("a wooden table below a round mirror, on a white background", "table-wooden mirror-round"),
        ("a small square on the right, a square red box", "square-small box-square box-red"),
        ("It is red.", ""),
        ("", ""),
    ],
)
def test_pairs_of_things_and_what_they_are_like(text: str, pairs: str) -> None:
    found = [f"{text[e.start : e.end]}-{text[a.start : a.end]}" for e, a in entity_pairs(text)]
    assert found == pairs.split()


def test_pairs_of_dense_captions_are_true() -> None:
    """Of 60 dense captions, each pair of a shape and a colour is of a thing in the scene."""
    checked = 0
    for number in range(60):
        rng = np.random.default_rng([7, number])
        scene = dense_scene(rng)
        text = write_dense(scene, rng)
        real = {(thing.shape, thing.colour) for thing in scene.things}
        for entity, attribute in entity_pairs(text):
            shape, word = text[entity.start : entity.end], text[attribute.start : attribute.end]
            if word in {thing.colour for thing in scene.things}:
                assert (shape, word) in real, text
                checked += 1
    assert checked > 200


# --- captions on disk ------------------------------------------------------------------------------------------


def picture(colour: str, size: tuple[int, int] = (20, 10)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def test_a_folder_and_a_tar_file_give_the_same_pictures(tmp_path: Path) -> None:
    folder, tars = tmp_path / "folder", tmp_path / "tars"
    for place in (folder, tars):
        place.mkdir()
    with tarfile.open(tars / "a.tar", "w") as tar:
        for key, colour, said in (("a", "red", "\ufeffa red\n one "), ("b", "blue", "a blue one")):
            (folder / f"{key}.png").write_bytes(picture(colour))
            (folder / f"{key}.txt").write_text(said, encoding="utf-8")
            for name, data in ((f"{key}.png", picture(colour)), (f"{key}.txt", said.encode()), (f"{key}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (folder / "c.png").write_bytes(picture("green"))
    for place in (folder, tars, tars / "a.tar"):
        found = list(read_captions(place, 8))
        assert [(one.key, one.caption) for one in found] == [("a", "a red one"), ("b", "a blue one")]
        assert found[0].picture.shape == (8, 8, 3)
        assert (found[0].picture == (255, 0, 0)).all()
    assert next(read_captions(folder)).picture.shape == (10, 20, 3)
    refined = tmp_path / "refined"
    refined.mkdir()
    (refined / "b.txt").write_text("a dense one")
    assert [(one.key, one.caption) for one in read_captions(folder, 8, refined)] == [("b", "a dense one")]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, r"holds no captioned picture: each picture \(\.png"),
        ({"a.png": b"no picture", "a.txt": b"a"}, "The picture a is damaged"),
        ({"a.tar": b"no tar"}, r"a\.tar cannot be read"),
    ],
)
def test_data_that_cannot_be_read_is_named(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says):
        list(read_captions(tmp_path))
    with pytest.raises(ValueError, match="There is no data set"):
        list(read_captions(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="There is no folder of captions"):
        list(read_captions(tmp_path, captions=tmp_path / "nothing"))


# --- the loss --------------------------------------------------------------------------------------------------

SHAPE, SEED = AdapterShape(24, TEXT_WIDTH), 1


def data(count: int = 4, pairs: Any = ()) -> CaptionedLatents:
    return CaptionedLatents(
        normal(count, 4, 8, 8, seed=1), normal(count + 1, 6, TEXT_WIDTH, seed=2), normal(count + 1, 5, 24, seed=3),
        pairs=pairs,
    )  # fmt: skip


def loss(unet: nn.Module, adapter: CrossAdapter | None, of: CaptionedLatents, weight: float = 0.0) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return adapter_loss(unet, adapter, eps(), of, np.random.default_rng(SEED), 4, plain_attention, None, weight)


def eps() -> Any:
    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    return Sampling()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return sd15().model.diffusion_model.requires_grad_(False)


def test_only_the_adapter_learns_and_every_part_of_it(unet: nn.Module) -> None:
    adapter = CrossAdapter(SHAPE)
    loss(unet, adapter, data())["loss"].backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in adapter.parameters())
    assert all(weight.grad is None for weight in unet.parameters())


def test_dropped_captions_are_the_empty_one(unet: nn.Module) -> None:
    """Nothing depends on the text of a caption that was dropped, and the empty one is in its place."""
    adapter = CrossAdapter(SHAPE)
    plain, rng = data(40), np.random.default_rng(SEED)
    rng.integers(0, 40, 4)
    assert (rng.random(4) < 0.1).sum() == 0
    changed = data(40)
    changed.text[-1] += 5
    assert float(loss(unet, adapter, plain)["loss"]) == float(loss(unet, adapter, changed)["loss"])
    import atelier.training.cross_adapter as module

    before, module.CAPTION_DROPOUT = module.CAPTION_DROPOUT, 1.0
    try:
        first = float(loss(unet, adapter, plain)["loss"])
        changed.text[:-1] += 5
        changed.text[-1] -= 5
        assert float(loss(unet, adapter, changed)["loss"]) == pytest.approx(first, rel=1e-5)
    finally:
        module.CAPTION_DROPOUT = before


def test_attention_is_the_hosts_and_maps_are_compared() -> None:
    q, k, v = (normal(2, n, 16, seed=n) for n in (9, 7, 7))
    host = comfy.ldm.modules.attention.attention_pytorch(q, k, v, 2)
    torch.testing.assert_close(plain_attention(q, k, v, 2), host)
    maps = EntityMaps(plain_attention, [[((1, 2), (4,))], []], 7)
    torch.testing.assert_close(maps.attend(plain_attention, q, k, v, 2), host)
    split = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k)]
    weights = (split[0] @ split[1].mT / 8**0.5).softmax(-1).mean(1)[0]
    wanted = 1 - torch.cosine_similarity(weights[:, 1:3].mean(1), weights[:, 4], dim=0)
    torch.testing.assert_close(entity_loss([maps]), wanted)
    same = EntityMaps(plain_attention, [[((3,), (3,))], []], 7)
    same.attend(plain_attention, q, k, v, 2)
    assert float(entity_loss([same])) == pytest.approx(0.0, abs=1e-6)
    selfish = EntityMaps(plain_attention, [[((3,), (3,))], []], 7)
    selfish.attend(plain_attention, k, k, k, 2)
    assert not selfish.distances


def test_the_entity_loss_pulls_maps_together(unet: nn.Module) -> None:
    torch.manual_seed(0)
    adapter = CrossAdapter(SHAPE)
    of = data(4, pairs=[[((0,), (3,)), ((1,), (4,))]] * 4)
    optimizer, seen = torch.optim.Adam(adapter.parameters(), 1e-3), []
    for _ in range(12):
        found = loss(unet, adapter, of, 1.0)
        optimizer.zero_grad()
        found["entities"].backward()
        optimizer.step()
        seen.append(float(found["entities"]))
    assert seen[-1] < 0.7 * seen[0]
    with torch.no_grad():
        both, alone = loss(unet, adapter, of, 0.5), loss(unet, adapter, of)
    torch.testing.assert_close(both["loss"], alone["loss"] + 0.5 * both["entities"])


def test_a_caption_is_seen_at_its_own_length(unet: nn.Module) -> None:
    """Text that is repeated changes nothing in attention, so half of it must do, in whatever row of the batch it is."""
    of = data(8)
    of.text[:, 3:] = of.text[:, :3]
    cut = replace(of, text=of.text.clone(), lengths=[3, 6] * 4)
    cut.text[[0, 2, 4, 6], 3:] = 100.0
    with torch.no_grad():
        torch.testing.assert_close(loss(unet, None, cut), loss(unet, None, of))
        kept = [replace(one, lengths=[3] * 8, kept=[True] * 8) for one in (of, cut)]
        adapter = CrossAdapter(SHAPE)
        torch.testing.assert_close(*(loss(unet, adapter, one) for one in kept))
        wrong = replace(cut, lengths=[6, 3] * 4)
        assert not torch.isclose(loss(unet, None, wrong)["loss"], loss(unet, None, of)["loss"])


def test_captions_of_several_lengths_are_learnt_as_if_each_were_alone(
    unet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of two lengths loses what its short captions lose by themselves and what its long ones do."""
    torch.manual_seed(0)
    adapter, of = CrossAdapter(SHAPE), data(8)
    monkeypatch.setattr("atelier.training.cross_adapter.KEPT_WEIGHT", 0.0)
    with torch.no_grad():
        short = loss(unet, adapter, replace(of, lengths=[3] * 8, kept=[False, True] * 4))["loss"]
        long = loss(unet, adapter, replace(of, lengths=[6] * 8, kept=[True, False] * 4))["loss"]
        torch.testing.assert_close(loss(unet, adapter, replace(of, lengths=[3, 6] * 4))["loss"], short + long)


def test_pairs_are_counted_behind_the_captions_own_text(unet: nn.Module) -> None:
    """The language model's tokens stand behind the text, wherever that ends: a mixed batch is between its parts."""
    torch.manual_seed(0)
    adapter = CrossAdapter(SHAPE)
    of = data(4, pairs=[[((0,), (3,)), ((1,), (4,))]] * 4)
    cut = replace(of, lengths=[6, 3, 6, 3])
    with torch.no_grad():
        found = [
            loss(unet, adapter, replace(of, latents=of.latents, text=of.text[:, :length]), 1.0)["entities"]
            for length in (6, 3)
        ]
        mixed = loss(unet, adapter, cut, 1.0)["entities"]
    assert min(found) < mixed < max(found)


def test_kept_captions_learn_the_model_as_it_was() -> None:
    """What low-rank weights and an adapter change is the loss; at the start, with neither, there is none."""
    unet = sd15().model.diffusion_model
    of = replace(data(4), kept=[True] * 4)
    add_low_rank(unet, 3)
    assert float(loss(unet, None, of)["loss"].detach()) == 0.0
    with torch.no_grad():
        for number, weight in enumerate(w for w in unet.parameters() if w.requires_grad):
            weight.add_(normal(*weight.shape, seed=number) * 0.02)
    found = loss(unet, None, of)["loss"]
    found.backward()
    assert float(found.detach()) > 0.0
    assert all(weight.grad is not None for weight in unet.parameters() if weight.requires_grad)
    x, t, text = normal(1, 4, 8, 8, seed=1), torch.tensor([500.0]), normal(1, 6, TEXT_WIDTH, seed=2)
    changed = unet(x, t, context=text)
    with pytest.raises(RuntimeError), without_low_rank(unet):
        as_it_was = unet(x, t, context=text)
        raise RuntimeError
    torch.testing.assert_close(as_it_was, sd15().model.diffusion_model(x, t, context=text))
    torch.testing.assert_close(unet(x, t, context=text), changed)


def test_only_kept_captions_are_kept_and_each_counts_by_its_weight(
    unet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = CrossAdapter(SHAPE)
    with torch.no_grad():
        none, half, all_kept = (
            loss(unet, adapter, replace(data(8), kept=kept))["loss"]
            for kept in ([False] * 8, [True, False] * 4, [True] * 8)
        )
        torch.testing.assert_close(none, loss(unet, adapter, data(8))["loss"])
        picks = np.random.default_rng(SEED).integers(0, 8, 4)
        assert 0 < (picks % 2 == 0).sum() < 4
        weight = "atelier.training.cross_adapter.KEPT_WEIGHT"
        monkeypatch.setattr(weight, 0.0)
        others = loss(unet, adapter, replace(data(8), kept=[True, False] * 4))["loss"]
        the_rest = loss(unet, adapter, replace(data(8), kept=[False, True] * 4))["loss"]
        torch.testing.assert_close(others + the_rest, none)
        monkeypatch.setattr(weight, 2 * KEPT_WEIGHT)
        doubled = loss(unet, adapter, replace(data(8), kept=[True, False] * 4))["loss"]
    torch.testing.assert_close(doubled - half, half - others)
    assert all_kept > 0


@pytest.mark.parametrize("words", [0, 3])
def test_captions_are_encoded_with_their_lengths(words: int) -> None:
    import comfy.supported_models_base
    from atelier_demo.tiny_sd import TinyClipModel, TinySD1Tokenizer

    clip = comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(TinySD1Tokenizer, TinyClipModel))
    fill(clip.cond_stage_model, 5)
    vae = comfy.sd.VAE(comfy.taesd.taesd.TAESD().state_dict())
    captions = ["a red star", "a red star and a blue circle below it", "a red star and a blue circle " * 20]
    picture = np.zeros((16, 16, 3), np.uint8)
    run = AdapterRun(
        [Captioned(text, picture, text) for text in captions], Plan(1, 1.0), 1, "fp32", Path(), 77, "",
        keep_words=words,
    )  # fmt: skip
    with torch.no_grad():
        encoded, said, _ = encode_captions(sd15().model, clip, vae, clip, run, Watch(print, print))
        assert said == captions
        assert encoded.lengths == [77, 77, 2 * 77]
        assert encoded.kept == [words == 3, False, False]
        for row, text in ((0, captions[0]), (1, captions[1]), (3, "")):
            alone = clip.encode_from_tokens(clip.tokenize(text), return_dict=True)["cond"]
            torch.testing.assert_close(encoded.text[row : row + 1, :77].float(), alone.float(), atol=2e-3, rtol=1e-3)


def test_low_rank_weights_start_at_the_model_and_the_stock_loader_takes_them() -> None:
    model = sd15()
    twin = sd15()
    unet = twin.model.diffusion_model
    x, t, text = normal(1, 4, 8, 8, seed=1), torch.tensor([500.0]), normal(1, 6, TEXT_WIDTH, seed=2)
    before = unet(x, t, context=text)
    add_low_rank(unet, 3)
    torch.testing.assert_close(unet(x, t, context=text), before)
    trained = {name: weight for name, weight in unet.named_parameters() if weight.requires_grad}
    assert trained and all(name.endswith((".up", ".down")) for name in trained)
    with torch.no_grad():
        for number, weight in enumerate(trained.values()):
            weight.copy_(normal(*weight.shape, seed=number) * 0.1)
    wanted = unet(x, t, context=text)
    file = lora_file({name: weight.detach().float() for name, weight in trained.items()})
    patched = comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]
    patched.patch_model()
    torch.testing.assert_close(patched.model.diffusion_model(x, t, context=text), wanted, atol=2e-3, rtol=2e-2)
    patched.unpatch_model()


def test_low_rank_weights_go_on_from_a_file() -> None:
    """In a training of the same rank or a higher one the model says what it said with the LoRA."""
    unet = sd15().model.diffusion_model
    add_low_rank(unet, 2)
    with torch.no_grad():
        for number, weight in enumerate(w for w in unet.parameters() if w.requires_grad):
            weight.add_(normal(*weight.shape, seed=number) * 0.1)
    file = lora_file(dict(unet.named_parameters()))
    x, t, text = normal(1, 4, 8, 8, seed=1), torch.tensor([500.0]), normal(1, 6, TEXT_WIDTH, seed=2)
    for rank in (2, 3):
        other = sd15().model.diffusion_model
        add_low_rank(other, rank)
        start_low_rank(other, file)
        torch.testing.assert_close(other(x, t, context=text), unet(x, t, context=text), atol=2e-3, rtol=2e-2)
    with pytest.raises(ValueError, match=r"has rank 2 in .*, and this training has 1\. Set the rank"):
        low = sd15().model.diffusion_model
        add_low_rank(low, 1)
        start_low_rank(low, file)
    for wrong in ({**file, "lora_te.alpha": torch.ones(())}, dict(list(file.items())[1:])):
        with pytest.raises(ValueError, match="has not the layers of this training"):
            start_low_rank(other, wrong)


# --- the node --------------------------------------------------------------------------------------------------

SMALL_RUN = {
    "steps": 2, "batch_size": 2, "learning_rate": 1e-4, "seed": 0, "resolution": 128, "rank": 2,
    "entity_weight": 0.01, "llm_tokens": 64, "llm_prefix": "", "precision": "fp32", "keep_words": 30,
}  # fmt: skip


def graph(dataset: str, name: str, **changes: Any) -> dict[str, Any]:
    parts = {"model": ["load", 0], "clip": ["load", 1], "vae": ["load", 2], "llm": ["llm", 0]}
    inputs = {**parts, "dataset": dataset, "name": name, **SMALL_RUN, **changes}
    return {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapeworld-base.safetensors"}},
        "llm": {"class_type": "AtelierLoadLLMEncoder", "inputs": {"encoder": "shapeworld-t5.safetensors"}},
        "train": {"class_type": "AtelierTrainCrossAdapter", "inputs": inputs},
        "name": {"class_type": "PreviewAny", "inputs": {"source": ["train", 2]}},
        "curve": {"class_type": "PreviewImage", "inputs": {"images": ["train", 4]}},
    }


def draw(adapter: list[Any], model: list[Any]) -> dict[str, Any]:
    encode = {"clip": ["load", 1], "llm": ["llm", 0], "adapter": adapter, "model": model,
              "positive": "a red star above a blue circle", "negative": "", "strength": 1.0, "layer": 0}  # fmt: skip
    return {
        "encode": {"class_type": "AtelierCrossAdapterEncode", "inputs": encode},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {"model": ["encode", 2], "positive": ["encode", 0], "negative": ["encode", 1],
                       "latent_image": ["empty", 0], "seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler",
                       "scheduler": "normal", "denoise": 1.0},
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 2]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["encode", 3]}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("captions")
    for number in range(5):
        rng = np.random.default_rng([6, number])
        scene = dense_scene(rng)
        render(scene).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(write_dense(scene, rng) if number else write(describe(scene, rng), rng))
    return str(folder)


def test_an_adapter_is_trained_and_its_files_open(server: ComfyClient, dataset: str) -> None:
    queued = graph(dataset, "dense one")
    entry = server.queue({**queued, **draw(["train", 0], ["train", 1])})
    assert entry["outputs"]["name"]["text"] == ["dense one.safetensors"]
    assert server.images(entry, "curve")[0].size == (768, 432)
    (passed_on,) = server.images(entry, "show")

    output = server.base / "output"
    file = output / "cross_adapters" / "dense one.safetensors"
    saved = load_file(file)
    assert read_adapter(saved).shape == AdapterShape(128, 128)
    state = torch.load(output / "atelier_training" / "dense one" / "state.pt", weights_only=True)
    assert all(torch.equal(saved[name], state["mean"][f"adapter.{name}"]) for name in saved)

    opened = {
        "load": queued["load"],
        "llm": queued["llm"],
        "adapter": {"class_type": "AtelierLoadCrossAdapter", "inputs": {"adapter": "dense one.safetensors"}},
        "lora": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["load", 0], "lora_name": "dense one.safetensors", "strength_model": 1.0},
        },
        **draw(["adapter", 0], ["lora", 0]),
    }
    entry = server.queue(opened)
    (again,) = server.images(entry, "show")
    assert again.tobytes() == passed_on.tobytes()
    assert entry["outputs"]["report"]["text"][0].startswith("positive: ")


def test_a_training_goes_on_from_an_adapter_and_its_lora(server: ComfyClient, dataset: str) -> None:
    """One step at a low rate ends next to the files that it began with."""
    queued = graph(
        dataset, "further", steps=1, rank=14, learning_rate=1e-6, start=["start", 0],
        start_lora="shapeworld-adapter.safetensors",
    )  # fmt: skip
    queued["start"] = {"class_type": "AtelierLoadCrossAdapter", "inputs": {"adapter": "shapeworld.safetensors"}}
    server.queue(queued)
    output, models = server.base / "output", server.base / "models"
    made = load_file(output / "loras" / "further.safetensors")
    began = load_file(models / "loras" / "shapeworld-adapter.safetensors")
    assert made.keys() == began.keys()
    for key, weight in began.items():
        mine = made[key].flatten(1)
        kept = mine[:, : weight.shape[1]] if "lora_up" in key else mine[: len(weight)]
        torch.testing.assert_close(kept.float(), weight.flatten(1).float(), atol=1e-4, rtol=1e-3)
    adapter = load_file(output / "cross_adapters" / "further.safetensors")
    for key, weight in load_file(models / "cross_adapters" / "shapeworld.safetensors").items():
        torch.testing.assert_close(adapter[key], weight.float(), atol=1e-4, rtol=1e-3)


def test_an_interrupted_training_goes_on(server: ComfyClient, dataset: str) -> None:
    stops: list[threading.Thread] = []
    folder = server.base / "output" / "atelier_training" / "long adapter"

    def stop(step: Any) -> None:
        if step.node_type == "AtelierTrainCrossAdapter" and step.value >= 2 and not stops:
            stops.append(threading.Thread(target=server.post, args=("/interrupt", {})))
            stops[0].start()

    with pytest.raises(GraphError, match="was interrupted"):
        server.queue(graph(dataset, "long adapter", steps=500), on_progress=stop)
    stops[0].join()
    reached = torch.load(folder / "state.pt", weights_only=True)["step"]
    server.queue(graph(dataset, "long adapter", steps=reached + 1))
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == reached + 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset": ""}, r"There is no data set\. Write the path"),
        ({"captions": "nothing here"}, "There is no folder of captions"),
        ({"dataset": "nothing here"}, r"There is no data set .*nothing here"),
        ({"name": "../away"}, "is no name for a cross adapter"),
        ({"name": "shapeworld-adapter"}, r"There is a lora shapeworld-adapter\.safetensors already"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"start_lora": "shapeworld-adapter.safetensors"}, r"has rank 12 in .* this training has 2\. Set the rank"),
        ({"start_lora": "shapeworld-adapter.safetensors", "rank": 0}, "needs a rank"),
        ({"keep_words": 1000}, "None of the 5 captions has more than 1000 words"),
    ],
)
def test_bad_input_is_refused_by_name(server: ComfyClient, dataset: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GraphError, match=says):
        server.queue(graph(**{"dataset": dataset, "name": "refused", **changes}))
    assert not (server.base / "output" / "cross_adapters" / "refused.safetensors").exists()


def test_no_adapter_and_no_encoder_are_told_with_their_folders(server: ComfyClient) -> None:
    for node, inputs in (
        ("AtelierLoadCrossAdapter", {"adapter": "no.pth"}),
        ("AtelierLoadLLMEncoder", {"encoder": "no"}),
    ):
        with pytest.raises(GraphError, match=r"not in list|There is no"):
            server.queue(
                {
                    "1": {"class_type": node, "inputs": inputs},
                    "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
                }
            )
