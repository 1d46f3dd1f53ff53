"""The templates of `workflows/` as the demo, the tests and the benchmarks queue them, and the script that writes them.

A template is written here once, as an API graph with a place for each node. `python demo/graphs.py --url URL` asks a
running host for its schemas and writes both forms of each template, `X.json` for the canvas and `X.api.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from adapter_graphs import ADAPTER_TEMPLATES
from edit_graphs import DEMO_EDITOR, EDIT_TEMPLATES, USER_CHECKPOINT, USER_EDITOR, USER_SCORER
from graph_parts import NOTE, Graph
from graph_parts import node as _node
from graph_parts import note as _note
from optimizer_graphs import OPTIMIZER_TEMPLATES, USER_HEAD, USER_POLICY

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
DEMO_CHECKPOINT = "shapeworld-base.safetensors"
DEMO_SCORER = "shapeworld"
DEMO_SIZE, DEMO_CFG = 128, 4.0
DEMO_FILES = {
    USER_CHECKPOINT: DEMO_CHECKPOINT, USER_EDITOR: DEMO_EDITOR, USER_POLICY: "shapeworld",
    USER_HEAD: "shapeworld.safetensors",
}  # fmt: skip
"""The demo's files in the place of a user's."""
DEMO_VALUES = {
    "width": DEMO_SIZE, "height": DEMO_SIZE, "cfg": DEMO_CFG, "clip_model": DEMO_SCORER, "resolution": DEMO_SIZE,
    "text_scale": 2.0, "image_scale": 1.2,
}  # fmt: skip
"""What the demo models need in the place of a template's values."""
DEMO_NODES: dict[str, dict[str, Any]] = {
    "AtelierMakeEditDataset": {
        "size": 128, "steps": 8, "samples_per_edit": 4, "min_image_similarity": -1.0, "min_text_similarity": -1.0,
        "min_direction": -1.0,
    },
    "AtelierTrainInstructPix2Pix": {"steps": 3, "batch_size": 2, "accumulate": 1},
    "AtelierTrainCrossAdapter": {"steps": 3, "batch_size": 2, "llm_tokens": 176, "rank": 2},
    "AtelierLoadLLMEncoder": {"encoder": "shapeworld-t5.safetensors"},
    "AtelierLoadCrossAdapter": {"adapter": "shapeworld.safetensors"},
    "LoraLoaderModelOnly": {"lora_name": "shapeworld-adapter.safetensors"},
    "AtelierPromptOptimizer": {"size": DEMO_SIZE, "cfg": DEMO_CFG, "sampler_name": "euler", "scheduler": "normal"},
    "AtelierTrainPromptOptimizer": {
        "steps": 2, "supervised_steps": 2, "size": DEMO_SIZE, "cfg": DEMO_CFG, "pictures": 1, "sampler_steps": 2,
        "prompts_per_step": 2, "candidates": 2,
    },
}  # fmt: skip
"""The same for single nodes: their files, and enough to see that they run."""
SIZES = {
    "AtelierModelTreeView": (520, 480),
    "AtelierRateImages": (440, 640),
    "AtelierAutoRate": (440, 640),
    "AtelierSessionView": (520, 640),
    "PreviewImage": (440, 420),
    "PreviewAny": (320, 160),
    "SaveImage": (440, 480),
    NOTE: (320, 360),
}
"""Width and height of nodes that show something."""

WISH = "I want a picture of a shiny red star above a blue square, drawn in chalk"


def load(name: str) -> Graph:
    """The API form of a template."""
    return json.loads((WORKFLOWS / f"{name}.api.json").read_text(encoding="utf-8"))


def for_demo(graph: Graph, **changes: Any) -> Graph:
    """A copy of a template that runs on the demo checkpoints: their files and values, and one value for each input
    named in `changes`, wherever it stands as a widget. Raises KeyError when no node has such an input."""
    graph = copy.deepcopy(graph)
    unused = set(changes)
    for node in graph.values():
        inputs = node["inputs"]
        for name in (DEMO_VALUES | changes).keys() & inputs.keys():
            if not isinstance(inputs[name], list):
                inputs[name] = changes.get(name, DEMO_VALUES.get(name))
                unused.discard(name)
        for name, value in DEMO_NODES.get(node["class_type"], {}).items():
            inputs[name] = changes.get(name, value)
        for name, value in inputs.items():
            if isinstance(value, str) and name not in changes:
                inputs[name] = DEMO_FILES.get(value, value)
    if unused:
        raise KeyError(f"no node has the input {', '.join(sorted(unused))}")
    return graph


def node_of(graph: Graph, title: str) -> str:
    """The id of the node with this title."""
    return next(key for key, node in graph.items() if node["_meta"]["title"] == title)


def _sampler(model: list[Any], seed: int | list[Any], place: tuple[int, int], number: str = "") -> dict[str, Any]:
    return _node(
        "KSampler", f"Sample {number}".strip(), place, model=model, positive=[f"positive{number}", 0],
        negative=[f"negative{number}", 0], latent_image=["size", 0], seed=seed, steps=20, cfg=7.0,
        sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip


def _parse() -> dict[str, Any]:
    return _node("AtelierPromptParser", "Wish", (0, 0), wish=WISH, on_error="rules")


def _router(title: str, place: tuple[int, int], **changes: Any) -> dict[str, Any]:
    inputs = {
        "wish": ["parse", 0], "candidates": "*", "fallback": "none", "loras": "*", "feedback": True, "top_k": 1,
        "rank": 1, "voices": 3, "on_error": "similarity", "negative": ["parse", 1], "extend": True,
    }  # fmt: skip
    return _node("AtelierModelTreeRouter", title, place, **(inputs | changes))


def _texts(route: str, y: int, number: str = "") -> Graph:
    """Prompt and negative as a router writes them."""
    return {
        f"positive{number}": _node(
            "CLIPTextEncode", f"Prompt {number}".strip(), (880, y), text=[route, 7], clip=[route, 1]
        ),
        f"negative{number}": _node(
            "CLIPTextEncode", f"Negative {number}".strip(), (880, y + 160), text=[route, 8], clip=[route, 1]
        ),
    }


def _route() -> Graph:
    """Wish, parser, router and what follows from them; the model is `["route", 0]`."""
    return {
        "parse": _parse(),
        "route": _router("Route", (440, 0)),
        **_texts("route", 0),
        "size": _node("EmptyLatentImage", "Size", (880, 320), width=512, height=512, batch_size=4),
        "reason": _node("PreviewAny", "Why this checkpoint", (440, 720), source=["route", 5]),
        "path": _node("PreviewAny", "Path taken", (880, 520), source=["route", 6]),
    }


def _feedback(vae: list[Any], model: list[Any], clip: list[Any], x: int) -> Graph:
    return {
        "liked": _node("LoadImage", "Liked", (x, 0), image="example.png"),
        "disliked": _node("LoadImage", "Disliked", (x, 380), image="example.png"),
        "feedback": _node(
            "AtelierFeedbackFromImages", "Feedback", (x + 400, 0), liked=["liked", 0], disliked=["disliked", 0]
        ),
        "fabric": _fabric(vae, model, clip, (x + 400, 220)),
    }


def _fabric(vae: list[Any], model: list[Any], clip: list[Any], place: tuple[int, int]) -> dict[str, Any]:
    return _node(
        "AtelierFabric", "FABRIC", place, model=model, clip=clip, vae=vae, feedback=["feedback", 0], weight=0.8,
        negative_scale=0.5, start_percent=0.0, end_percent=0.5, weight_outside=0.0,
    )  # fmt: skip


def _decode(vae: list[Any], x: int) -> Graph:
    return {
        "decode": _node("VAEDecode", "Decode", (x, 0), samples=["sample", 0], vae=vae),
        "save": _node("SaveImage", "Pictures", (x, 200), images=["decode", 0], filename_prefix="Atelier"),
    }


def _wish_to_picture() -> Graph:
    return _route() | {"sample": _sampler(["route", 0], 1, (1320, 0))} | _decode(["route", 2], 1720)


def _wish_with_feedback() -> Graph:
    graph = _route() | _feedback(["route", 2], ["route", 0], ["route", 1], 1320)
    return graph | {"sample": _sampler(["fabric", 0], 2, (2120, 0))} | _decode(["route", 2], 2520)


def _prompted(prompt: str) -> Graph:
    """A checkpoint that the user chooses, and what to make with it."""
    return {
        "checkpoint": _node("CheckpointLoaderSimple", "Checkpoint", (0, 0), ckpt_name=USER_CHECKPOINT),
        "positive": _node("CLIPTextEncode", "Prompt", (400, 0), text=prompt, clip=["checkpoint", 1]),
        "negative": _node("CLIPTextEncode", "Negative", (400, 220), text="", clip=["checkpoint", 1]),
        "size": _node("EmptyLatentImage", "Size", (400, 440), width=512, height=512, batch_size=4),
    }


def _fabric_feedback() -> Graph:
    graph = _prompted("a star") | _feedback(["checkpoint", 2], ["checkpoint", 0], ["checkpoint", 1], 800)
    return graph | {"sample": _sampler(["fabric", 0], 2, (1600, 0))} | _decode(["checkpoint", 2], 2000)


def _compare_models() -> Graph:
    """The best three models for one wish, each with a sampler of its own and the same seed."""
    graph = {
        "parse": _parse(),
        "tree": _node(
            "AtelierBuildModelTree", "Model tree", (0, 420), candidates="*", loras="*", name="default", rebuild=False
        ),
        "size": _node("EmptyLatentImage", "Size", (0, 760), width=512, height=512, batch_size=1),
        "seed": _node("PrimitiveInt", "Seed", (0, 960), value=1),
    }
    for rank in (1, 2, 3):
        route, y = f"route{rank}", 700 * (rank - 1)
        graph[route] = _router(f"Place {rank}", (440, y), tree=["tree", 0], top_k=3, rank=rank)
        graph |= _texts(route, y, f"{rank}")
        graph[f"sample{rank}"] = _sampler([route, 0], ["seed", 0], (1280, y), f"{rank}")
        graph[f"decode{rank}"] = _node(
            "VAEDecode", f"Decode {rank}", (1680, y), samples=[f"sample{rank}", 0], vae=[route, 2]
        )
        graph[f"reason{rank}"] = _node("PreviewAny", f"Why place {rank}", (1600 + 440 * rank, 660), source=[route, 5])
    for number, (left, right) in enumerate((("decode1", "decode2"), ("pair", "decode3"))):
        graph[("pair", "row")[number]] = _node(
            "ImageStitch", f"Side by side {number + 1}", (2040, 280 * number), image1=[left, 0], image2=[right, 0],
            direction="right", match_image_size=True, spacing_width=8, spacing_color="white",
        )  # fmt: skip
    graph["save"] = _node("SaveImage", "Pictures", (2440, 0), images=["row", 0], filename_prefix="Atelier")
    graph["view"] = _node("AtelierModelTreeView", "Tree and path", (2040, 1100), tree=["tree", 0], trace=["route1", 6])
    return graph


HOW_TO_RATE = """Say what you want in **Prompt**, choose your checkpoint, and queue.

1. Like and dislike pictures in **Rate**.
2. Queue again. **Feedback** hands what you rated to **FABRIC**, and the new pictures come nearer to what you like.
3. Repeat. One or two thumbs a round are enough.

For something else, write another name for the session, in **Feedback** and in **Rate**."""


def _rate_and_refine() -> Graph:
    """Rounds in one graph: what is rated in the session steers the next batch."""
    graph = _prompted("a large circle, on a white background")
    graph["feedback"] = _node(
        "AtelierFeedback", "Feedback", (800, 0), session="default", last=4, minimum_strength=0.0, prompts="all",
        prompt="",
    )  # fmt: skip
    graph["used"] = _node("PreviewAny", "What was used", (800, 420), source=["feedback", 1])
    graph["fabric"] = _fabric(["checkpoint", 2], ["checkpoint", 0], ["checkpoint", 1], (1200, 0))
    graph["sample"] = _sampler(["fabric", 0], 1, (1600, 0))
    graph["decode"] = _node("VAEDecode", "Decode", (1600, 420), samples=["sample", 0], vae=["checkpoint", 2])
    graph["rate"] = _node(
        "AtelierRateImages", "Rate", (2000, 0), images=["decode", 0], session="default", strength=1.0, ratings="",
        prompt="",
    )  # fmt: skip
    graph["note"] = _note(HOW_TO_RATE, (0, 220))
    return graph


HOW_IT_RATES = """The scorer rates in your stead. It may want more than the prompt says, as a person does. Choose your
checkpoint and a model of `models/clip_scorers`, and queue several times.

1. **Prompt Dropout** has the prompt. It leaves out a word now and then, so that the pictures do not grow all alike.
2. **Auto Rate** likes the picture that fits **What the scorer wants** best and dislikes the one that fits it least.
3. **Feedback** hands both to **FABRIC** in the next run. **Session** shows all rounds.

For something else, write another name for the session, in all three nodes. To come near a picture instead, choose
*similarity to a target* in **Scorer** and link it."""


def _scorer(place: tuple[int, int]) -> dict[str, Any]:
    chosen = {"scorer": "relevance to the prompt", "clip_model": USER_SCORER, "aesthetic_head": "none"}
    return _node("AtelierLoadScorer", "Scorer", place, **chosen)


def _auto_rate() -> Graph:
    """Rounds in one graph, rated by a scorer."""
    wish = "a large red circle, on a black background"
    graph = _prompted("")
    graph["wish"] = _node("PrimitiveStringMultiline", "What the scorer wants", (0, 220), value=wish)
    graph["drop"] = _node(
        "AtelierPromptDropout", "Prompt Dropout", (0, 440), prompt="a large circle", p=0.1, seed=1, count=1
    )
    graph["positive"]["inputs"]["text"] = ["drop", 0]
    graph["feedback"] = _node(
        "AtelierFeedback", "Feedback", (800, 0), session="auto", last=4, minimum_strength=0.0, prompts="all", prompt=""
    )
    graph["used"] = _node("PreviewAny", "What was used", (800, 420), source=["feedback", 1])
    graph["fabric"] = _fabric(["checkpoint", 2], ["checkpoint", 0], ["checkpoint", 1], (1200, 0))
    graph["sample"] = _sampler(["fabric", 0], 1, (1600, 0))
    graph["decode"] = _node("VAEDecode", "Decode", (1600, 420), samples=["sample", 0], vae=["checkpoint", 2])
    graph["scorer"] = _scorer((1600, 600))
    graph["rate"] = _node(
        "AtelierAutoRate", "Auto Rate", (2000, 0), images=["decode", 0], scorer=["scorer", 0], session="auto", best=1,
        worst=1, prompt=["wish", 0],
    )  # fmt: skip
    graph["view"] = _node("AtelierSessionView", "Session", (2460, 0), session="auto", rounds=6, after=["rate", 0])
    graph["note"] = _note(HOW_IT_RATES, (0, 740))
    return graph


def _best_of_n() -> Graph:
    """Several pictures, of which a scorer picks the best."""
    graph = _prompted("a striped red heart, on a white background")
    graph["sample"] = _sampler(["checkpoint", 0], 1, (800, 0))
    graph["decode"] = _node("VAEDecode", "Decode", (1200, 0), samples=["sample", 0], vae=["checkpoint", 2])
    graph["scorer"] = _scorer((800, 420))
    graph["score"] = _node(
        "AtelierScoreImages", "Score", (1200, 180), images=["decode", 0], scorer=["scorer", 0], prompt="", session=""
    )
    graph["scores"] = _node("PreviewAny", "Scores", (1200, 460), source=["score", 1])
    graph["all"] = _node("PreviewImage", "All, the best first", (1600, 0), images=["score", 2])
    graph["best"] = _node("ImageFromBatch", "The best", (1600, 480), image=["score", 2], batch_index=0, length=1)
    graph["save"] = _node("SaveImage", "Picture", (2060, 0), images=["best", 0], filename_prefix="Atelier")
    return graph


def _session_view() -> Graph:
    """The rounds of a session that was rated before."""
    return {
        "view": _node("AtelierSessionView", "Session", (0, 0), session="default", rounds=6),
        "save": _node("SaveImage", "Contact sheet", (560, 0), images=["view", 0], filename_prefix="Atelier_session"),
    }


TEMPLATES = {
    "wish_to_picture": _wish_to_picture,
    "compare_models": _compare_models,
    "fabric_feedback": _fabric_feedback,
    "wish_with_feedback": _wish_with_feedback,
    "rate_and_refine": _rate_and_refine,
    "auto_rate": _auto_rate,
    "best_of_n": _best_of_n,
    "session_view": _session_view,
    **EDIT_TEMPLATES,
    **ADAPTER_TEMPLATES,
    **OPTIMIZER_TEMPLATES,
}


def api_form(graph: Graph) -> Graph:
    """The graph with numbers for ids, as the canvas exports it."""
    graph = {key: node for key, node in graph.items() if node["class_type"] != NOTE}
    number = {key: str(i) for i, key in enumerate(graph, 1)}

    def value(v: Any) -> Any:
        return [number[v[0]], v[1]] if isinstance(v, list) else v

    return {
        number[key]: {
            "inputs": {name: value(v) for name, v in node["inputs"].items()},
            "class_type": node["class_type"],
            "_meta": node["_meta"],
        }
        for key, node in graph.items()
    }


NOTE_SCHEMA: dict[str, Any] = {
    "input": {"required": {"text": ["STRING", {}]}},
    "input_order": {"required": ["text"]},
    "output": [],
    "output_name": [],
}
"""The host's server knows no notes, only its front end does."""


def canvas_form(name: str, graph: Graph, schemas: dict[str, Any]) -> dict[str, Any]:
    """The graph as the canvas saves it, after the live schemas of its nodes."""
    number = {key: i for i, key in enumerate(graph, 1)}
    schemas = schemas | {NOTE: NOTE_SCHEMA}
    links: list[list[Any]] = []
    nodes = [
        _canvas_node(number[key], order, node, schemas[node["class_type"]], number, graph, schemas, links)
        for order, (key, node) in enumerate(graph.items())
    ]
    for link in links:
        nodes[link[1] - 1]["outputs"][link[2]]["links"].append(link[0])
    return {
        "id": str(uuid5(NAMESPACE_URL, f"atelier/{name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _canvas_node(
    number: int,
    order: int,
    node: dict[str, Any],
    schema: dict[str, Any],
    numbers: dict[str, int],
    graph: Graph,
    schemas: dict[str, Any],
    links: list[list[Any]],
) -> dict[str, Any]:
    inputs, widgets = [], []
    for group in ("required", "optional"):
        for name in schema.get("input_order", {}).get(group, []):
            kind, options = [*schema["input"][group][name], {}][:2]
            value = node["inputs"].get(name, options.get("default"))
            is_widget = isinstance(kind, list) or kind in ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")
            is_widget = is_widget and not options.get("forceInput")
            slot = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": None}
            if is_widget:
                slot["widget"] = {"name": name}
                widgets.append(options.get("default", "") if isinstance(value, list) else value)
                if options.get("control_after_generate"):
                    widgets.append("randomize")
                if options.get("image_upload"):
                    widgets.append("image")
            if isinstance(value, list):
                slot["link"] = len(links) + 1
                source = schemas[graph[value[0]]["class_type"]]["output"][value[1]]
                links.append([slot["link"], numbers[value[0]], value[1], number, len(inputs), source])
            inputs.append(slot)
    rows = max(len(inputs) - len(widgets), len(schema["output"])) + len(widgets)
    height = 60 + 26 * rows + (60 if any(w and isinstance(w, str) and len(w) > 40 for w in widgets) else 0)
    return {
        "id": number,
        "type": node["class_type"],
        "title": node["_meta"]["title"],
        "pos": list(node["place"]),
        "size": list(SIZES.get(node["class_type"], (320, height))),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": [
            {"name": label, "type": kind, "links": []}
            for label, kind in zip(schema["output_name"], schema["output"], strict=True)
        ],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": widgets,
    }


def write_templates(url: str) -> None:
    from comfy_api_client import ComfyClient

    schemas = ComfyClient(url).get("/object_info")
    for name, make in TEMPLATES.items():
        graph = make()
        canvas = json.dumps(canvas_form(name, graph, schemas), indent=1)
        (WORKFLOWS / f"{name}.json").write_text(canvas + "\n", encoding="utf-8")
        (WORKFLOWS / f"{name}.api.json").write_text(json.dumps(api_form(graph), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the templates of workflows/.")
    parser.add_argument("--url", required=True, help="address of a running ComfyUI with the pack")
    write_templates(parser.parse_args().url)
