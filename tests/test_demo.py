"""The demo: its checkpoints, its graphs, and the story that it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import pytest
import torch
from assemble import EDITOR, PARTS, VOCABULARY, add_difference, as_difference, assemble, header, merge
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return assemble(tmp_path_factory.mktemp("models"))


def test_repository_ships_small_parts() -> None:
    assert sum(file.stat().st_size for file in PARTS.rglob("*") if file.is_file()) < 40 * 2**20


def test_second_assembly_writes_nothing(checkpoints: list[Path]) -> None:
    before = [file.stat().st_mtime_ns for file in checkpoints]
    assemble(checkpoints[0].parents[1])
    assert [file.stat().st_mtime_ns for file in checkpoints] == before


def test_damaged_checkpoint_is_written_again(checkpoints: list[Path]) -> None:
    about = header(checkpoints[1])
    weights = {key: weight.clone() for key, weight in load_file(checkpoints[1]).items()}
    checkpoints[1].write_bytes(b"half a file")
    assemble(checkpoints[0].parents[1])
    again = load_file(checkpoints[1])
    assert header(checkpoints[1]) == about
    assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)


def test_headers_say_what_a_checkpoint_is_good_at(checkpoints: list[Path]) -> None:
    for file in checkpoints:
        about = header(file)
        said = ("title", "description", "tags", "license")
        for key in said if EDITOR in file.name else (*said, "trigger_phrase"):
            assert about[f"modelspec.{key}"], (file.name, key)
        assert json.loads(about["atelier.example_prompts"])


def test_a_difference_in_8_bits_comes_back() -> None:
    """To half a step of its row, beside fp16; new input channels start at zero."""
    generator = torch.Generator().manual_seed(1)
    base = {
        "conv": torch.randn(6, 4, 3, 3, generator=generator).half(),
        "bias": torch.randn(6, generator=generator).half(),
    }
    wide = torch.cat([base["conv"].float(), torch.zeros(6, 4, 3, 3)], 1)
    trained = {
        "conv": wide + 0.1 * torch.randn(wide.shape, generator=generator),
        "bias": base["bias"].float() + 0.1,
    }
    parts = as_difference(base, trained)
    assert parts["conv"].dtype == torch.int8
    for name, weight in add_difference(base, parts).items():
        step = parts[f"{name}.step"].view(-1, *[1] * (weight.ndim - 1))
        assert ((weight.float() - trained[name]).abs() <= step / 2 + 2e-3).all()


def test_words_outside_the_world_share_one_row(checkpoints: list[Path]) -> None:
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    table = load_file(checkpoints[0])[key]
    assert table.shape[0] == VOCABULARY
    learnt = load_file(PARTS / "text.safetensors")["token_ids"]
    strange = torch.ones(VOCABULARY, dtype=torch.bool)
    strange[learnt] = False
    assert len(torch.unique(table[strange], dim=0)) == 1
    assert len(torch.unique(table[learnt], dim=0)) == len(learnt)


def test_expert_is_the_base_plus_a_low_rank_difference() -> None:
    base, expert = load_file(PARTS / "base.safetensors"), load_file(PARTS / "chalk.safetensors")
    merged = merge(base, expert)
    assert merged.keys() == base.keys()
    changed = [key for key in base if not torch.equal(base[key], merged[key])]
    assert sorted(changed) == sorted(key.removesuffix(".up") + ".weight" for key in expert if key.endswith(".up"))


def test_templates_are_as_written(server: Any) -> None:
    """The files in workflows/ are what `python demo/graphs.py` writes for the live schemas."""
    schemas = server.get("/object_info")
    for name, make in graphs.TEMPLATES.items():
        graph = make()
        assert graphs.load(name) == graphs.api_form(graph)
        canvas = json.loads((graphs.WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        assert canvas == graphs.canvas_form(name, graph, schemas)


def test_unknown_change_of_a_template_is_refused() -> None:
    with pytest.raises(KeyError, match="seeed"):
        graphs.for_demo(graphs.load("wish_to_picture"), seeed=1)


@pytest.mark.parametrize(
    ("wish", "expert"),
    [
        ("I want a picture of a shiny red star above a blue square, drawn in chalk", "chalk"),
        ("Please show me a large heart, as a neon sign", "neon"),
        ("draw a green cross, as a sticker", "sticker"),
        ("a large circle on a white background", "base"),
    ],
)
def test_wish_goes_to_its_expert(server: Any, wish: str, expert: str) -> None:
    graph = graphs.for_demo(graphs.load("wish_to_picture"), wish=wish, batch_size=1, steps=1)
    entry = server.queue(graph)
    trace = entry["outputs"][graphs.node_of(graph, "Path taken")]["text"][0]
    assert f"shapeworld-{expert}.safetensors" in json.dumps(json.loads(trace))
    reason = entry["outputs"][graphs.node_of(graph, "Why this checkpoint")]["text"][0]
    assert f"shapeworld-{expert}" in reason
