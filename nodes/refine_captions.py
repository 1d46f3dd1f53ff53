"""The node that rewrites the captions of a folder of pictures densely (LLM4GEN, arXiv 2407.00737, section 4.1)."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as memory
import folder_paths
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..llm.backend import LLM
from ..llm.refine_captions import LOG, CaptionFolderError, Wanted, refine_folder, report
from .llm import LLMSocket
from .train_data import dataset_folder


class AtelierRefineCaptions(io.ComfyNode):
    """Dense captions for a folder of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierRefineCaptions",
            display_name="Refine Captions",
            category="Atelier/Train",
            description="A language model that sees rewrites the captions of a folder of pictures densely, and checks "
            "them. A run that was interrupted goes on when it is queued again.",
            search_aliases=[
                "caption",
                "captioning",
                "recaption",
                "dense captions",
                "LLM4GEN",
                "vision language model",
                "dataset",
                "training data",
            ],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    placeholder="my_pictures",
                    tooltip="The folder of the pictures, each with its caption beside it: X.png and X.txt. One that is "
                    "not absolute is in the input folder. Nothing in it is changed.",
                ),
                LLMSocket.Input(
                    "llm",
                    tooltip="A language model that can see: LLM Server, or LLM from CLIP with an encoder that has its "
                    "vision part.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    placeholder="the folder's name and _refined",
                    tooltip="Name of the folder for the refined captions, in the output folder. Empty: the folder's "
                    "name with _refined behind it.",
                ),
                io.Boolean.Input(
                    "check",
                    default=True,
                    tooltip="Show the model its own caption again, and refuse it if it names what the picture does not "
                    "show. Doubles the time.",
                ),
                io.Int.Input(
                    "min_words",
                    default=25,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Fewest words of a refined caption.",
                ),
                io.Int.Input(
                    "max_words",
                    default=140,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Most words of a refined caption.",
                ),
            ],
            outputs=[
                io.String.Output("captions", tooltip="The folder of the refined captions."),
                io.Int.Output("refined", tooltip="How many captions were refined."),
                io.Int.Output("kept", tooltip="How many pictures keep the caption that they had."),
                io.String.Output("report", tooltip="What was done, and why captions were refused."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, name: str | None = None, **_: object) -> str | float:
        """The state of the files, and whether there is a log. A linked text is None here; the node runs again then."""
        if not folder or name is None:
            return float("nan")
        source = source_folder(folder)
        files = [(path.name, path.stat().st_mtime_ns) for path in source.iterdir()]
        return f"{sorted(files)} {(target_folder(source, name) / LOG).exists()}"

    @classmethod
    def execute(cls, folder: str, llm: LLM, name: str, check: bool, min_words: int, max_words: int) -> io.NodeOutput:
        source = source_folder(folder)
        target = target_folder(source, name)
        bar = ProgressBar(1)

        def progress(done: int, total: int) -> None:
            bar.update_absolute(done, total)
            memory.throw_exception_if_processing_interrupted()

        outcome = refine_folder(source, target, llm, Wanted(min_words, max_words, check), progress)
        text = report(outcome, llm)
        return io.NodeOutput(str(target), outcome.refined, outcome.kept, text, ui={"text": [text]})


def source_folder(folder: str) -> Path:
    """The folder of the pictures; one that is not absolute is in the input folder. Raises CaptionFolderError."""
    if not folder.strip():
        raise CaptionFolderError("folder is empty. Write the path of a folder with pictures and their captions.")
    return Path(folder_paths.get_input_directory()) / folder.strip()


def target_folder(source: Path, name: str) -> Path:
    """The place of the refined captions in the output folder. Raises EditDataError for what cannot be a name."""
    return dataset_folder(name if name.strip() else f"{source.resolve().name}_refined")
