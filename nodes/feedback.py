"""Nodes that collect what a person likes and dislikes."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..feedback.pictures import FEEDBACK_TYPE, Feedback, pictures_from_batch

FeedbackSocket = io.Custom(FEEDBACK_TYPE)


class AtelierFeedbackFromImages(io.ComfyNode):
    """Liked and disliked IMAGE batches as feedback."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierFeedbackFromImages",
            display_name="Feedback from Images",
            category="Atelier/Feedback",
            description="Collects pictures that you like and pictures that you do not like.",
            search_aliases=["like", "dislike", "thumbs up", "thumbs down", "FABRIC", "reference images"],
            inputs=[
                io.Image.Input("liked", optional=True, tooltip="Pictures to come nearer to. Any number and size."),
                io.Image.Input("disliked", optional=True, tooltip="Pictures to move away from. Any number and size."),
                FeedbackSocket.Input(
                    "previous",
                    optional=True,
                    tooltip="Feedback to add these pictures to, from earlier rounds.",
                ),
            ],
            outputs=[FeedbackSocket.Output(display_name="feedback", tooltip="All liked and disliked pictures.")],
        )

    @classmethod
    def execute(
        cls, liked: Tensor | None = None, disliked: Tensor | None = None, previous: Feedback | None = None
    ) -> io.NodeOutput:
        new = Feedback(
            pictures_from_batch(liked, "liked") if liked is not None else (),
            pictures_from_batch(disliked, "disliked") if disliked is not None else (),
        )
        return io.NodeOutput(previous + new if previous is not None else new)
