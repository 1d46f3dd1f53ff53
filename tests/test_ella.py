"""ELLA's resampler against a naive one with explicit matrix products, and the reading of its weights."""

from __future__ import annotations

import math

import pytest
import torch
from atelier.attention.ella import TimeResampler, is_ella, read_ella
from torch import Tensor

State = dict[str, Tensor]


def shapes(llm: int, width: int, latents: int, layers: int, time: int, channels: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a file, written down from the released one."""
    linear = {
        "connector.time_aware_linear": (width, time),
        "connector.proj_in": (width, llm),
        "time_embedding.linear_1": (time, channels),
        "time_embedding.linear_2": (time, time),
    }
    found = {"connector.latents": (latents, width)}
    for layer in range(layers):
        block = f"connector.perceiver_blocks.{layer}"
        found |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        linear |= {f"{block}.attn.out_proj": (width, width)}
        linear |= {f"{block}.mlp.c_fc": (4 * width, width), f"{block}.mlp.c_proj": (width, 4 * width)}
        linear |= {f"{block}.{norm}.linear": (2 * width, time) for norm in ("ln_1", "ln_2", "ln_ff")}
    for name, shape in linear.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def random_state(llm: int = 20, width: int = 32, latents: int = 5, layers: int = 2, time: int = 24) -> State:
    generator = torch.Generator().manual_seed(3)
    found = shapes(llm, width, latents, layers, time, channels=16)
    return {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in found.items()}


def naive(state: State, llm: Tensor, timestep: float, heads: int) -> Tensor:
    """One row [M, llm] to [latents, width], in float64 and with loops."""
    weights = {name: tensor.double() for name, tensor in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    half = weights["time_embedding.linear_1.weight"].shape[1] // 2
    angles = [timestep / 10000 ** (index / half) for index in range(half)]
    position = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)
    time = linear("time_embedding.linear_2", silu(linear("time_embedding.linear_1", position)))

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        moved = linear(f"{name}.linear", silu(time))
        shift, scale = moved[: len(moved) // 2], moved[len(moved) // 2 :]
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * (1 + scale) + shift

    def attend(name: str, queries: Tensor, keys: Tensor) -> Tensor:
        size = queries.shape[1]
        matrices = weights[f"{name}.in_proj_weight"].split(size)
        biases = weights[f"{name}.in_proj_bias"].split(size)
        q, k, v = (x @ m.T + b for x, m, b in zip((queries, keys, keys), matrices, biases, strict=True))
        each = size // heads
        parts = []
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            logits = q[:, own] @ k[:, own].T / math.sqrt(each)
            exponents = torch.exp(logits - logits.max())
            parts.append(exponents / exponents.sum(-1, keepdim=True) @ v[:, own])
        return linear(f"{name}.out_proj", torch.cat(parts, dim=1))

    text = linear("connector.proj_in", llm.double())
    x = weights["connector.latents"] + linear("connector.time_aware_linear", silu(time))
    layers = sum(name.endswith("in_proj_bias") for name in weights)
    for block in (f"connector.perceiver_blocks.{layer}" for layer in range(layers)):
        queries = norm(f"{block}.ln_1", x)
        x = x + attend(f"{block}.attn", queries, torch.cat([queries, norm(f"{block}.ln_2", text)]))
        hidden = linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_ff", x)).clamp(min=0) ** 2
        x = x + linear(f"{block}.mlp.c_proj", hidden)
    return x


@pytest.mark.parametrize("heads", [8, 4])
@pytest.mark.parametrize("layers", [1, 3])
def test_equals_a_naive_one(layers: int, heads: int) -> None:
    state = random_state(layers=layers)
    llm = torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0.0, 417.25, 999.0])
    made = read_ella(state, heads)(llm, timesteps)
    wanted = torch.stack(
        [naive(state, row, float(step), heads) for row, step in zip(llm, timesteps, strict=True)]
    ).float()
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_the_released_shapes_are_93_tensors() -> None:
    released = shapes(llm=2048, width=768, latents=64, layers=6, time=768, channels=320)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in released.items()}
        resampler = read_ella(state)
        made = resampler(torch.empty(2, 128, 2048), torch.empty(2))
    assert len(state) == 93 and {name: tuple(t.shape) for name, t in resampler.state_dict().items()} == released
    assert (resampler.llm_width, resampler.text_width, tuple(made.shape)) == (2048, 768, (2, 64, 768))


def test_what_was_read_is_saved_back() -> None:
    state = {name: tensor.half() for name, tensor in random_state().items()}
    saved = read_ella(state).state_dict()
    assert saved.keys() == state.keys() and all(torch.equal(saved[name], state[name]) for name in state)
    assert all(tensor.dtype == torch.float16 for tensor in saved.values())


@pytest.fixture
def resampler() -> TimeResampler:
    return read_ella(random_state())


def test_a_fractional_timestep_lies_between(resampler: TimeResampler) -> None:
    llm = torch.randn(1, 7, 20, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1)
    before, between, after = resampler(llm, torch.tensor([500.0, 500.5, 501.0]))
    whole = (after - before).norm()
    for part in (between - before, after - between):
        assert 0.2 * whole < part.norm() < 0.8 * whole


def test_rows_are_independent(resampler: TimeResampler) -> None:
    llm = torch.randn(4, 7, 20, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([10.0, 300.0, 700.0, 990.0])
    together = resampler(llm, timesteps)
    for row in range(4):
        alone = resampler(llm[row : row + 1], timesteps[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(resampler(llm[order], timesteps[order]), together[order], rtol=1e-5, atol=1e-5)


def test_half_precision_weights_take_any_features() -> None:
    half = read_ella({name: tensor.bfloat16() for name, tensor in random_state().items()})
    made = half(torch.randn(1, 7, 20), torch.tensor([999]))
    assert made.dtype == torch.bfloat16 and made.isfinite().all()


def test_a_file_is_recognised() -> None:
    state = random_state()
    assert is_ella(state)
    assert is_ella({name: tensor for name, tensor in state.items() if name != "connector.latents"})
    assert not is_ella({"CrossFusionModule.0.q_proj.weight": torch.zeros(1)}) and not is_ella({})


def test_wrong_tensors_are_told_one_by_one() -> None:
    state = random_state()
    state["connector.perceiver_blocks.1.mlp.c_fc.bias"] = torch.zeros(7)
    del state["connector.proj_in.bias"]
    state["connector.proj_out.weight"] = torch.zeros(2, 3)
    with pytest.raises(ValueError) as error:
        read_ella(state)
    assert str(error.value).splitlines()[1:] == [
        "connector.proj_in.bias is missing, wanted [32]",
        "connector.perceiver_blocks.1.mlp.c_fc.bias has the shape [7], wanted [128]",
        "connector.proj_out.weight is unknown, found [2, 3]",
    ]


def test_many_wrong_tensors_are_not_all_listed() -> None:
    state = {**random_state(), "connector.latents": torch.zeros(5, 64)}
    with pytest.raises(ValueError, match="has the shape") as error:
        read_ella(state)
    lines = str(error.value).splitlines()
    assert len(lines) == 10 and lines[-1].startswith("and ")


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("connector.latents", None, "connector.latents is missing"),
        ("time_embedding.linear_1.weight", None, "time_embedding.linear_1.weight is missing"),
        ("connector.proj_in.weight", torch.zeros(32), r"has the shape \[32\], wanted two dimensions"),
        ("connector.latents", torch.zeros(5, 33), "33, which does not divide by 8 heads"),
        ("connector.perceiver_blocks.7.mlp.c_fc.bias", torch.zeros(128), "blocks.2.* is missing"),
    ],
)
def test_a_broken_file_says_what_is_wrong(name: str, tensor: Tensor | None, why: str) -> None:
    state = {key: value for key, value in {**random_state(), name: tensor}.items() if value is not None}
    with pytest.raises(ValueError, match=why):
        read_ella(state)
