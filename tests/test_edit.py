"""Edits by instruction in the real host: over the API with the demo's editor, and on small models of other families."""

from __future__ import annotations

import copy
from typing import Any

import comfy.model_detection
import comfy.samplers
import comfy.utils
import numpy as np
import pytest
import torch
from atelier.attention.diffusers_edit import CONV_IN, host_layout
from atelier.attention.edit import KEEP, OFFICIAL, fit, official_size, read_instructions
from atelier.attention.guidance import ScaleSchedule
from atelier.attention.guider import EditGuidance, EditGuider, edit_noise, with_picture, without_picture
from atelier.nodes.edit import AtelierDualCFGGuider, AtelierInstructPix2Pix
from atelier.nodes.guidance_grid import read_scales
from comfy_api_client import ComfyClient, GraphError
from graphs import for_demo, load, node_of
from PIL import Image
from shapeworld.edit_trial import edit_trials
from small_dits import DITS, conditioning
from small_unets import NEGATIVE, POSITIVE, normal, sd15
from small_unets import conditioning as unet_conditioning
from torch import Tensor

# --- the picture's size


@pytest.mark.parametrize(
    ("width", "height", "side", "size"),
    [
        (512, 512, 512, (512, 512)), (1024, 768, 512, (512, 384)), (640, 427, 512, (512, 384)), (1, 1, 512, (512, 512)),
        (5000, 37, 512, (8640, 64)), (128, 128, 128, (128, 128)), (300, 900, 512, (192, 576)),
    ],
)  # fmt: skip
def test_the_official_size(width: int, height: int, side: int, size: tuple[int, int]) -> None:
    """Worked out by hand from edit_cli.py's three lines."""
    assert official_size(width, height, side) == size


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5000, 37), (130, 61), (64, 64)])
@pytest.mark.parametrize("rule", [OFFICIAL, KEEP])
def test_any_picture_fits(width: int, height: int, rule: str) -> None:
    fitted = fit(torch.rand(1, height, width, 4), rule, 512, 8)
    assert fitted.shape[-1] == 3
    assert all(side % 8 == 0 and side >= 64 for side in fitted.shape[1:3])
    if rule == KEEP and width >= 64:
        assert abs(fitted.shape[2] - width) <= 4


def test_a_picture_of_a_fitting_size_is_not_touched() -> None:
    picture = torch.rand(2, 64, 128, 3)
    assert torch.equal(fit(picture, KEEP, 512, 8), picture)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (torch.full((1, 64, 64, 3), torch.nan), "NaN"),
        (torch.zeros(0, 64, 64, 3), "no picture"),
        (torch.zeros(1, 8, 20000, 3), "longest side"),
    ],
)
def test_a_picture_that_cannot_be_edited_is_refused(picture: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(picture, KEEP, 512, 8)


# --- instructions


@pytest.mark.parametrize(
    ("text", "pictures", "in_turn", "turns"),
    [
        ("a", 3, False, [["a", "a", "a"]]), ("a\n\n b ", 2, False, [["a", "b"]]),
        ("a\nb\nc", 1, False, [["a", "b", "c"]]), ("a\nb", 2, True, [["a", "a"], ["b", "b"]]),
    ],
)  # fmt: skip
def test_lines_are_instructions(text: str, pictures: int, in_turn: bool, turns: list[list[str]]) -> None:
    assert read_instructions(text, pictures, in_turn) == turns


@pytest.mark.parametrize(("text", "pictures", "words"), [(" \n ", 1, "empty"), ("a\nb", 3, "2 instructions for 3")])
def test_lines_that_do_not_fit_are_refused(text: str, pictures: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_instructions(text, pictures, False)


def test_scales_are_read_from_text() -> None:
    assert read_scales("1, 2.5;-3,", "x") == [1.0, 2.5, -3.0]
    with pytest.raises(ValueError, match="text_scales"):
        read_scales("a, b", "text_scales")


# --- models


def test_a_model_without_input_for_a_picture_is_refused() -> None:
    picture = {"samples": normal(1, 4, 8, 8, seed=1)}
    with pytest.raises(ValueError, match="8 input channels"):
        AtelierDualCFGGuider.execute(
            sd15(), unet_conditioning(POSITIVE), unet_conditioning(NEGATIVE), 7.5, 1.5, picture
        )


def test_a_guider_without_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture to edit"):
        AtelierDualCFGGuider.execute(
            DITS["flux"].make(), unet_conditioning(POSITIVE), unet_conditioning(NEGATIVE), 7.5, 1.5
        )


def test_unet_of_diffusers_is_renamed_and_recognised() -> None:
    """Names and shapes of a whole SD1.5 UNet, without its weights."""
    known = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4], "num_heads": 8, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "context_dim": 768,
        "use_linear_in_transformer": False, "use_temporal_attention": False, "adm_in_channels": None,
        "use_spatial_transformer": True, "legacy": False, "use_temporal_resblock": False,
    }  # fmt: skip
    names = comfy.utils.unet_to_diffusers(known)
    weights = {name: torch.empty(768, 768, device="meta") for name in names if "_embedding" not in name}
    weights[CONV_IN] = torch.empty(320, 8, 3, 3, device="meta")
    assert comfy.model_detection.unet_config_from_diffusers_unet(weights) is None
    renamed = host_layout(weights)
    assert renamed["input_blocks.0.0.weight"].shape == (320, 8, 3, 3)
    assert set(renamed) == {names[name] for name in weights}
    assert host_layout(renamed) is renamed


# --- models that take reference latents


@pytest.mark.parametrize("family", ["flux", "qwen-image"])
def test_equation_3_with_a_reference_latent_present_or_absent(family: str) -> None:
    small = DITS[family]
    model, noise = small.make(), small.noise(1)
    prompts = [conditioning(small.prompt(seed, 7)) for seed in (1, 2)]
    reference = small.latents(1)[0].unsqueeze(0)
    conds = with_picture(prompts[0], reference, False), with_picture(prompts[1], reference, False), prompts[1]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1)

    def first(text: float, picture: float) -> Tensor:
        guider = EditGuider(model, EditGuidance(ScaleSchedule(text), ScaleSchedule(picture)))
        guider.set_conds(*conds)
        euler = comfy.samplers.sampler_object("euler")
        made = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=1)
        return model.model.process_latent_in(made)

    full, picture, neither = first(1.0, 1.0), first(0.0, 1.0), first(0.0, 0.0)
    assert not torch.allclose(picture, neither, atol=1e-3)
    wanted = neither + 1.5 * (picture - neither) + 7.5 * (full - picture)
    torch.testing.assert_close(first(7.5, 1.5), wanted, rtol=1e-4, atol=1e-4)


def test_a_picture_is_added_and_taken_out() -> None:
    plain = unet_conditioning(POSITIVE)
    for concat in (True, False):
        shown = with_picture(plain, normal(1, 4, 8, 8, seed=1), concat)
        hidden = without_picture(shown)
        assert {k: v for k, v in hidden[0][1].items() if k != "reference_latents"} == plain[0][1]


def test_a_row_has_the_noise_of_its_own_seed() -> None:
    batch = edit_noise((3, 4, 8, 8), 2**64 - 2)
    for row, seed in enumerate((2**64 - 2, 2**64 - 1, 0)):
        assert torch.equal(batch[row : row + 1], edit_noise((1, 4, 8, 8), seed))


# --- over the API


def picture_of(server: ComfyClient, name: str = "scene.png", mode: str = "RGB", size: int = 128) -> str:
    picture = edit_trials(1)[0].picture.convert(mode).resize((size, size))
    return server.upload(picture, name)


def edit_graph(**changes: Any) -> dict[str, Any]:
    return for_demo(load("edit_by_instruction"), steps=2, seed=1, **changes)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.int64)


def test_an_edit_over_the_api_comes_back_at_the_pictures_size(server: ComfyClient) -> None:
    graph = edit_graph(image=picture_of(server, size=100), instruction="make it night")
    pair = server.images(server.queue(graph))[0]
    assert pair.size == (2 * 100 + 8, 100)


def test_a_masked_edit_leaves_every_other_pixel(server: ComfyClient) -> None:
    """The mask is the picture's alpha: its right half may change. It has another size than the latent."""
    before = edit_trials(1)[0].picture.convert("RGBA")
    before.putalpha(Image.fromarray(np.where(np.arange(128)[None] < 64, 255, 0).astype(np.uint8).repeat(128, 0)))
    graph = for_demo(load("edit_with_mask"), steps=3, seed=1, image=server.upload(before, "masked.png"))
    pair = pixels(server.images(server.queue(graph))[0])
    source, after = pair[:, :128], pair[:, 136:]
    assert np.array_equal(after[:, :64], source[:, :64])
    assert np.abs(after[:, 64:] - source[:, 64:]).max() > 30


def test_edits_in_turn_over_the_api(server: ComfyClient) -> None:
    """Two lines in turn are two edits, the second of the first one's latents."""
    image = picture_of(server)
    graph = for_demo(load("edit_in_steps"), steps=2, seed=1, image=image, wish="make it night, then redraw it in chalk")
    both = pixels(server.images(server.queue(graph))[0])
    one = copy.deepcopy(graph)
    one[node_of(one, "Plan")]["inputs"]["wish"] = "make it night"
    assert not np.array_equal(both, pixels(server.images(server.queue(one))[0]))


def test_a_picture_of_a_batch_is_that_of_its_seed_alone(server: ComfyClient) -> None:
    """Two instructions for one picture are two edits; the second has the next seed."""
    image = picture_of(server)
    edit = node_of(edit_graph(), "Edit")

    def drawn(instruction: str, seed: int) -> list[Image.Image]:
        graph = edit_graph(image=image, instruction=instruction)
        graph[edit]["inputs"]["seed"] = seed
        graph["99"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [node_of(graph, "Decode"), 0], "filename_prefix": "t"},
        }
        return server.images(server.queue(graph), "99")

    both, second = drawn("make it night\nredraw it in chalk", 5), drawn("redraw it in chalk", 6)
    assert len(both) == 2
    assert np.abs(pixels(both[1]) - pixels(second[0])).max() <= 2


def test_the_grid_over_the_api(server: ComfyClient) -> None:
    graph = for_demo(
        load("guidance_grid"), steps=2, seed=1, image=picture_of(server), text_scales="1, 4", image_scales="1, 1.5, 2"
    )
    sheet = server.images(server.queue(graph), node_of(graph, "One edit at many scales"))[0]
    assert sheet.width > 2 * 128 and sheet.height > 3 * 128


@pytest.mark.parametrize("scales", [(0.0, 0.0), (-3.0, 1.5), (1000.0, 1000.0), (7.5, -1.0)])
def test_any_finite_scale_runs(server: ComfyClient, scales: tuple[float, float]) -> None:
    graph = edit_graph(image=picture_of(server), text_scale=scales[0], image_scale=scales[1])
    assert server.images(server.queue(graph))


@pytest.mark.parametrize("size", [1, 700])
def test_a_very_small_or_larger_picture_runs(server: ComfyClient, size: int) -> None:
    pair = server.images(server.queue(edit_graph(image=picture_of(server, f"s{size}.png", size=size))))[0]
    assert pair.height == size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instruction": "  "}, "instruction is empty"),
        ({"ckpt_name": "shapeworld-base.safetensors"}, "8 input channels"),
        ({"instruction": "a\nb\nc", "image": "two"}, None),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_input_is_explained(server: ComfyClient, changes: dict[str, Any], words: str | None) -> None:
    graph = edit_graph(image=picture_of(server))
    changes = {name: value for name, value in changes.items() if name != "image"}
    for node in graph.values():
        node["inputs"].update({name: value for name, value in changes.items() if name in node["inputs"]})
    if words is None:
        assert server.images(server.queue(graph))
        return
    with pytest.raises(GraphError, match=words):
        server.queue(graph)


def test_the_schema_says_what_api_users_may_leave_out() -> None:
    needed = {one.id for one in AtelierInstructPix2Pix.define_schema().inputs if not one.optional}
    assert needed == {
        "model", "clip", "vae", "image", "instruction", "seed", "steps", "text_scale", "image_scale",
    }  # fmt: skip
