"""The node that makes a scorer of a person's thumbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..feedback.records import Rating, StoredImage
from ..feedback.scorers import TextImageEncoder
from ..feedback.store import default_url, open_store
from ..feedback.taste import Taste, features, fit_taste, held_out_auc
from ..llm.words import without_syntax
from .clip_models import NO_MODEL, folder_state, installed_folder, load, model_folder
from .picture_files import KEPT, PictureGone
from .picture_files import load as load_picture
from .scorers import clip_model_input, scorer_output
from .session import session_fingerprint

if TYPE_CHECKING:
    from ..feedback.ratings import Store

MOST = 500
"""Rated pictures that are used, the newest first. Each is encoded when the ratings have changed."""


class AtelierLoadTaste(io.ComfyNode):
    """A scorer that has learned from the ratings store what a person likes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadTaste",
            display_name="Load Taste",
            category="Atelier/Score",
            description="Learns your taste from your thumbs and scores pictures by it: the chance that you like one.",
            search_aliases=["preference model", "reward model", "personal", "ratings", "thumbs", "my taste"],
            inputs=[
                clip_model_input(" Pictures and prompts are seen through it."),
                io.String.Input(
                    "session",
                    default="",
                    optional=True,
                    tooltip="Name of a session of Rate Images to learn from. Empty: your ratings of all sessions.",
                ),
            ],
            outputs=[
                scorer_output(),
                io.String.Output("report", tooltip="What was learned from, and how well it tells your own ratings."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, clip_model: str = NO_MODEL, session: str | None = None, **_: object) -> str | float:
        folder = model_folder(clip_model)
        ratings = session_fingerprint(session, _state)
        return ratings if isinstance(ratings, float) else f"{folder_state(folder) if folder else ''} {ratings}"

    @classmethod
    def execute(cls, clip_model: str, session: str = "") -> io.NodeOutput:
        session = session.strip()
        rated = open_store(default_url()).rated_images(session or None, only_rated=True, limit=MOST)
        encoder = load(installed_folder(clip_model))
        seen, ratings = read(encoder, [(image, rating) for image, rating in rated if rating is not None])
        if rated and not ratings:
            raise ValueError(
                f"All {len(rated)} rated pictures are gone from the output folder. Put the folder {KEPT} back, or rate "
                "new pictures."
            )
        thumbs, strengths = [rating.value for rating in ratings], [rating.strength for rating in ratings]
        taste = Taste(encoder, fit_taste(seen, thumbs, strengths), session)
        return io.NodeOutput(taste, report(thumbs, held_out_auc(seen, thumbs, strengths), len(rated) - len(ratings)))


def _state(store: Store, session: str) -> int:
    return store.revision(session) if session else store.newest_by_people()


def read(encoder: TextImageEncoder, rated: list[tuple[StoredImage, Rating]]) -> tuple[Tensor, list[Rating]]:
    """The features [n, 2 d] of the rated pictures that can be loaded, and their ratings."""
    texts: dict[str, Tensor] = {}
    rows, ratings = [], []
    bar = ProgressBar(len(rated))
    for image, rating in rated:
        bar.update(1)
        try:
            picture = load_picture(image)
        except PictureGone:
            continue
        if image.prompt not in texts:
            texts[image.prompt] = encoder.encode_text(without_syntax(image.prompt).strip())
        rows.append(features(encoder.encode_images(picture[None]), texts[image.prompt][None]))
        ratings.append(rating)
    return torch.cat(rows) if rows else torch.zeros(0, 0), ratings


def report(thumbs: list[int], auc: float | None, gone: int) -> str:
    liked = sum(thumb > 0 for thumb in thumbs)
    text = f"Learned from {liked} liked and {len(thumbs) - liked} disliked pictures."
    if auc is None:
        text += " With fewer than five on a side it cannot be said how well."
    else:
        text += f" Of a liked and a disliked picture that it had not seen, it puts the liked one first in {auc:.0%}."
    return text + (f" {gone} rated pictures are gone from the output folder and were passed over." if gone else "")
