"""The node that makes edit data for InstructPix2Pix training (arXiv 2211.09800, section 3.1)."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import comfy.model_management as memory
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..attention.prompt_to_prompt_patch import check_model
from ..feedback.scorers import ClipRelevance, Scorer, TextImageEncoder
from ..llm.backend import LLM
from ..training.edit_data import DrawTask, Engine, Recipe, drawn_here, make_edits
from ..training.edit_drawing import HostDraw, Sampling, checkpoint_of, load_task, model_version
from ..training.edit_filter import NOT_THE_BEST, Thresholds
from ..training.edit_ray import drawn_by_ray
from ..training.edit_shards import EditDataError, Manifest, read_edits
from ..training.edit_sheet import draw_edit_sheet, one_of_each
from ..training.edit_triplets import (
    Triplet,
    ask_triplets,
    collect_triplets,
    read_captions,
    read_triplets,
    rule_triplets,
)
from .as_image import as_image
from .llm import LLMSocket
from .score import ScorerSocket

TRIPLETS = "triplets.jsonl"


class AtelierMakeEditDataset(io.ComfyNode):
    """Pairs of pictures with an instruction, written as a data set."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def threshold(name: str, default: float, what: str) -> io.Input:
            return io.Float.Input(
                name, default=default, min=-1.0, max=1.0, step=0.01, optional=True, advanced=True,
                tooltip=f"With a scorer: the least cosine {what}.",
            )  # fmt: skip

        return io.Schema(
            node_id="AtelierMakeEditDataset",
            display_name="Make Edit Dataset",
            category="Atelier/Train",
            description="Draws pairs of pictures before and after an edit, keeps the best, and writes them with their "
            "instructions as a data set to train InstructPix2Pix on.",
            search_aliases=[
                "InstructPix2Pix",
                "edit data",
                "dataset",
                "Prompt-to-Prompt",
                "webdataset",
                "training data",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Draws the pictures: a Stable Diffusion 1.x, 2.x or XL model."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder="a red car in front of a wooden house\na portrait of an old sailor",
                    tooltip="What pictures to draw, one on each line. The language model writes edits of them; without "
                    "one, rules change colours, materials, times of day, weather and looks.",
                ),
                io.Int.Input(
                    "samples_per_edit",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="How many pairs to draw of each edit, each with its own noise and share of attention. The "
                    "paper draws 100.",
                ),
                io.Int.Input(
                    "keep",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="With a scorer: how many pairs of each edit to keep at the most, the best ones.",
                ),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Sampling steps of a picture."),
                io.Float.Input(
                    "cfg", default=7.5, min=1.0, max=30.0, step=0.5, tooltip="How strictly pictures follow captions."
                ),
                io.Int.Input(
                    "size", default=512, min=64, max=2048, step=64, tooltip="Width and height of a picture in px."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Start of all that is random. The same settings make the same data set.",
                ),
                io.String.Input(
                    "name",
                    default="edits",
                    tooltip="Name of the data set: a folder of the output folder. A run that was cut off goes on when "
                    "it is queued again with the same settings.",
                ),
                io.String.Input(
                    "triplets",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    optional=True,
                    placeholder='{"caption": "a red star", "instruction": "turn the star blue", "edited_caption": "a '
                    'blue star"}',
                    tooltip="Edits that are written already, in place of captions or beside them: JSON Lines with "
                    "caption, instruction and edited_caption.",
                ),
                LLMSocket.Input(
                    "llm", optional=True, tooltip="Writes up to three edits to each caption. Without one, rules do."
                ),
                ScorerSocket.Input(
                    "scorer",
                    optional=True,
                    tooltip="Load Scorer with relevance to the prompt: its CLIP model finds the best pairs. Without "
                    "one, every pair is kept.",
                ),
                threshold("min_image_similarity", 0.7, "between the two pictures of a pair"),
                threshold("min_text_similarity", 0.2, "between each picture and its caption"),
                threshold("min_direction", 0.2, "between the change of the picture and the change of the caption"),
                io.Int.Input(
                    "workers",
                    default=1,
                    min=1,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="1 draws here. More draw in so many Ray workers, on the cluster of RAY_ADDRESS or on this "
                    "machine; each loads the checkpoint.",
                ),
            ],
            outputs=[
                io.String.Output("folder", tooltip="The data set's folder."),
                io.Image.Output("pairs", tooltip="Some pairs with their instructions."),
                io.String.Output("report", tooltip="How many pairs were drawn, kept and dropped, and why."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        captions: str,
        samples_per_edit: int,
        keep: int,
        steps: int,
        cfg: float,
        size: int,
        seed: int,
        name: str,
        triplets: str = "",
        llm: LLM | None = None,
        scorer: Scorer | None = None,
        min_image_similarity: float = 0.7,
        min_text_similarity: float = 0.2,
        min_direction: float = 0.2,
        workers: int = 1,
    ) -> io.NodeOutput:
        check_model(model)
        folder, encoder = dataset_folder(name), encoder_of(scorer)
        edits, remarks = edits_of(captions, triplets, llm, seed, folder)
        thresholds = Thresholds(min_image_similarity, min_text_similarity, min_direction)
        recipe = Recipe(samples_per_edit, keep, seed, thresholds=thresholds)
        sampling = Sampling(steps, cfg, size, size)
        settings = {"model": model_version(model), "steps": steps, "cfg": cfg, "size": size}
        bar = ProgressBar(len(edits))

        def progress(done: int) -> None:
            bar.update_absolute(done)
            memory.throw_exception_if_processing_interrupted()

        engine = engine_of(workers, model, clip, vae, sampling, edits, recipe)
        manifest = make_edits(folder, edits, recipe, settings, engine, encoder, progress)
        shown = one_of_each(read_edits(folder)) if manifest.kept else []
        sheet = as_image(draw_edit_sheet(shown))
        text = report(folder, manifest, remarks)
        return io.NodeOutput(str(folder), sheet, text, ui={"text": [text]})


def dataset_folder(name: str) -> Path:
    """The data set's place in the output folder. Raises EditDataError."""
    parts = name.strip().replace("\\", "/").split("/")
    if not all(re.fullmatch(r"\w[\w .-]{0,99}", part) and not part.endswith((".", " ")) for part in parts):
        raise EditDataError(
            f"'{name[:80]}' cannot name a data set. Take letters, digits, - and _, and / for a folder in a folder."
        )
    output = folder_paths.get_output_directory()
    folder = Path(output, *parts)
    if not folder_paths.is_within_directory(output, str(folder)):
        raise EditDataError(f"'{name[:80]}' leads out of the output folder. Choose another name.")
    return folder


def encoder_of(scorer: Scorer | None) -> TextImageEncoder | None:
    """The CLIP model of a scorer. Raises EditDataError when it has none that reads text."""
    if scorer is None:
        return None
    if not isinstance(scorer, ClipRelevance):
        raise EditDataError(
            f"{scorer.name} reads no captions, so it cannot measure edits. Set the scorer of Load Scorer to relevance "
            "to the prompt."
        )
    return scorer.encoder


def edits_of(
    captions: str, triplets: str, llm: LLM | None, seed: int, folder: Path
) -> tuple[tuple[Triplet, ...], list[str]]:
    """All triplets, those that were given first, and remarks for the report. Raises EditDataError or LLMError."""
    given = read_triplets(triplets) if triplets.strip() else ()
    if given and not captions.strip():
        return given, []
    wanted = read_captions(captions)
    if llm is None:
        written, without = [rule_triplets(caption, seed) for caption in wanted], 0
        found = tuple(triplet for some in written for triplet in some)
    else:
        bar = ProgressBar(len(wanted))

        def progress(done: int) -> None:
            bar.update_absolute(done)
            memory.throw_exception_if_processing_interrupted()

        source = {"llm": llm.name, "captions": len(wanted)}
        found, without = collect_triplets(folder / TRIPLETS, source, wanted, partial(ask_triplets, llm), progress)
    remarks = [f"{len(found)} edits of {len(wanted)} captions by {llm.name if llm else 'rules'}."]
    if without:
        remarks.append(f"To {without} captions {llm.name} wrote no edit that can be used; {TRIPLETS} says why.")
    return tuple(dict.fromkeys([*given, *found])), remarks


def engine_of(
    workers: int,
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    sampling: Sampling,
    edits: tuple[Triplet, ...],
    recipe: Recipe,
) -> Engine:
    """Draws in this process, or in Ray workers. Raises EditDataError."""
    if workers == 1:
        return drawn_here(DrawTask(edits, recipe, HostDraw(model, clip, vae, sampling)))
    load = partial(load_task, checkpoint_of(model, clip, vae), sampling, edits, recipe)
    # A pack that taught the host this class of models has to teach it to the workers too.
    package = type(model.model.model_config).__module__.rpartition(".")[0]
    packages = [] if package == "comfy" else [package]
    return drawn_by_ray(load, workers, memory.throw_exception_if_processing_interrupted, packages)


def report(folder: Path, manifest: Manifest, remarks: list[str]) -> str:
    """What was done, for people."""
    why = {
        "image_image": "the two pictures differ too much",
        "unchanged": "the two pictures are the same to CLIP",
        "image_text": "a picture does not show its caption",
        "directional": "the pictures do not change as the captions do",
        NOT_THE_BEST: "enough others of the edit are better",
        "not_finite": "a picture is not made of numbers",
    }
    lines = [
        *remarks,
        f"{manifest.triplets} edits, {manifest.drawn} pairs drawn, {manifest.kept} kept in {len(manifest.shards)} "
        f"shards in {folder}.",
        f"Filter: {manifest.settings['filter']}.",
        *(f"{count} dropped: {why[name]} ({name})." for name, count in sorted(manifest.dropped.items())),
    ]
    if not manifest.kept:
        lines.append("Nothing was kept: lower the thresholds, or draw more pairs, under another name.")
    return "\n".join(lines)
