"""The node that teaches a model to edit by instruction (InstructPix2Pix, arXiv 2211.09800)."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.utils import ProgressBar
from comfy_api.latest import io
from PIL import Image

from ..training.curve import draw_curve, read_log
from ..training.edit_shards import MANIFEST, read_edits
from ..training.host_edit import PRECISIONS, EditRun, Watch, auto_precision, train_edits
from ..training.host_unet import open_edit_checkpoint, opens_alike, save_edit_checkpoint
from ..training.loop import STATE, Plan
from .as_image import as_image

AUTO = "auto"


class AtelierTrainInstructPix2Pix(io.ComfyNode):
    """An edit model from a text-to-image model and a data set of edits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierTrainInstructPix2Pix",
            display_name="Train InstructPix2Pix",
            category="Atelier/Train",
            description="Teaches a Stable Diffusion 1.5 or XL model to edit pictures by instruction, and saves it as a "
            "checkpoint. A training that was interrupted goes on when it is queued again.",
            search_aliases=["instructpix2pix", "fine-tune", "finetune", "train edit model", "ip2p", "training"],
            inputs=[*_sources(), *_settings()],
            outputs=[
                io.Model.Output("model", tooltip="The trained edit model, for InstructPix2Pix Edit."),
                io.String.Output("checkpoint", tooltip="The name under which Load Checkpoint has it."),
                io.Image.Output("curve", tooltip="The loss over the steps, as a picture."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str | None = None, **_: object) -> str | float:
        """The data set's state. A linked one is None here, for it is not known yet; the node runs again then."""
        file = data_folder(dataset) / MANIFEST if dataset else None
        return float("nan") if file is None or not file.exists() else file.read_text(encoding="utf-8")

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        dataset: str,
        name: str,
        steps: int,
        batch_size: int,
        accumulate: int,
        learning_rate: float,
        seed: int,
        precision: str = AUTO,
    ) -> io.NodeOutput:
        file, folder = places(name)
        plan = Plan(steps, learning_rate, seed, accumulate)
        run = EditRun(read_edits(data_folder(dataset)), plan, batch_size, chosen_precision(precision), folder)
        check_free(file, folder)
        with torch.inference_mode(False):
            edit, weights = train_edits(model, clip, vae, run, watch(str(cls.hidden.unique_id), steps))
        save_edit_checkpoint(file, edit, weights, clip, vae)
        if not opens_alike(edit):
            logging.warning(
                "%s was trained with the noise levels and the prediction that a node gave its model. Put that node "
                "behind Load Checkpoint too.",
                file.name,
            )
        curve = as_image(draw_curve(file.stem, read_log(folder)))
        return io.NodeOutput(open_edit_checkpoint(file, edit), file.name, curve)


def _sources() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="A Stable Diffusion 1.5 or XL model, with LoRAs if you like, or an InstructPix2Pix model to train "
            "further.",
        ),
        io.Clip.Input("clip", tooltip="The model's text encoder. It is not trained."),
        io.Vae.Input("vae", tooltip="The model's VAE. It is not trained."),
        io.String.Input(
            "dataset",
            default="",
            tooltip="The folder of the data set: link Make Edit Dataset, or write a path. One that is not absolute is "
            "in the output folder.",
        ),
        io.String.Input(
            "name",
            default="my_edit_model",
            tooltip="Name of the checkpoint file, without its ending. It also names the training: the same name and "
            "settings go on with it.",
        ),
    ]


def _settings() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=2000,
            min=1,
            max=1_000_000,
            tooltip="How often the weights change. More than before go on with a training that is done.",
        ),
        io.Int.Input(
            "batch_size", default=4, min=1, max=1024, tooltip="How many edits are learned from at once. Costs memory."
        ),
        io.Int.Input(
            "accumulate",
            default=4,
            min=1,
            max=1024,
            tooltip="How many batches make one step. Costs time in place of memory.",
        ),
        *rate_and_seed(5e-5),
        precision_input(),
    ]


def rate_and_seed(rate: float) -> list[io.Input]:
    """How fast to learn, with `rate` as the default, and what decides the draws."""
    return [
        io.Float.Input(
            "learning_rate",
            default=rate,
            min=1e-8,
            max=1.0,
            step=1e-8,
            tooltip="How far a step changes the weights. It rises over 100 steps and then falls to a fiftieth.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=2**32 - 1, tooltip="What is drawn when. The same seed gives the same result."
        ),
    ]


def precision_input() -> io.Input:
    return io.Combo.Input(
        "precision",
        options=[AUTO, *PRECISIONS],
        default=AUTO,
        optional=True,
        advanced=True,
        tooltip="What the model computes in; what is trained is in fp32. Auto is the fastest that the device is made "
        "for.",
    )


def chosen_precision(precision: str) -> str:
    """The precision of the input above, with what auto means on the host's device."""
    return auto_precision(comfy.model_management.get_torch_device()) if precision == AUTO else precision


def places(name: str, key: str = "checkpoints") -> tuple[Path, Path]:
    """The file that a training makes, where the stock loader finds it, and the folder of the training's state.

    Args:
        key: the host's name of the folder of such files.

    Raises:
        ValueError: It is no name of a file, or that of another one.
    """
    what = key.removesuffix("s").replace("_", " ")
    name = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"\w[\w .-]*", name) or name.endswith("."):
        raise ValueError(f"{name!r} is no name for a {what}. Use letters, digits, spaces, and . _ - between them.")
    output = Path(folder_paths.get_output_directory())
    file = output / key / f"{name}.safetensors"
    other = folder_paths.get_full_path(key, file.name)
    if other is not None and Path(other).resolve() != file.resolve():
        raise ValueError(f"There is a {what} {file.name} already, in {Path(other).parent}. Choose another name.")
    return file, output / "atelier_training" / name


def check_free(file: Path, folder: Path) -> None:
    """Raise ValueError if the checkpoint is there and is no result of a training in this folder."""
    if not file.exists() or (folder / STATE).exists():
        return
    raise ValueError(
        f"{file} is there already, and its training is not in {folder}. Choose another name, or move the file away."
    )


def data_folder(dataset: str, hint: str = "Link Make Edit Dataset, or write") -> Path:
    """The folder of a data set; one that is not absolute is in the output folder.

    Raises:
        ValueError: None is given. `hint` says where one comes from.
    """
    if not dataset.strip():
        raise ValueError(f"There is no data set. {hint} the path of its folder into dataset.")
    return Path(folder_paths.get_output_directory()) / dataset.strip()


def watch(node_id: str, steps: int) -> Watch:
    """The node's progress bar, the text below it, and its preview."""
    from server import PromptServer  # the host's web server, which there is none of outside the host

    bar, done = ProgressBar(steps), 0

    def say(text: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(text, node_id)

    def each_step(step: int, loss: float) -> None:
        nonlocal done
        done = step
        bar.update_absolute(step, steps)
        say(f"Step {step} of {steps}, loss {loss:.4f}")

    def show(picture: Image.Image) -> None:
        bar.update_absolute(done, steps, ("JPEG", picture, None))

    return Watch(say, each_step, show)
