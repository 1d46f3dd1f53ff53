"""Liked and disliked pictures: the data that feedback nodes pass to each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

FEEDBACK_TYPE = "ATELIER_FEEDBACK"
"""Name of the socket that carries a `Feedback`."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """Liked and disliked pictures, each a float tensor [height, width, 3] with values from 0 to 1.

    Pictures may differ in size. Either side may be empty. Each picture has a weight above 0, which says how much it
    counts on its side; without weights all count 1, in full.
    """

    liked: tuple[Tensor, ...] = ()
    disliked: tuple[Tensor, ...] = ()
    liked_weights: tuple[float, ...] = ()
    disliked_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for side in ("liked", "disliked"):
            pictures = getattr(self, side)
            weights = getattr(self, f"{side}_weights") or (1.0,) * len(pictures)
            if len(weights) != len(pictures) or not all(0.0 < weight < math.inf for weight in weights):
                raise ValueError(
                    f"Each {side} picture needs a weight above 0; there are {len(pictures)} for {weights}."
                )
            object.__setattr__(self, f"{side}_weights", weights)

    def __add__(self, other: Feedback) -> Feedback:
        """All pictures of both with their weights, those of `self` first."""
        return Feedback(
            self.liked + other.liked,
            self.disliked + other.disliked,
            self.liked_weights + other.liked_weights,
            self.disliked_weights + other.disliked_weights,
        )


def pictures_from_batch(images: Tensor, side: str) -> tuple[Tensor, ...]:
    """Split a batch [n, height, width, channels] into pictures [height, width, 3].

    One channel becomes grey; channels after the third (alpha) are dropped, as the host does when it
    encodes. `side` names the batch in messages.

    Raises:
        ValueError: The batch has another layout, or a picture holds NaN or infinity.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"The {side} pictures have the shape {tuple(images.shape)}. Connect an IMAGE: "
            "[pictures, height, width, channels] with 1, 3 or 4 channels."
        )
    for number, image in enumerate(images, start=1):
        if not image.isfinite().all():
            raise ValueError(
                f"{side.capitalize()} picture {number} of {len(images)} holds values that are not "
                "numbers (NaN or infinity). Take it out of the batch or make it again; a decoder that "
                "overflows in half precision is the usual cause."
            )
    rgb = images[..., :3].expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images[..., :3]
    return tuple(rgb.float().unbind(0))
