"""Feedback pictures and the node that collects them."""

from __future__ import annotations

import pytest
import torch
from atelier.feedback.pictures import Feedback, pictures_from_batch
from atelier.nodes.feedback import AtelierFeedbackFromImages


def images(count: int, height: int = 4, width: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(count))


def collect(**inputs: object) -> Feedback:
    return AtelierFeedbackFromImages.execute(**inputs).args[0]


def test_batches_become_pictures_in_order() -> None:
    liked, disliked = images(3), images(1, height=8)
    feedback = collect(liked=liked, disliked=disliked)
    assert len(feedback.liked) == 3 and len(feedback.disliked) == 1
    assert all(torch.equal(picture, image) for picture, image in zip(feedback.liked, liked, strict=True))
    assert feedback.disliked[0].shape == (8, 6, 3)


def test_every_input_may_be_missing() -> None:
    assert collect().liked == () and collect().disliked == ()
    assert len(collect(liked=images(2)).liked) == 2
    assert len(collect(disliked=images(2)).disliked) == 2


def test_previous_feedback_comes_first_and_stays_as_it_was() -> None:
    first = collect(liked=images(1), disliked=images(2))
    both = collect(liked=images(3, height=8), previous=first)
    assert [picture.shape[0] for picture in both.liked] == [4, 8, 8, 8]
    assert len(both.disliked) == 2
    assert len(first.liked) == 1


def test_weights_stay_with_their_pictures() -> None:
    strong = Feedback(tuple(images(2)), tuple(images(1)), (1.0, 0.25), (0.5,))
    both = collect(liked=images(1), disliked=images(2), previous=strong)
    assert both.liked_weights == (1.0, 0.25, 1.0) and both.disliked_weights == (0.5, 1.0, 1.0)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, float("inf"))], ids=str)
def test_a_weight_that_is_missing_or_no_positive_number_is_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="Each liked picture needs a weight above 0"):
        Feedback(tuple(images(2)), liked_weights=weights)


def test_alpha_is_dropped_and_one_channel_becomes_grey() -> None:
    rgba, grey = images(1, channels=4), images(1, channels=1)
    assert torch.equal(pictures_from_batch(rgba, "liked")[0], rgba[0, ..., :3])
    assert torch.equal(pictures_from_batch(grey, "liked")[0], grey[0].expand(-1, -1, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_picture_that_is_not_numbers_is_named(bad: float) -> None:
    batch = images(3)
    batch[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"Disliked picture 2 of 3 .* Take it out"):
        collect(disliked=batch)


@pytest.mark.parametrize("shape", [(4, 6, 3), (1, 4, 6, 2), (1, 3, 4, 6, 3)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Connect an IMAGE"):
        collect(liked=torch.zeros(shape))
