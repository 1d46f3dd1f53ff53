"""The node that shows how a session went."""

from __future__ import annotations

import numpy as np
from comfy_api.latest import io, ui
from PIL import Image

from ..feedback.contact_sheet import draw_sheet
from ..feedback.records import StoredImage
from ..feedback.store import default_url, open_store
from .as_image import as_image
from .picture_files import PictureGone, load
from .session import session_fingerprint, session_input


class AtelierSessionView(io.ComfyNode):
    """A session as a contact sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSessionView",
            display_name="Session View",
            category="Atelier/Feedback",
            description="Draws the rounds of a session as a contact sheet, with ratings and scores.",
            search_aliases=["contact sheet", "history", "rounds", "ratings", "gallery", "grid"],
            inputs=[
                session_input(),
                io.Int.Input(
                    "rounds",
                    default=6,
                    min=1,
                    max=50,
                    tooltip="How many of the newest rounds to draw. A round is the batch of one run.",
                ),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="Draw after this node is done. Link the report of Auto Rate to see the round of this run.",
                ),
            ],
            outputs=[io.Image.Output("sheet", tooltip="The contact sheet: a row for each round, the newest last.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, session: str | None = None, **_: object) -> str | float:
        """What else the sheet depends on: the session's pictures, ratings and scores."""
        return session_fingerprint(session, lambda store, name: store.state(name))

    @classmethod
    def execute(cls, session: str, rounds: int, after: object = None) -> io.NodeOutput:
        found = open_store(default_url()).rounds(session.strip(), rounds)
        sheet = as_image(draw_sheet(session.strip(), found, _load))
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _load(image: StoredImage) -> Image.Image | None:
    try:
        return Image.fromarray((load(image).numpy() * 255).round().astype(np.uint8))
    except PictureGone:
        return None
