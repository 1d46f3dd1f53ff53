"""What is wrong with the tensors of a file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

MAX_LINES = 8
"""Tensors that an error lists; how many more there are is said after them."""


def check_layout(state: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], what: str) -> None:
    """Check that a file holds the wanted tensors, of the wanted shapes, and no others.

    Raises:
        ValueError: It does not. The text names each such tensor, with the shape found and the shape wanted.
    """
    wrong = [f"{name} is missing, wanted {list(shape)}" for name, shape in wanted.items() if name not in state]
    for name, tensor in state.items():
        found = list(tensor.shape)
        if name not in wanted:
            wrong.append(f"{name} is unknown, found {found}")
        elif found != list(wanted[name]):
            wrong.append(f"{name} has the shape {found}, wanted {list(wanted[name])}")
    if wrong:
        more = [f"and {len(wrong) - MAX_LINES} more"] if len(wrong) > MAX_LINES else []
        raise ValueError("\n".join([f"These tensors are not those of {what}:", *wrong[:MAX_LINES], *more]))
