"""Groups tags that mean the same, such as "anime girl" and "anime girls"; and more where there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from .embeddings import Encoder, embed

SAME = 0.3
"""Mean cosine distance up to which tags are one group. With MiniLM, plurals are 0.10 to 0.15 apart, "realism" and
"realistic" 0.30, "car" and "truck" 0.31, "cat" and "dog" 0.34 (chosen on these and a dozen other pairs: in-sample)."""

GROUPS = 24
"""Groups on one level, at most. As many branches fit into a question of a small context, and into a picture."""

_CLUSTERED = 1000
"""Tags that are clustered, the most frequent first: the distances of 1,000 tags take 4 MB. The rest joins them."""


def group(counts: Mapping[str, int], encoder: Encoder) -> dict[str, str]:
    """The group of each tag, named by its most frequent tag.

    Average linkage on cosine distance, cut at SAME; where that leaves more than GROUPS, cut at GROUPS. Which tag is
    asked first does not matter, and the same counts give the same groups.

    Args:
        counts: how many models have each tag.
    """
    ranked = sorted(counts, key=lambda tag: (-counts[tag], len(tag), tag))
    first, rest = ranked[:_CLUSTERED], ranked[_CLUSTERED:]
    if not first:
        return {}
    numbers = _cut(embed(encoder, first)) if len(first) > 1 else np.zeros(1, np.int64)
    names: dict[int, str] = {}
    for tag, number in zip(first, numbers.tolist(), strict=True):
        names.setdefault(number, tag)
    groups = {tag: names[number] for tag, number in zip(first, numbers.tolist(), strict=True)}
    if rest:
        nearest = (embed(encoder, rest) @ embed(encoder, first).T).argmax(1)
        groups |= {tag: groups[first[at]] for tag, at in zip(rest, nearest.tolist(), strict=True)}
    return groups


def _cut(vectors: np.ndarray) -> np.ndarray:
    """The number of the group of each vector [n, width], n of 2 or more."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - vectors.astype(np.float64) @ vectors.T, 0, 2)
    np.fill_diagonal(distance, 0)
    joined = linkage(squareform((distance + distance.T) / 2, checks=False), "average")
    numbers = fcluster(joined, SAME, "distance")
    return numbers if numbers.max() <= GROUPS else fcluster(joined, GROUPS, "maxclust")


def tag_counts(lists: list[tuple[str, ...]]) -> Counter[str]:
    """How many of the lists have each tag."""
    return Counter(tag for tags in lists for tag in dict.fromkeys(tags))
