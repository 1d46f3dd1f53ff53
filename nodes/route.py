"""The router node: picks the installed checkpoint that suits a wish, and has the stock loader load it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..llm.embeddings import load_encoder
from ..llm.library import Library, ModelRecord, scan
from ..llm.tree import choose, missing_triggers

NO_FALLBACK = "none"


class AtelierModelTreeRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierModelTreeRouter",
            display_name="Model Tree Router",
            category="Atelier/Route",
            description="Picks the installed checkpoint that suits the wish best, says why, and loads it.",
            search_aliases=[
                "choose checkpoint",
                "select model",
                "model router",
                "auto checkpoint",
                "diffusiongpt",
            ],
            inputs=[
                io.String.Input(
                    "wish",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="What you want to see. Link the prompt of the LLM Prompt Parser, or write here.",
                ),
                io.String.Input(
                    "candidates",
                    default="*",
                    tooltip="Which checkpoints may be chosen, by name: * is all, sdxl/* is one folder. "
                    "Separate patterns by commas.",
                ),
                io.Combo.Input(
                    "fallback",
                    options=[NO_FALLBACK, *folder_paths.get_filename_list("checkpoints")],
                    default=NO_FALLBACK,
                    tooltip="The checkpoint to take when no candidate is clearly the best. "
                    "With none, the nearest is taken.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The chosen checkpoint's diffusion model."),
                io.Clip.Output("clip", tooltip="Its text encoder."),
                io.Vae.Output("vae", tooltip="Its VAE."),
                io.String.Output("checkpoint", tooltip="The name of the chosen checkpoint."),
                io.String.Output(
                    "trigger_words", tooltip="The chosen checkpoint's trigger words, separated by commas."
                ),
                io.String.Output("reason", tooltip="Why this checkpoint, in a few sentences."),
                io.String.Output("trace", tooltip="Path, scores, runners-up and skipped files, as JSON."),
                io.String.Output(
                    "prompt", tooltip="The wish, with the trigger words that it lacks at its end."
                ),
            ],
            enable_expand=True,
        )

    @classmethod
    def fingerprint_inputs(cls, candidates: str = "*", **_: object) -> str:
        """The files that may be chosen: their names, sizes and times, so that a new file is seen."""
        return json.dumps([(name, *_state(name)) for name in _candidates(candidates)])

    @classmethod
    def execute(cls, wish: str, candidates: str, fallback: str) -> io.NodeOutput:
        names = _candidates(candidates)
        library = scan(names, _locate)
        _check(library, names, candidates)
        encoder = load_encoder()
        choice = choose(library, wish, encoder, _fallback(fallback))
        graph = GraphBuilder()
        loader = graph.node("CheckpointLoaderSimple", ckpt_name=choice.model.name)
        missing = missing_triggers(wish, choice.model)
        return io.NodeOutput(
            loader.out(0),
            loader.out(1),
            loader.out(2),
            choice.model.name,
            ", ".join(choice.model.trigger_words),
            choice.reason,
            json.dumps({**choice.trace, "encoder": encoder.name}, ensure_ascii=False, indent=2),
            ", ".join([wish, *missing]),
            expand=graph.finalize(),
        )


def _locate(name: str) -> str | None:
    return folder_paths.get_full_path("checkpoints", name)


def _state(name: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; zeros for a file that is gone."""
    try:
        stat = Path(_locate(name) or "").stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _candidates(patterns: str) -> list[str]:
    """The installed checkpoints whose name matches a pattern; upper and lower case are the same."""
    wanted = [part.strip().replace("\\", "/").casefold() for part in patterns.split(",")]
    wanted = [part for part in wanted if part] or ["*"]

    def matches(name: str) -> bool:
        path = name.replace("\\", "/").casefold()
        return any(path == part or fnmatchcase(path, part) for part in wanted)

    return [name for name in folder_paths.get_filename_list("checkpoints") if matches(name)]


def _check(library: Library, names: Iterable[str], patterns: str) -> None:
    """Raise what tells a user how to get a checkpoint that can be chosen, if there is none."""
    if library.models:
        return
    installed = folder_paths.get_filename_list("checkpoints")
    folders = ", ".join(folder_paths.get_folder_paths("checkpoints"))
    if not installed:
        raise ValueError(f"No checkpoint is installed. Put one in {folders}.")
    if not names:
        some = ", ".join(installed[:10]) + (", …" if len(installed) > 10 else "")
        raise ValueError(f'No checkpoint matches candidates "{patterns}". Installed are: {some}.')
    damaged = "; ".join(f"{name}: {why}" for name, why in library.skipped.items())
    raise ValueError(f"No checkpoint in {folders} can be read ({damaged}). Download it again.")


def _fallback(name: str) -> ModelRecord | None:
    """The fallback's record. It need not be among the candidates, but it must be a file that can be read.

    Raises ValueError when it is not.
    """
    if name == NO_FALLBACK:
        return None
    library = scan([name], _locate)
    if not library.models:
        raise ValueError(
            f"The fallback {name} cannot be read: {library.skipped[name]}. Choose another one, or none."
        )
    return library.models[0]
