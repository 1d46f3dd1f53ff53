"""The router node: picks the installed model that suits a wish, and has the stock loaders load it."""

from __future__ import annotations

import json
from dataclasses import asdict

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..llm.backend import LLM
from ..llm.embeddings import load_encoder
from ..llm.extend import Extended
from ..llm.extend import extend as extend_prompt
from ..llm.library import scan
from ..llm.records import ModelRecord
from ..llm.routing import Choice, Ranked, choose
from ..llm.tree import MODEL_TREE_TYPE, ModelTree, model_key
from ..llm.voting import Panel
from .history import ratings_state, stored_history
from .installed import installed_state, locate, private_folder, read_library
from .keep import LOADERS
from .llm import LLMSocket

NO_FALLBACK = "none"
ModelTreeSocket = io.Custom(MODEL_TREE_TYPE)
ModelRecordSocket = io.Custom("ATELIER_MODEL_RECORD")


class AtelierModelTreeRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierModelTreeRouter",
            display_name="Model Tree Router",
            category="Atelier/Route",
            description="Picks the installed checkpoint or LoRA that suits the wish best, says why, loads it, "
            "and writes the prompt in its manner.",
            search_aliases=[
                "choose checkpoint",
                "select model",
                "model router",
                "auto checkpoint",
                "choose lora",
                "tree of thought",
                "extend prompt",
                "diffusiongpt",
            ],
            inputs=[*_first_inputs(), *_sockets(), *_widgets()],
            outputs=_outputs(),
            enable_expand=True,
        )

    @classmethod
    def fingerprint_inputs(cls, candidates: str = "*", loras: str = "*", feedback: bool = True, **_: object) -> str:
        """What else the choice depends on: the files, what is known of them, and people's ratings."""
        return f"{installed_state(candidates, loras)}/{ratings_state() if feedback else ''}"

    @classmethod
    def execute(
        cls,
        wish: str,
        candidates: str,
        fallback: str,
        llm: LLM | None = None,
        tree: ModelTree | None = None,
        loras: str = "*",
        feedback: bool = True,
        top_k: int = 1,
        rank: int = 1,
        voices: int = 3,
        on_error: str = "similarity",
        negative: str = "",
        extend: bool = True,
    ) -> io.NodeOutput:
        encoder, panel = load_encoder(), Panel(llm, voices, strict=on_error == "stop")
        choice = choose(
            read_library(candidates, loras),
            wish,
            encoder,
            _fallback(fallback),
            tree=tree,
            panel=panel,
            history=stored_history(encoder) if feedback else None,
            count=max(top_k, rank),
        )
        place = choice.ranking[min(rank, len(choice.ranking)) - 1]
        model, clip, vae, expansion = _loaded(place)
        written = Extended(wish, negative, ("Extension is off.",))
        if extend:
            written = extend_prompt(wish, negative, place.model, llm if panel.ready else None, panel.strict)
        trace = {**choice.trace, "loaded": model_key(place.model), "encoder": encoder.name}
        trace["extension"] = {"on": extend, **asdict(written)}
        return io.NodeOutput(
            model,
            clip,
            vae,
            place.checkpoint.name,
            ", ".join(place.model.trigger_words),
            _reason(choice, place, rank),
            json.dumps(trace, ensure_ascii=False, indent=2),
            written.prompt,
            written.negative,
            place.model.name if place.base else "",
            _runners_up(choice, top_k),
            place.model,
            expand=expansion,
        )


def _first_inputs() -> list[io.Input]:
    return [
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
            tooltip="The checkpoint to take when no candidate is clearly the best. With none, the nearest is taken.",
        ),
    ]


def _sockets() -> list[io.Input]:
    return [
        LLMSocket.Input(
            "llm",
            optional=True,
            tooltip="The language model whose voices vote on the path and the model. Without one, similarity decides.",
        ),
        ModelTreeSocket.Input(
            "tree", optional=True, tooltip="The tree of Build Model Tree. Without one, the models' tags make it."
        ),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.String.Input(
            "loras",
            default="*",
            optional=True,
            tooltip="Which LoRAs may be chosen, by name, as in candidates. Empty: none. "
            "A LoRA is put on a candidate of its own base model.",
        ),
        io.Boolean.Input(
            "feedback",
            default=True,
            optional=True,
            tooltip="Whether ratings of pictures from similar prompts count.",
        ),
        io.Int.Input(
            "top_k",
            default=1,
            min=1,
            max=10,
            optional=True,
            advanced=True,
            tooltip="How many models the ranking lists. From 2 on, runners_up tells of the others.",
        ),
        io.Int.Input(
            "rank",
            default=1,
            min=1,
            max=10,
            optional=True,
            advanced=True,
            tooltip="Which place of the ranking to load. 1 is the choice; 2 and 3 are for comparing.",
        ),
        io.Int.Input(
            "voices",
            default=3,
            min=1,
            max=9,
            optional=True,
            advanced=True,
            tooltip="How many voices of the language model vote at each level. It stops asking when it is decided.",
        ),
        io.Combo.Input(
            "on_error",
            options=["similarity", "stop"],
            default="similarity",
            optional=True,
            advanced=True,
            tooltip="When the language model gives no usable answer: "
            "let similarity decide and say why in the trace, or stop the run.",
        ),
        io.String.Input(
            "negative",
            default="",
            dynamic_prompts=False,
            optional=True,
            tooltip="What to leave out. Link the negative of the LLM Prompt Parser, or write here.",
        ),
        io.Boolean.Input(
            "extend",
            default=True,
            optional=True,
            tooltip="Whether the prompt is written after the chosen model's trigger words and example prompts, and its "
            "negative prompt is added. Your words all remain. Off: both stay as they are.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Model.Output("model", tooltip="The chosen checkpoint's diffusion model, with the LoRA if one was chosen."),
        io.Clip.Output("clip", tooltip="Its text encoder."),
        io.Vae.Output("vae", tooltip="Its VAE."),
        io.String.Output("checkpoint", tooltip="The name of the checkpoint that is loaded."),
        io.String.Output("trigger_words", tooltip="The chosen model's trigger words, separated by commas."),
        io.String.Output("reason", tooltip="Why this model, in a few sentences."),
        io.String.Output(
            "trace", tooltip="Path, votes, scores, ratings, ranking, skipped files and extension, as JSON."
        ),
        io.String.Output("prompt", tooltip="The wish in the chosen model's manner. All of its words remain."),
        io.String.Output("negative", tooltip="What you leave out, then the chosen model's own negative prompt."),
        io.String.Output("lora", tooltip="The name of the chosen LoRA. Empty if a checkpoint was chosen."),
        io.String.Output("runners_up", tooltip="The next places of the ranking and what speaks for them."),
        ModelRecordSocket.Output("record", tooltip="What is known of the chosen model, for other Atelier nodes."),
    ]


def _loaded(place: Ranked) -> tuple[list[object], list[object], list[object], dict[str, object]]:
    """Links to model, text encoder and VAE, and the stock loaders that they lead to. The ids are always the same, so
    that the host finds what it has loaded."""
    graph = GraphBuilder()
    loader = graph.node("CheckpointLoaderSimple", LOADERS[0], ckpt_name=place.checkpoint.name)
    model, clip, vae = (loader.out(slot) for slot in range(3))
    if place.base is not None:
        strength = 1.0 if place.model.strength is None else place.model.strength
        strengths = {"strength_model": strength, "strength_clip": strength}
        lora = graph.node("LoraLoader", LOADERS[1], model=model, clip=clip, lora_name=place.model.name, **strengths)
        model, clip = lora.out(0), lora.out(1)
    return model, clip, vae, graph.finalize()


def _reason(choice: Choice, place: Ranked, rank: int) -> str:
    if place is choice.ranking[0]:
        return choice.reason
    number = choice.ranking.index(place) + 1
    few = f" There are only {number} to rank." if number < rank else ""
    return f"{place.model.name}: place {number} behind {choice.model.name}. {place.reason}{few}"


def _runners_up(choice: Choice, top_k: int) -> str:
    """One line for each place after the first."""
    places = list(enumerate(choice.ranking[:top_k], 1))[1:]
    return "\n".join(f"{number}. {model_key(place.model)}: {place.reason}" for number, place in places)


def _fallback(name: str) -> ModelRecord | None:
    """The fallback's record. It need not be among the candidates, but it must be a file that can be read.

    Raises ValueError when it is not.
    """
    if name == NO_FALLBACK:
        return None
    library = scan([name], locate("checkpoint"), "checkpoint", private_folder())
    if not library.models:
        raise ValueError(f"The fallback {name} cannot be read: {library.skipped[name]}. Choose another one, or none.")
    return library.models[0]
