"""FABRIC against an implementation written from the paper, on small random UNets through the host's own samplers."""

from __future__ import annotations

import pytest
import torch
from atelier.attention.patches import FabricSchedule
from naive_fabric import naive_run, relative
from small_unets import Patcher, latents, listen, normal, sample, sd15, sdxl
from torch import Tensor


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def model(request: pytest.FixtureRequest) -> Patcher:
    return sd15() if request.param == "SD15" else sdxl()


@pytest.mark.parametrize("scheduler", ["normal", "karras"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("liked", "disliked"), [(1, 0), (0, 1), (1, 1), (2, 1), (4, 4)], ids=str)
def test_agrees_with_the_paper_for_any_count(
    model: Patcher, liked: int, disliked: int, rows: int, scheduler: str
) -> None:
    pictures, noise = (latents(liked), latents(disliked, seed=200)), normal(rows, 4, 8, 8, seed=1)
    wanted = naive_run(model, noise, *pictures, 0.8, scheduler)
    assert relative(sample(listen(model, *pictures), noise, scheduler=scheduler), wanted) <= 1e-5
    assert relative(sample(model, noise, scheduler=scheduler), wanted) > 1e-2, "feedback must matter here"


@pytest.mark.parametrize(
    ("liked", "disliked", "shape", "weight"),
    [
        (latents(1), [], (1, 4, 8, 8), 0.8),
        ([], latents(1), (1, 4, 8, 8), 0.8),
        (latents(1), latents(1, seed=200), (1, 4, 8, 8), 1.0),
        (latents(3), latents(1, seed=200), (2, 4, 8, 8), 0.3),
        (latents(4), latents(4, seed=200), (1, 4, 8, 12), 0.8),
        (latents(1, 12, 4) + latents(1, 5, 7), latents(1, 5, 7, seed=200), (2, 4, 8, 12), 0.8),
        (latents(1, 4, 4), latents(2, 16, 16, seed=200), (1, 4, 8, 8), 1.5),
    ],
    ids=[
        "liked",
        "disliked",
        "one-each-weight-1",
        "unequal-batch-2",
        "four-each-wide",
        "sizes-mixed",
        "tiny-and-large",
    ],
)
def test_agrees_with_the_paper_for_any_size(
    model: Patcher, liked: list[Tensor], disliked: list[Tensor], shape: tuple[int, ...], weight: float
) -> None:
    schedule = FabricSchedule(weight, 0.0, 1.0, 0.0, 0.5)
    noise = normal(*shape, seed=1)
    wanted = naive_run(model, noise, liked, disliked, weight)
    assert relative(sample(listen(model, liked, disliked, schedule), noise), wanted) <= 1e-5
    assert relative(sample(model, noise), wanted) > 1e-2, "feedback must matter for this test to mean anything"


@pytest.mark.parametrize(
    ("weight", "weights"),
    [(0.8, ([1.0, 0.2, 0.5], [0.3, 1.0])), (1.25, ([0.8, 0.8, 0.8], [1.6, 1.6])), (1.0, ([1.0, 1.0, 0.1], [1.0, 1.0]))],
    ids=["strong-and-weak", "their-product-is-1", "only-one-differs"],
)
def test_agrees_with_the_paper_for_pictures_of_unequal_weight(
    model: Patcher, weight: float, weights: tuple[list[float], list[float]]
) -> None:
    pictures, noise = (latents(2) + latents(1, 4, 6), latents(2, seed=200)), normal(2, 4, 8, 8, seed=1)
    wanted = naive_run(model, noise, *pictures, weight, weights=weights)
    schedule = FabricSchedule(weight, 0.0, 1.0, 0.0, 0.5)
    assert relative(sample(listen(model, *pictures, schedule, weights), noise), wanted) <= 1e-5
    if weights[0][0] != weights[0][-1]:
        assert relative(sample(listen(model, *pictures, schedule), noise), wanted) > 1e-3, "the weights must matter"


@pytest.mark.parametrize("renew_every", [2, 3])
def test_references_serve_for_several_noise_levels(model: Patcher, renew_every: int) -> None:
    pictures, noise = (latents(2), latents(1, seed=200)), normal(1, 4, 8, 8, seed=1)
    wanted = naive_run(model, noise, *pictures, 0.8, renew_every=renew_every)
    schedule = FabricSchedule(0.8, 0.0, 1.0, 0.0, 0.5, renew_every=renew_every)
    assert relative(sample(listen(model, *pictures, schedule), noise), wanted) <= 1e-5
    assert relative(sample(listen(model, *pictures), noise), wanted) > 1e-5, "it must matter"


RISING = {
    "SD15": [0.0, 1 / 3, 1 / 3, 1.0, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0.0, 0.0],
    "SDXL": [1 / 3, *3 * [2 / 3], *3 * [1.0], *6 * [2 / 3], 1 / 3, 1 / 3],
}
"""Depths of the self-attentions, as they run: of three resolutions, then the bottleneck."""


@pytest.mark.parametrize("depth", ["coarse", "fine", "rising"])
def test_layers_listen_by_their_depth(model: Patcher, depth: str) -> None:
    rising = RISING["SD15" if model.model.diffusion_model.num_classes is None else "SDXL"]
    depths = rising if depth == "rising" else [float((one >= 0.5) == (depth == "coarse")) for one in rising]
    pictures, noise = (latents(1), latents(1, seed=200)), normal(1, 4, 8, 8, seed=1)
    wanted = naive_run(model, noise, *pictures, 0.8, depths=depths)
    schedule = FabricSchedule(0.8, 0.0, 1.0, 0.0, 0.5, depth=depth)
    assert relative(sample(listen(model, *pictures, schedule), noise), wanted) <= 1e-5
    assert relative(sample(listen(model, *pictures), noise), wanted) > 1e-3, "the depth must matter"


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_weight_0_is_the_plain_model_bit_for_bit(model: Patcher, weight: float) -> None:
    noise, schedule = normal(3, 4, 8, 8, seed=1), FabricSchedule(weight, 0.0, 1.0, 0.0, 0.5)
    patched = listen(model, latents(2), latents(1, seed=200), schedule)
    assert torch.equal(sample(patched, noise), sample(model, noise)) == (weight == 0.0)
