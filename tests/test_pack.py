"""The pack as the host sees it over HTTP: nodes, schemas, help, strings, templates, archive."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from comfy_api_client import ComfyClient, GraphError, ServerError
from graphs import DEMO_SCORER, for_demo
from PIL import Image
from shapeworld.captioned import make_folder

REPO = Path(__file__).resolve().parents[1]
SNAPSHOT = REPO / "tests" / "snapshots" / "nodes.json"
TEMPLATES = sorted(path for path in (REPO / "workflows").glob("*.json") if not path.name.endswith(".api.json"))
NODES = (
    "AtelierLLMServer",
    "AtelierLLMLocal",
    "AtelierLLMFromClip",
    "AtelierPromptParser",
    "AtelierBuildModelTree",
    "AtelierModelTreeRouter",
    "AtelierModelTreeView",
    "AtelierLoadPromptPolicy",
    "AtelierPromptOptimizer",
    "AtelierPromptDropout",
    "AtelierRateImages",
    "AtelierAutoRate",
    "AtelierFeedback",
    "AtelierFeedbackFromImages",
    "AtelierSessionView",
    "AtelierFabric",
    "AtelierLoadLLMEncoder",
    "AtelierLoadCrossAdapter",
    "AtelierCrossAdapterEncode",
    "AtelierLoadEditModel",
    "AtelierInstructPix2Pix",
    "AtelierDualCFGGuider",
    "AtelierGuidanceGrid",
    "AtelierEditPlan",
    "AtelierLoadScorer",
    "AtelierLoadTaste",
    "AtelierCombineScorers",
    "AtelierScoreImages",
    "AtelierMakeEditDataset",
    "AtelierRefineCaptions",
    "AtelierTrainInstructPix2Pix",
    "AtelierTrainCrossAdapter",
    "AtelierTrainPromptOptimizer",
)
FRONTEND_ONLY = {"Note", "MarkdownNote"}
WIDGETS = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}

Schema = dict[str, Any]


@pytest.fixture(scope="session")
def object_info(server: ComfyClient) -> dict[str, Schema]:
    return server.get("/object_info")


@pytest.fixture(scope="session")
def pack(object_info: dict[str, Schema]) -> dict[str, Schema]:
    """The pack's own schemas."""
    return {name: info for name, info in object_info.items() if info["python_module"] == "custom_nodes.atelier"}


def inputs_of(schema: Schema) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Input name -> (type, options), required ones first, in the order in which the host shows them."""
    found = {}
    for group in ("required", "optional"):
        for name, spec in schema["input"].get(group, {}).items():
            found[name] = (spec[0], spec[1] if len(spec) > 1 else {})
    return found


# --- nodes -------------------------------------------------------------------------------------------------


def test_pack_loads_with_exactly_its_nodes(server: ComfyClient, pack: dict[str, Schema]) -> None:
    assert sorted(pack) == sorted(NODES), server.log()
    for sign in ("IMPORT FAILED", "Cannot import", "comfy_entrypoint in", "Unable to parse pyproject.toml"):
        assert sign not in server.log()


def test_pack_is_v3_only() -> None:
    import atelier

    assert not hasattr(atelier, "NODE_CLASS_MAPPINGS")


def test_schemas_match_the_snapshot(
    server: ComfyClient, pack: dict[str, Schema], request: pytest.FixtureRequest
) -> None:
    """A changed schema breaks saved workflows, so a change must be meant: --update-snapshots writes it."""
    folders = ("checkpoints", "text_encoders", "cross_adapters", "loras")
    installed = {DEMO_SCORER, "none installed", *(name for key in folders for name in server.get(f"/models/{key}"))}
    live = json.loads(json.dumps(pack))
    for schema in live.values():
        for _, options in inputs_of(schema).values():
            if "options" in options:
                options["options"] = [option for option in options["options"] if option not in installed]
    if request.config.getoption("--update-snapshots"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(json.dumps(live, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert live == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("node", NODES)
def test_node_can_be_found_and_understood(node: str, pack: dict[str, Schema]) -> None:
    schema = pack[node]
    assert [name for name, (_, options) in inputs_of(schema).items() if not options.get("tooltip")] == []
    assert schema["search_aliases"] and schema["display_name"] and schema["description"]
    assert schema["category"].startswith("Atelier/")
    assert schema["essentials_category"] is None  # with one, the front end does not find the help page


@pytest.mark.parametrize("node", NODES)
def test_help_page_is_served_and_names_every_input(node: str, server: ComfyClient, pack: dict[str, Schema]) -> None:
    page = server.get(f"/extensions/atelier/docs/{node}.md").decode("utf-8")
    rows = {line.split("|")[1].strip(" `*") for line in page.splitlines() if line.startswith("|")}
    assert sorted(set(inputs_of(pack[node])) - rows) == []


@pytest.mark.parametrize("node", NODES)
def test_english_strings_are_those_of_the_schema(node: str, server: ComfyClient, pack: dict[str, Schema]) -> None:
    schema, strings = pack[node], server.get("/i18n")["en"]["nodeDefs"][node]
    assert strings["display_name"] == schema["display_name"]
    assert strings["description"] == schema["description"]
    tooltips = {name: options["tooltip"] for name, (_, options) in inputs_of(schema).items()}
    assert {name: text["tooltip"] for name, text in strings["inputs"].items()} == tooltips
    outputs = [strings["outputs"][str(index)]["name"] for index in range(len(schema["output"]))]
    assert len(outputs) == len(strings["outputs"]) and all(outputs)


# --- templates ---------------------------------------------------------------------------------------------


def api_graph(template: Path) -> dict[str, Any]:
    return json.loads(template.with_suffix(".api.json").read_text(encoding="utf-8"))


def check_value(where: str, value: Any, kind: Any, options: dict[str, Any]) -> None:
    """One widget value against its live input."""
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if choices is not None:
        assert value in choices, f"{where}: {value!r} is not one of {choices}"
        return
    assert isinstance(value, WIDGETS[kind]), f"{where}: {value!r} is no {kind}"
    assert isinstance(value, bool) == (kind == "BOOLEAN"), f"{where}: {value!r} is no {kind}"
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min", value), options.get("max", value)
        assert low <= value <= high, f"{where}: {value} is not from {low} to {high}"


def check_widgets(node: dict[str, Any], schema: Schema) -> None:
    """`widgets_values` lists one value per widget, and more for seed control and for the upload button."""
    values = list(node.get("widgets_values") or [])
    for name, (kind, options) in inputs_of(schema).items():
        is_widget = isinstance(kind, list) or kind == "COMBO" or kind in WIDGETS
        if not is_widget or options.get("forceInput"):
            continue
        where = f"node {node['id']} ({node['type']}), {name}"
        assert values, f"{where}: the value is missing"
        value = values.pop(0)
        if options.get("image_upload"):
            assert isinstance(value, str), f"{where}: {value!r} is no file name"
            if values:
                assert values.pop(0) == "image"
            continue
        if name in ("ckpt_name", "clip_model", "encoder", "adapter", "lora_name", "policy", "aesthetic_head"):
            assert isinstance(value, str), f"{where}: {value!r} is no file name"  # the user's own model
            continue
        check_value(where, value, kind, options)
        if options.get("control_after_generate"):
            assert values and values.pop(0) in ("fixed", "increment", "decrement", "randomize"), where
    assert not values, f"node {node['id']} ({node['type']}): values without a widget: {values}"


def test_there_are_templates() -> None:
    assert TEMPLATES


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_template_opens_without_a_missing_node_or_value(template: Path, object_info: dict[str, Schema]) -> None:
    workflow = json.loads(template.read_text(encoding="utf-8"))
    nodes = [node for node in workflow["nodes"] if node["type"] not in FRONTEND_ONLY]
    for node in nodes:
        assert node["type"] in object_info, f"node {node['id']} is of the unknown type {node['type']}"
        check_widgets(node, object_info[node["type"]])
    graph = api_graph(template)
    assert Counter(node["type"] for node in nodes) == Counter(node["class_type"] for node in graph.values())
    with Image.open(template.with_suffix(".jpg")) as picture:
        picture.verify()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_template_is_offered_by_the_host(template: Path, server: ComfyClient) -> None:
    assert template.stem in server.get("/workflow_templates")["atelier"]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_template_runs(template: Path, server: ComfyClient) -> None:
    """Over the API, with the demo checkpoints and a placeholder for each picture that it loads."""
    graph = for_demo(api_graph(template))
    make_folder(server.base / "output" / "captions", 4)
    for index, node in enumerate(graph.values()):
        if node["class_type"] == "LoadImage":
            picture = Image.new("RGB", (128, 128), (40 * index % 256, 90, 200))
            node["inputs"]["image"] = server.upload(picture, f"{template.stem}-{index}.png")
    steps = []
    entry = server.queue(graph, on_progress=steps.append)
    assert server.images(entry)
    if any("Sampler" in node["class_type"] for node in graph.values()):
        assert steps and steps[-1].value == steps[-1].total


# --- the API client's errors, on the real host -------------------------------------------------------------


def test_missing_checkpoint_is_refused_by_name(server: ComfyClient) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "no-such.safetensors"}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    with pytest.raises(GraphError, match=r"node 1 \(CheckpointLoaderSimple\).*no-such\.safetensors") as caught:
        server.queue(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("1", "CheckpointLoaderSimple")


def test_unknown_node_is_refused_by_name(server: ComfyClient) -> None:
    with pytest.raises(GraphError, match="NoSuchNode"):
        server.queue({"7": {"class_type": "NoSuchNode", "inputs": {}}})


def test_failing_node_is_named_with_its_reason(server: ComfyClient) -> None:
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../../out"}},
    }
    with pytest.raises(GraphError, match=r"node 2 \(SaveImage\) failed: .*outside the output folder") as caught:
        server.queue(graph)
    assert caught.value.node_id == "2"


def test_pictures_go_in_and_come_out_unchanged(server: ComfyClient) -> None:
    picture = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
    name = server.upload(picture, "round trip ü.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    (returned,) = server.images(server.queue(graph), "2")
    assert returned.convert("RGB").tobytes() == picture.tobytes()


def test_absent_server_is_one_sentence() -> None:
    with pytest.raises(ServerError, match=r"No ComfyUI server answers at http://127\.0\.0\.1:9 "):
        ComfyClient("http://127.0.0.1:9").queue({})


# --- packaging ---------------------------------------------------------------------------------------------


def test_host_reads_the_metadata() -> None:
    from comfy_config.config_parser import extract_node_configuration

    config = extract_node_configuration(str(REPO))
    assert (config.project.name, config.tool_comfy.display_name) == ("atelier", "Atelier")
    assert config.project.supported_comfyui_version == ">=0.30.0"
    assert config.project.license.file == "LICENSE" and (REPO / "LICENSE").is_file()
    assert config.project.dependencies == []


@pytest.mark.skipif(shutil.which("git") is None or not (REPO / ".git").exists(), reason="needs a git checkout")
def test_archive_holds_the_pack_and_nothing_heavy() -> None:
    def listed(*options: str) -> set[str]:
        answer = subprocess.run(["git", "ls-files", "-z", *options], cwd=REPO, capture_output=True, check=True)
        return {name for name in answer.stdout.decode("utf-8").split("\0") if name}

    archive = listed("-c") - listed("-c", "-i", "-X", ".comfyignore")
    assert {"__init__.py", "nodes/__init__.py", "pyproject.toml", "LICENSE"} <= archive
    left_out = ("demo/", "bench/", "tests/", ".ci/", "dev.py")
    assert [name for name in archive if name.startswith(left_out)] == []
    files = [REPO / name for name in archive]
    assert sum(path.stat().st_size for path in files if path.exists()) < 5_000_000
