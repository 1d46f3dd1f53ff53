"""The node that shows new pictures with thumbs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..feedback.made_by import MadeBy, made_by
from ..feedback.pictures import pictures_from_batch
from ..feedback.records import StoredImage, now
from ..feedback.store import default_url, open_store
from .picture_files import PictureFile, content_digest
from .rating import rate, read_ratings

if TYPE_CHECKING:
    from ..feedback.ratings import Store

SESSION_TOOLTIP = "Name of the session. Ratings are kept and used by session; a Feedback node takes them."


class AtelierRateImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierRateImages",
            display_name="Rate Images",
            category="Atelier/Feedback",
            description="Shows the new pictures with thumbs up, thumbs down and undo, and remembers your ratings.",
            search_aliases=["like", "dislike", "thumbs up", "thumbs down", "rating", "favourite", "FABRIC"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to rate."),
                io.String.Input("session", default="default", tooltip=SESSION_TOOLTIP),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How much your next thumb counts: 1 is in full.",
                ),
                io.String.Input(
                    "ratings",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    optional=True,
                    advanced=True,
                    tooltip="Ratings without a click, for scripts: 1 up, 3 down 0.5, 4 undo. "
                    "They are given each time the node runs.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    optional=True,
                    advanced=True,
                    tooltip="What was asked for. Link the wish that the router got. "
                    "Empty: the text of the sampler's positive prompt.",
                ),
                io.String.Input(
                    "trace",
                    optional=True,
                    force_input=True,
                    tooltip="The trace of the Model Tree Router, so that it learns from the ratings. "
                    "Without it, the checkpoint loader in front of the sampler counts.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        session: str,
        strength: float,
        ratings: str = "",
        prompt: str = "",
        trace: str | None = None,
    ) -> io.NodeOutput:
        if not pictures_from_batch(images, "new"):
            raise ValueError("There are no pictures to rate: the batch is empty.")
        wanted = read_ratings(ratings, len(images), strength)
        store, source = open_store(default_url()), source_of(cls)
        files, pictures = register(cls, store, images, session, prompt or source.prompt, source, trace)
        for index, value, own in wanted:
            rate(store, pictures[index], value, own)
        return io.NodeOutput(ui={"images": files, "atelier_pictures": [picture.key for picture in pictures]})


def source_of(node: type[io.ComfyNode]) -> MadeBy:
    """What made the pictures that are linked into the input `images` of a running node."""
    return made_by(node.hidden.prompt or {}, str(node.hidden.unique_id), "images")


def register(
    node: type[io.ComfyNode],
    store: Store,
    images: Tensor,
    session: str,
    prompt: str,
    source: MadeBy,
    trace: str | None = None,
) -> tuple[list[dict[str, str]], list[StoredImage]]:
    """Save the pictures that are linked into the input `images` of a running node and add them to the store.

    The same pictures, session, prompt and trace give the same entries, whichever node does it.

    Returns:
        The files as the host's front end takes them, and the pictures as the store has them.
    """
    files = ui.PreviewImage(images, cls=node).values
    pictures = _as_stored(files, session, prompt, source, _loaded(trace) or source.checkpoint)
    store.register(pictures)
    return files, pictures


def _as_stored(
    files: list[dict[str, str]], session: str, prompt: str, source: MadeBy, checkpoint: str
) -> list[StoredImage]:
    """The saved files as pictures of one batch, all made at the same time."""
    made = {"negative": source.negative, "checkpoint": checkpoint, "seed": source.seed, "created": now()}
    places = [PictureFile(**file) for file in files]
    return [
        StoredImage(content_digest(place.path), prompt, session.strip(), files=(place.name,), **made)
        for place in places
    ]


def _loaded(trace: str | None) -> str:
    """What the router calls the model that it loaded. Raises ValueError for a text that is not its trace."""
    if not trace:
        return ""
    try:
        found: Any = json.loads(trace)
        loaded = found["loaded"]
    except (ValueError, TypeError, KeyError):
        loaded = None
    if not isinstance(loaded, str):
        raise ValueError("The trace is not one of the Model Tree Router. Link its output trace, or leave it open.")
    return loaded
