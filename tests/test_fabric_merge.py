"""Merged reference tokens: exact where neighbours agree, near otherwise, cheaper, and not mixed up with full ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from atelier.attention.reference import (
    LIKED,
    KeysValues,
    Reference,
    attend_to_references,
    join_references,
    merge_tokens,
)
from comfy.ldm.modules.attention import attention_basic
from naive_fabric import relative
from small_unets import ALWAYS, Patcher, latents, listen, normal, sample, sd15, sdxl
from torch import Tensor

BLOCK = ("input", 1, 0)


@pytest.fixture(scope="module", params=[sd15, sdxl], ids=["SD15", "SDXL"])
def model(request: pytest.FixtureRequest) -> Patcher:
    return request.param()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return attention_basic(q, k, v, 2, mask=mask)


def squares(height: int, width: int, seed: int) -> Tensor:
    """Tokens [1, height * width, 16] that are the same in each square of 2 x 2."""
    cells = normal(1, 16, height // 2, width // 2, seed=seed)
    return cells.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(2).mT


@pytest.mark.parametrize("weight", [1.0, 0.8])
def test_merging_is_exact_where_neighbours_agree(weight: float) -> None:
    q, k, v = (normal(3, 24, 16, seed=seed) for seed in (1, 2, 3))
    full = {BLOCK: KeysValues(squares(4, 6, 4), squares(4, 6, 5))}
    merged = merge_tokens(full, 1, (4, 6), 20)
    assert merged[BLOCK].keys.shape == (1, 6, 16)
    reference = Reference(normal(4, 4, 6, seed=6), LIKED, 0.5)
    found = [
        attend_to_references(attention, q, k, v, join_references([(reference, parts)])[BLOCK][LIKED], weight)
        for parts in (merged, full)
    ]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    other = {BLOCK: KeysValues(merged[BLOCK].keys, merged[BLOCK].values)}
    plain = attend_to_references(attention, q, k, v, join_references([(reference, other)])[BLOCK][LIKED], weight)
    assert not torch.allclose(plain, found[1], atol=1e-3), "a merged token must count as four"


def test_odd_sides_and_other_grids() -> None:
    tokens = normal(2, 15, 16, seed=1)
    merged = merge_tokens({BLOCK: KeysValues(tokens, tokens)}, 2, (5, 3), 8)[BLOCK]
    assert merged.keys.shape == (2, 6, 16)
    assert merged.each == 15 / 6
    torch.testing.assert_close(merged.keys[:, 0], tokens[:, [0, 1, 3, 4]].mean(1))
    torch.testing.assert_close(merged.keys[:, 5], tokens[:, 14])
    halved = merge_tokens({BLOCK: KeysValues(tokens, tokens)}, 2, (10, 6), 8)[BLOCK]
    torch.testing.assert_close(halved.keys, merged.keys)
    for count, size, above in ((2, (5, 3), 15), (1, (5, 3), 8), (2, (4, 4), 8)):
        assert merge_tokens({BLOCK: KeysValues(tokens, tokens)}, count, size, above)[BLOCK].keys is tokens


def test_merged_feedback_is_near_the_full_one(model: Patcher) -> None:
    """On random weights, where neighbours agree least, the error is a part of what feedback changes."""
    noise, pictures = normal(1, 4, 8, 8, seed=1), (latents(2), latents(1, 5, 6, seed=200))
    plain, full = sample(model, noise), sample(listen(model, *pictures), noise)
    merged = sample(listen(model, *pictures, replace(ALWAYS, merge_above=8)), noise)
    assert 0 < relative(merged, full) < 0.7 * relative(plain, full)
    assert torch.equal(sample(listen(model, *pictures, replace(ALWAYS, merge_above=64)), noise), full)
