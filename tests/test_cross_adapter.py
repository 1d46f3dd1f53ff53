"""The Cross-Adapter of LLM4GEN: the module against the paper's arithmetic, its files, and what the host makes of it."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.sample
import comfy.supported_models
import psutil
import pytest
import torch
from atelier.attention.cross_adapter import AdapterShape, CrossAdapter, is_cross_adapter, read_adapter
from atelier.nodes.cross_adapter import open_adapter
from naive_adapter import naive, random_state
from safetensors.torch import save_file
from small_unets import patcher

RELEASED = AdapterShape(2048, 768)


@pytest.mark.parametrize("shape", [AdapterShape(24, 16, 8), AdapterShape(12, 32, 4, layers=2)])
def test_agrees_with_the_papers_arithmetic(shape: AdapterShape) -> None:
    state = random_state(shape)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 5, shape.text_width, generator=generator)
    llm = torch.randn(2, 3, shape.llm_width, generator=generator)
    found = read_adapter(state, shape.heads)(text, llm)
    torch.testing.assert_close(found, naive(text, llm, state, shape).float(), atol=1e-5, rtol=1e-5)


def test_the_released_layout_loads_and_saves_back_as_it_was() -> None:
    state = random_state(RELEASED)
    assert len(state) == 20
    assert sum(weight.numel() for weight in state.values()) == 8_663_040
    saved = read_adapter(state).state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in state.items())


def test_text_tokens_stay_and_strength_scales_the_others() -> None:
    shape = AdapterShape(24, 16)
    adapter, text, llm = read_adapter(random_state(shape)), torch.randn(1, 4, 16), torch.randn(1, 3, 24)
    whole, half, none = (adapter(text, llm, strength) for strength in (1.0, 0.5, 0.0))
    assert all(torch.equal(found[:, :4], text) for found in (whole, half, none))
    torch.testing.assert_close(half[:, 4:], whole[:, 4:] / 2)
    assert not none[:, 4:].any()
    assert whole.shape == (1, 7, 16)


def test_a_masked_text_token_is_not_looked_at() -> None:
    shape = AdapterShape(24, 16)
    adapter, text, llm = read_adapter(random_state(shape)), torch.randn(1, 4, 16), torch.randn(1, 3, 24)
    mask = torch.tensor([[True, True, True, False]])
    other = text.clone()
    other[:, 3] = 9.0
    torch.testing.assert_close(adapter(text, llm, mask=mask)[:, 4:], adapter(other, llm, mask=mask)[:, 4:])
    torch.testing.assert_close(adapter(text, llm, mask=mask)[:, 4:], adapter(text[:, :3], llm)[:, 3:])
    assert not torch.allclose(adapter(text, llm)[:, 4:], adapter(other, llm)[:, 4:])


def test_what_does_not_fit_is_told_tensor_by_tensor() -> None:
    state = random_state(AdapterShape(24, 16))
    state["CrossFusionModule.0.k_proj.weight"] = torch.zeros(16, 15)
    del state["CrossFusionModule.0.norm.bias"]
    state["CrossFusionModule.0.extra"] = torch.zeros(1)
    with pytest.raises(ValueError) as told:
        read_adapter(state)
    for part in ("k_proj.weight", "[16, 15]", "[16, 16]", "norm.bias is missing", "extra is unknown"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match=r"no CrossFusionModule\.0\.llm_proj"):
        read_adapter({"lora_up.weight": torch.zeros(2, 2)})
    assert not is_cross_adapter({"lora_up.weight": torch.zeros(2, 2)})


def test_an_input_of_another_width_is_named() -> None:
    adapter = CrossAdapter(AdapterShape(24, 16))
    with pytest.raises(ValueError, match=r"language model of width 24, and this one's is 20"):
        adapter(torch.zeros(1, 2, 16), torch.zeros(1, 2, 20))
    with pytest.raises(ValueError, match=r"text encoder of width 16, and this one's is 17"):
        adapter(torch.zeros(1, 2, 17), torch.zeros(1, 2, 24))


def test_files_say_how_they_read_and_released_ones_need_not(tmp_path) -> None:
    state = random_state(AdapterShape(24, 16))
    torch.save(state, tmp_path / "projector.pth")
    released = open_adapter(tmp_path / "projector.pth")
    assert (released.tokens, released.prefix, released.module.shape.heads) == (256, "pre ", 8)
    about = {"atelier.llm_tokens": "40", "atelier.llm_prefix": "", "atelier.heads": "4"}
    save_file(state, tmp_path / "own.safetensors", about)
    own = open_adapter(tmp_path / "own.safetensors")
    assert (own.tokens, own.prefix, own.module.shape.heads) == (40, "", 4)


class Code:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("code of a file ran",)


def test_bad_files_are_refused(tmp_path, capsys) -> None:
    torch.save({"weight": Code()}, tmp_path / "code.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"lora.up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    for name in ("code.pth", "cut.safetensors", "noise.pth", "empty.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            open_adapter(tmp_path / name)
    with pytest.raises(ValueError, match="A LoRA goes into models/loras"):
        open_adapter(tmp_path / "lora.safetensors")
    assert "code of a file ran" not in capsys.readouterr().out


SDXL: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64, "context_dim": 2048,
    "use_linear_in_transformer": True, "use_spatial_transformer": True, "use_temporal_attention": False,
    "legacy": False, "num_classes": "sequential", "adm_in_channels": 2816, "dtype": torch.bfloat16,
}  # fmt: skip
"""SDXL's UNet at full size: 2.6 billion parameters."""


@pytest.mark.skipif(psutil.virtual_memory().available < 10 * 2**30, reason="10 GiB of free memory are needed")
def test_a_full_size_sdxl_samples_with_an_adapter_2048_wide() -> None:
    base = comfy.model_base.SDXL(comfy.supported_models.SDXL(dict(SDXL)), device="cpu")
    parameters = list(base.diffusion_model.parameters())
    assert sum(weight.numel() for weight in parameters) == 2_567_463_684
    for weight in parameters:
        weight.data.fill_(1e-3)
    adapter = read_adapter(random_state(AdapterShape(2048, 2048)))
    fused = adapter(torch.randn(2, 77, 2048), torch.randn(2, 256, 2048))
    assert fused.shape == (2, 333, 2048)
    positive, negative = ([[row[None], {"pooled_output": torch.zeros(1, 1280)}]] for row in fused)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = comfy.sample.sample(
        patcher(base), x, 1, 5.0, "euler", "normal", positive, negative, torch.zeros_like(x), disable_pbar=True
    )
    assert drawn.shape == x.shape
    assert drawn.isfinite().all()
