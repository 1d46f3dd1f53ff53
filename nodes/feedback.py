"""Nodes that collect what a person likes and dislikes."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..feedback.pictures import FEEDBACK_TYPE, Feedback, pictures_from_batch
from ..feedback.records import StoredImage
from ..feedback.store import default_url, open_store
from .picture_files import PictureGone, load
from .session import session_fingerprint, session_input

FeedbackSocket = io.Custom(FEEDBACK_TYPE)


class AtelierFeedback(io.ComfyNode):
    """The rated pictures of a session as feedback."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierFeedback",
            display_name="Feedback",
            category="Atelier/Feedback",
            description="The pictures that you liked and disliked in a session of Rate Images.",
            search_aliases=["session", "ratings", "liked pictures", "thumbs up", "thumbs down", "FABRIC"],
            inputs=[
                session_input(),
                io.Int.Input(
                    "last",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many of the newest liked pictures to take, and of the newest disliked ones. "
                    "Each one makes sampling slower.",
                ),
                io.Float.Input(
                    "minimum_strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Leaves out ratings that are weaker than this.",
                ),
                io.Combo.Input(
                    "prompts",
                    options=["all", "only this"],
                    default="all",
                    advanced=True,
                    tooltip="Whether pictures of all prompts of the session count, or only those of the prompt below.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    optional=True,
                    advanced=True,
                    tooltip="The prompt for only this. It must be the one that Rate Images has kept.",
                ),
            ],
            outputs=[
                FeedbackSocket.Output(display_name="feedback", tooltip="The liked and disliked pictures."),
                io.String.Output(display_name="report", tooltip="How many pictures were taken, and which are gone."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, session: str | None = None, **_: object) -> str | float:
        """What else the pictures depend on: the session's ratings."""
        return session_fingerprint(session, lambda store, name: store.revision(name))

    @classmethod
    def execute(cls, session: str, last: int, minimum_strength: float, prompts: str, prompt: str = "") -> io.NodeOutput:
        found = open_store(default_url()).feedback(session.strip(), minimum_strength)
        sides = []
        for images in (found.liked, found.disliked):
            wanted = [image for image in images if prompts == "all" or image.prompt == prompt]
            loaded, gone = _load_newest(wanted, last)
            weights = tuple(found.strengths[image.key] for image, _ in loaded)
            sides.append((tuple(picture for _, picture in loaded), weights, gone))
        (liked, liked_weights, gone_liked), (disliked, disliked_weights, gone_disliked) = sides
        gone = gone_liked + gone_disliked
        if gone and not (liked or disliked):
            raise ValueError(
                f"All {gone} rated pictures of the session {session!r} are gone from the output folder. Put the folder "
                "atelier_rated back, or rate new pictures in another session."
            )
        report = f"{len(liked)} liked, {len(disliked)} disliked in the session {session.strip()!r}."
        if gone:
            report += f" {gone} rated pictures are gone from the output folder and were passed over."
        return io.NodeOutput(Feedback(liked, disliked, liked_weights, disliked_weights), report)


def _load_newest(images: list[StoredImage], count: int) -> tuple[list[tuple[StoredImage, Tensor]], int]:
    """Up to `count` of the newest pictures that can be loaded, oldest first, and how many could not be on the way."""
    found: list[tuple[StoredImage, Tensor]] = []
    gone = 0
    for image in reversed(images):
        if len(found) == count:
            break
        try:
            found.append((image, load(image)))
        except PictureGone:
            gone += 1
    return found[::-1], gone


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
