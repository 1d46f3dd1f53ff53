"""Nodes that build the model tree and draw it."""

from __future__ import annotations

from collections.abc import Callable

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..llm.backend import LLM
from ..llm.embeddings import load_encoder
from ..llm.tree import ModelTree, to_json
from ..llm.tree_build import Built, grow
from ..llm.tree_file import read_tree, set_aside, tree_file, write_tree
from ..llm.tree_view import draw_tree
from .as_image import as_image
from .installed import installed_state, private_folder, read_library
from .llm import LLMSocket
from .route import ModelTreeSocket


class AtelierBuildModelTree(io.ComfyNode):
    """Sorts the installed models into subjects and styles, and saves the result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierBuildModelTree",
            display_name="Build Model Tree",
            category="Atelier/Route",
            description="Sorts the installed checkpoints and LoRAs into a tree of subjects and styles, and keeps it.",
            search_aliases=["model tree", "sort checkpoints", "model library", "tree of models", "diffusiongpt"],
            inputs=[
                io.String.Input(
                    "candidates",
                    default="*",
                    tooltip="Which checkpoints to sort, by name: * is all, sdxl/* is one folder. "
                    "Separate patterns by commas.",
                ),
                io.String.Input(
                    "loras", default="*", tooltip="Which LoRAs to sort, by name, as in candidates. Empty: none."
                ),
                io.String.Input(
                    "name",
                    default="default",
                    tooltip="Name under which the tree is saved. Another name is another tree.",
                ),
                io.Boolean.Input(
                    "rebuild",
                    default=False,
                    advanced=True,
                    tooltip="Sort all models anew, also those placed by hand. "
                    "The old tree is kept beside it. Turn this off again afterwards.",
                ),
                LLMSocket.Input(
                    "llm",
                    optional=True,
                    tooltip="The language model that sorts new models. Without one, their tags are clustered.",
                ),
            ],
            outputs=[
                ModelTreeSocket.Output(display_name="tree", tooltip="The tree, for the Model Tree Router."),
                io.String.Output("report", tooltip="What is new, and in which file the tree can be edited."),
                io.String.Output("json", tooltip="The tree as it is saved."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, candidates: str = "*", loras: str = "*", name: str = "default", **_: object) -> str:
        """The files to sort, and the saved tree, which a person may have edited."""
        path = tree_file(private_folder() / "trees", name)
        saved = path.stat().st_mtime_ns if path.is_file() else 0
        return f"{installed_state(candidates, loras)}/{saved}"

    @classmethod
    def execute(cls, candidates: str, loras: str, name: str, rebuild: bool, llm: LLM | None = None) -> io.NodeOutput:
        path = tree_file(private_folder() / "trees", name)
        library = read_library(candidates, loras)
        built = grow(library.models, load_encoder(), llm, None if rebuild else read_tree(path), _progress())
        aside = set_aside(path) if rebuild else None
        write_tree(path, built.tree)
        lines = [*_report(built), f"The tree is in {path}; edit it there."]
        lines += [f"The tree before is in {aside}."] if aside else []
        lines += [f"Skipped {model}: {why}." for model, why in library.skipped.items()]
        return io.NodeOutput(built.tree, "\n".join([*lines, *library.notes]), to_json(built.tree))


class AtelierModelTreeView(io.ComfyNode):
    """Draws a model tree and the path that the router took."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierModelTreeView",
            display_name="Model Tree View",
            category="Atelier/Route",
            description="Draws the model tree, and the path that the router took in it.",
            search_aliases=["draw tree", "show model tree", "visualize routing", "path taken"],
            inputs=[
                ModelTreeSocket.Input("tree", tooltip="The tree of Build Model Tree."),
                io.String.Input(
                    "trace",
                    optional=True,
                    force_input=True,
                    tooltip="The trace of a Model Tree Router with this tree, to draw the path that it took.",
                ),
            ],
            outputs=[io.Image.Output("picture", tooltip="The tree as a picture, subjects at the left.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, tree: ModelTree, trace: str = "") -> io.NodeOutput:
        picture = as_image(draw_tree(tree, trace))
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


def _progress() -> Callable[[int, int], None]:
    """Shows how many models are sorted, and ends the work when the user interrupts."""
    bar = ProgressBar(1)

    def show(done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return show


def _report(built: Built) -> list[str]:
    """What was done, in sentences."""
    tree = built.tree
    leaves = sum(len(subject.styles) for subject in tree.subjects)
    said = [f"{len(tree.subjects)} subjects, {leaves} leaves, {len(tree.unclassified)} unclassified models."]
    for what, keys in (("New", built.added), ("Changed", built.changed), ("Gone", built.dropped)):
        if keys:
            said.append(f"{what}: {', '.join(keys[:20])}{f' and {len(keys) - 20} more' if len(keys) > 20 else ''}.")
    return [*said, f"Calls to the language model: {built.calls}.", *built.notes]
