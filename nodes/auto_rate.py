"""The node that lets a scorer rate in a person's stead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from comfy_api.latest import io
from torch import Tensor

from ..feedback.records import PEOPLE
from ..feedback.scorers import Scorer
from ..feedback.store import default_url, open_store
from .rate import SESSION_TOOLTIP, register, source_of
from .rating import rate
from .score import ScorerSocket, keep_scores, order, prompt_input, report, score_batch

if TYPE_CHECKING:
    from ..feedback.ratings import Store
    from ..feedback.records import StoredImage

WORDS = {1: "liked", -1: "disliked", 0: "", None: "rated by a person"}


class AtelierAutoRate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierAutoRate",
            display_name="Auto Rate",
            category="Atelier/Feedback",
            description="A scorer likes the best and dislikes the worst pictures of a batch, so that the loop runs "
            "without a person.",
            search_aliases=["automatic rating", "scorer", "reward", "thumbs up", "thumbs down", "FABRIC"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to rate."),
                ScorerSocket.Input("scorer", tooltip="From Load Scorer, Load Taste or Combine Scorers."),
                io.String.Input("session", default="default", tooltip=SESSION_TOOLTIP),
                io.Int.Input("best", default=1, min=0, max=32, tooltip="How many pictures to like."),
                io.Int.Input("worst", default=1, min=0, max=32, tooltip="How many pictures to dislike."),
                prompt_input(),
                io.String.Input(
                    "trace",
                    optional=True,
                    force_input=True,
                    tooltip="The trace of the Model Tree Router, as in Rate Images.",
                ),
            ],
            outputs=[io.String.Output("report", tooltip="The scores and the ratings as a text, the best first.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        scorer: Scorer,
        session: str,
        best: int,
        worst: int,
        prompt: str = "",
        trace: str | None = None,
    ) -> io.NodeOutput:
        if best + worst > len(images):
            raise ValueError(
                f"{best} best and {worst} worst are more than the {len(images)} pictures of the batch. Lower one of "
                "them, or make more pictures."
            )
        source = source_of(cls)
        wish = prompt or source.prompt
        scores = score_batch(images, scorer, wish)
        store = open_store(default_url())
        files, pictures = register(cls, store, images, session, wish, source, trace)
        keep_scores(store, pictures, scorer, scores)
        values = give(store, pictures, scorer.name, scores, best, worst)
        text = report(scorer, scores, [WORDS[value] for value in values])
        return io.NodeOutput(text, ui={"images": files, "text": [text]})


def give(
    store: Store, pictures: list[StoredImage], source: str, scores: list[float], best: int, worst: int
) -> list[int | None]:
    """Rate the best and the worst pictures of a batch in their session, in the name of a scorer.

    Pictures that a person has rated there are passed over. What this source said of the others before holds no more.

    Returns:
        1, -1 or 0 for each picture; None where a person's rating holds.
    """
    held = store.ratings(pictures[0].session)
    by_people = {rating.image for rating in held if rating.source in PEOPLE}
    before = {rating.image: rating.value for rating in held if rating.source == source}
    # The same picture twice in a batch is one picture in the store.
    free = {picture.key: score for picture, score in zip(pictures, scores, strict=True) if picture.key not in by_people}
    values = dict(zip(free, choose(list(free.values()), best, worst), strict=True))
    for picture in {picture.key: picture for picture in pictures}.values():
        if picture.key in values and values[picture.key] != before.get(picture.key, 0):
            rate(store, picture, values[picture.key], source=source)
    return [values.get(picture.key) for picture in pictures]


def choose(scores: list[float], best: int, worst: int) -> list[int]:
    """1 for the `best` highest scores, -1 for the `worst` lowest, 0 for the others and for what is no number.

    Of equal scores the earlier is the higher. A score that would be on both sides is on neither: where all are equal,
    none is better than another. With fewer numbers than `best` and `worst`, the best go first.
    """
    ranked = [i for i in order(scores) if math.isfinite(scores[i])]
    liked, left = ranked[:best], ranked[best:]
    disliked = left[max(0, len(left) - worst) :]
    both = {scores[i] for i in liked} & {scores[i] for i in disliked}
    values = [0] * len(scores)
    for i in liked + disliked:
        values[i] = 0 if scores[i] in both else 1 if i in liked else -1
    return values
