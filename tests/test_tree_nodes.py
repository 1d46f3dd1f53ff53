"""The nodes that build and draw the model tree, on real files; and all three together in the host."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

TAGS = {"girl": "subject:anime girl, style:anime", "girls": "subject:anime girls, style:anime", "car": "subject:car"}


def write_model(path: Path, tags: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.zeros(4, np.float32)}, str(path), metadata={"modelspec.tags": tags})


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints, no LoRA, and a private folder of its own."""
    import folder_paths

    for key in ("checkpoints", "loras"):
        (tmp_path / key).mkdir()
        extensions = folder_paths.folder_names_and_paths[key][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "get_system_user_directory", lambda name: str(tmp_path / f"__{name}"))
    for name, tags in TAGS.items():
        write_model(tmp_path / "checkpoints" / f"{name}.safetensors", tags)
    return tmp_path / "checkpoints"


def build(**inputs: Any) -> tuple[Any, str, dict[str, Any]]:
    from atelier.nodes.tree import AtelierBuildModelTree as Build

    given = {"candidates": "*", "loras": "*", "name": "default", "rebuild": False, **inputs}
    tree, report, text = Build.execute(**given).args
    return tree, report, json.loads(text)


def fingerprint() -> str:
    from atelier.nodes.tree import AtelierBuildModelTree as Build

    return Build.fingerprint_inputs(candidates="*", loras="*", name="default", rebuild=False)


def test_the_tree_is_saved_and_read_again(checkpoints: Path) -> None:
    tree, report, text = build()
    path = checkpoints.parent / "__atelier" / "trees" / "default.json"
    assert json.loads(path.read_text()) == text and str(path) in report
    assert "2 subjects, 2 leaves, 0 unclassified models." in report
    assert "New: car.safetensors, girl.safetensors, girls.safetensors." in report
    saved, state = path.stat().st_mtime_ns, fingerprint()
    again, report, _ = build()
    assert (again, path.stat().st_mtime_ns, fingerprint()) == (tree, saved, state)
    assert "New" not in report and "Calls to the language model: 0." in report


def test_an_edit_and_a_new_file_are_seen(checkpoints: Path) -> None:
    _, _, text = build()
    states = [fingerprint()]
    path = checkpoints.parent / "__atelier" / "trees" / "default.json"
    text["subjects"][0]["name"] = "people"
    path.write_text(json.dumps(text))
    states.append(fingerprint())
    write_model(checkpoints / "more.safetensors", "subject:anime girls, style:anime")
    states.append(fingerprint())
    assert len(set(states)) == 3
    people = build()[2]["subjects"][0]
    assert people["name"] == "people" and "more.safetensors" in people["styles"][0]["models"]


def test_nonsense_stops_with_its_place_and_a_rebuild_keeps_it_aside(checkpoints: Path) -> None:
    path = checkpoints.parent / "__atelier" / "trees" / "default.json"
    build()
    path.write_text('{"subjects": [{"name": "a", "styles": 5}]}')
    with pytest.raises(ValueError, match=r"default\.json is no model tree\. subjects\[0\]\.styles"):
        build()
    _, report, text = build(rebuild=True)
    assert len(text["subjects"]) == 2
    aside = path.with_name("default.before-rebuild-1.json")
    assert '"styles": 5' in aside.read_text() and str(aside) in report


def test_a_bad_name_and_no_model_are_said(checkpoints: Path) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a tree"):
        build(name="../../x")
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()
    with pytest.raises(ValueError, match="No checkpoint is installed"):
        build()


def test_the_view_gives_a_picture(checkpoints: Path) -> None:
    from atelier.nodes.route import AtelierModelTreeRouter as Router
    from atelier.nodes.tree import AtelierModelTreeView as View

    tree = build()[0]
    trace = Router.execute("an anime girl", "*", "none", tree=tree).args[6]
    (picture,) = View.execute(tree, trace).args
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and 0 <= picture.min() < picture.max() <= 1
    assert not np.array_equal(picture, View.execute(tree).args[0])
    with pytest.raises(ValueError, match="Link its output trace"):
        View.execute(tree, "a star")


@pytest.fixture
def served(server: Any) -> Iterator[str]:
    """A folder of the running server with the three models; no weights, so they are never to be loaded."""
    folder = Path(server.base) / "models" / "checkpoints" / f"atelier_test_tree_{os.getpid()}"
    for name, tags in TAGS.items():
        write_model(folder / f"{name}.safetensors", tags)
    yield folder.name
    shutil.rmtree(folder)


def test_build_route_and_view_in_the_host(server: Any, served: str) -> None:
    everything = {"candidates": f"{served}/*", "loras": ""}
    graph = {
        "1": {"class_type": "AtelierBuildModelTree", "inputs": {**everything, "name": "test", "rebuild": False}},
        "2": {
            "class_type": "AtelierModelTreeRouter",
            "inputs": {"wish": "an anime girl", "fallback": "none", **everything, "tree": ["1", 0]},
        },
        "3": {"class_type": "AtelierModelTreeView", "inputs": {"tree": ["1", 0], "trace": ["2", 6]}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "tree"}},
    }
    with pytest.raises(RuntimeError, match=r"Could not detect model type of: .*girl\.safetensors"):
        server.queue(graph)  # the router chose, and the stock loader says that there are no weights
    graph["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}}
    graph["3"]["inputs"].pop("trace")
    entry = server.queue(graph)
    (picture,) = server.images(entry, "5")
    assert picture.width == 1040 and len(server.images(entry, "3")) == 1
    assert f"{served}/car.safetensors" in entry["outputs"]["2"]["text"][0]
    assert (Path(server.base) / "user" / "__atelier" / "trees" / "test.json").is_file()
