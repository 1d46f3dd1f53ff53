"""The node that trains a Cross-Adapter (LLM4GEN, arXiv 2407.00737)."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io
from safetensors.torch import save_file

from ..attention.cross_adapter import CrossAdapter
from ..attention.llm_features import LoadedAdapter, hold
from ..training.captions import read_captions
from ..training.cross_adapter import adapter_file
from ..training.curve import draw_curve, read_log
from ..training.host_adapter import AdapterRun, train_adapter
from ..training.loop import Plan, replace_file
from ..training.low_rank import lora_file
from .as_image import as_image
from .cross_adapter import FOLDER_KEY, CrossAdapterSocket
from .train import AUTO, check_free, chosen_precision, data_folder, places, precision_input, rate_and_seed, watch

NO_LORA = "none"


class AtelierTrainCrossAdapter(io.ComfyNode):
    """A Cross-Adapter, and low-rank weights for its UNet, from captioned pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierTrainCrossAdapter",
            display_name="Train Cross-Adapter",
            category="Atelier/Train",
            description="Teaches a Stable Diffusion 1.5 or XL model to read prompts through a language model, from "
            "captioned pictures. Saves an adapter, and a LoRA if the UNet follows. A training that was interrupted "
            "goes on when it is queued again.",
            search_aliases=["LLM4GEN", "cross adapter", "train", "fine-tune", "finetune", "captions", "dense captions"],
            inputs=[*_sources(), *_settings(), *_more()],
            outputs=[
                CrossAdapterSocket.Output("adapter", tooltip="The trained adapter, for Cross-Adapter Encode."),
                io.Model.Output("model", tooltip="The model with the LoRA that was trained along."),
                io.String.Output("adapter_name", tooltip="The name under which Load Cross-Adapter has it."),
                io.String.Output("lora_name", tooltip="The name under which Load LoRA has its LoRA; empty at rank 0."),
                io.Image.Output("curve", tooltip="The losses over the steps, as a picture."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        llm: CLIP,
        dataset: str,
        name: str,
        steps: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        resolution: int = 512,
        rank: int = 16,
        entity_weight: float = 0.01,
        llm_tokens: int = 256,
        llm_prefix: str = "",
        precision: str = AUTO,
        start: LoadedAdapter | None = None,
        captions: str = "",
        keep_words: int = 0,
        start_lora: str = NO_LORA,
    ) -> io.NodeOutput:
        file, folder = places(name, FOLDER_KEY)
        lora = places(name, "loras")[0]
        check_free(file, folder)
        if start is not None and not isinstance(start.module, CrossAdapter):
            raise ValueError("Only LLM4GEN's adapters can be trained further, and the connected one is ELLA's.")
        refined = data_folder(captions) if captions.strip() else None
        run = AdapterRun(
            read_captions(data_folder(dataset, "Write"), resolution, refined),
            Plan(steps, learning_rate, seed),
            batch_size,
            chosen_precision(precision),
            folder,
            llm_tokens,
            llm_prefix,
            rank=rank,
            entity_weight=entity_weight,
            keep_words=keep_words,
            start=None if start is None else start.module,
            start_lora=None if start_lora == NO_LORA else _read_lora(start_lora),
        )
        with torch.inference_mode(False):
            adapter, weights = train_adapter(model, clip, vae, llm, run, watch(str(cls.hidden.unique_id), steps))
        own = {key.removeprefix("adapter."): value for key, value in weights.items() if key.startswith("adapter.")}
        tensors, about = adapter_file(adapter, own, llm_tokens, llm_prefix)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda part: save_file(tensors, part, about))
        adapter.load_state_dict(own)
        if rank:
            follow = lora_file({key.removeprefix("unet."): value for key, value in weights.items()})
            lora.parent.mkdir(parents=True, exist_ok=True)
            replace_file(lora, lambda part: save_file(follow, part))
            model = comfy.sd.load_lora_for_models(model, None, follow, 1.0, 0.0)[0]
        held = hold(file.name, adapter.eval().requires_grad_(False), llm_tokens, llm_prefix)
        curve = as_image(draw_curve(file.stem, read_log(folder)))
        return io.NodeOutput(held, model, file.name, lora.name if rank else "", curve)


def _read_lora(name: str) -> dict[str, torch.Tensor]:
    path = folder_paths.get_full_path_or_raise("loras", name)
    return comfy.utils.load_torch_file(path, safe_load=True)


def _sources() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="A Stable Diffusion 1.5 or XL model, with LoRAs if you like."),
        io.Clip.Input("clip", tooltip="The model's text encoder. It is not trained."),
        io.Vae.Input("vae", tooltip="The model's VAE. It is not trained."),
        io.Clip.Input(
            "llm",
            tooltip="The language model whose features the adapter reads. It is not trained. See Load LLM Encoder.",
        ),
        io.String.Input(
            "dataset",
            default="",
            tooltip="A folder of pictures with a .txt file beside each, or of WebDataset tar files, or one such file. "
            "Dense captions teach most. A path that is not absolute is in the output folder.",
        ),
        io.String.Input(
            "name",
            default="my_adapter",
            tooltip="Name of the adapter and of its LoRA, without ending. It also names the training: the same name "
            "and settings go on with it.",
        ),
    ]


def _settings() -> list[io.Input]:
    return [
        io.Int.Input("steps", default=2000, min=1, max=1_000_000, tooltip="How often the weights change."),
        io.Int.Input("batch_size", default=4, min=1, max=1024, tooltip="Pictures learned from at once. Costs memory."),
        *rate_and_seed(1e-4),
    ]


def _more() -> list[io.Input]:
    return [
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=2048,
            step=64,
            optional=True,
            tooltip="Side of the square, in pixels, to which pictures are cut and scaled.",
        ),
        io.Int.Input(
            "rank",
            default=16,
            min=0,
            max=256,
            optional=True,
            tooltip="Rank of the LoRA with which the UNet learns to use the new tokens. 0 trains the adapter alone.",
        ),
        io.Float.Input(
            "entity_weight",
            default=0.01,
            min=0.0,
            max=10.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="How much it counts that a thing and what is said of it look at the same place. 0 is off.",
        ),
        io.Int.Input(
            "llm_tokens",
            default=256,
            min=8,
            max=1024,
            optional=True,
            advanced=True,
            tooltip="Tokens of the language model that the adapter takes. Longer captions are cut off.",
        ),
        io.String.Input(
            "llm_prefix",
            default="",
            optional=True,
            advanced=True,
            tooltip='What stands before each caption for the language model. RankGen was trained with "pre ".',
        ),
        precision_input(),
        io.String.Input(
            "captions",
            default="",
            optional=True,
            tooltip="A folder of .txt files to take in the place of those beside the pictures: link Refine Captions.",
        ),
        io.Int.Input(
            "keep_words",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="Captions of up to this many words teach the model to draw them as it did before, and not from "
            "their pictures, so that short prompts keep their quality. 0 learns all captions from their pictures.",
        ),
        io.Combo.Input(
            "start_lora",
            options=[NO_LORA, *folder_paths.get_filename_list("loras")],
            default=NO_LORA,
            optional=True,
            advanced=True,
            tooltip="The LoRA that was trained along with start, to train it further too. Connect the model without "
            "it.",
        ),
        CrossAdapterSocket.Input("start", optional=True, tooltip="An adapter to train further. Without, a new one."),
    ]
