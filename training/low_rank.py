"""Low-rank weights on a frozen module (LoRA, arXiv 2106.09685), and their file, which the stock LoRA loader opens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_MARK = ".parametrizations.weight.0."


class LowRank(nn.Module):
    """A weight plus `up @ down`, shaped like the weight. `up` starts at zero, so training starts at the weight.

    `off` leaves the weight as it was.
    """

    off = False

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.off else weight + (self.up @ self.down).view_as(weight)


def add_low_rank(module: nn.Module, rank: int) -> None:
    """Freezes the module, and puts trainable low-rank weights on each of its linear layers and convolutions."""
    module.requires_grad_(False)
    for layer in list(module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


@contextlib.contextmanager
def without_low_rank(module: nn.Module) -> Iterator[None]:
    """Inside, the module is as it was before `add_low_rank`."""
    added = [layer for layer in module.modules() if isinstance(layer, LowRank)]
    for layer in added:
        layer.off = True
    try:
        yield
    finally:
        for layer in added:
            layer.off = False


def lora_file(weights: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """Trained low-rank weights by parameter name, as the tensors of a LoRA file, fp16."""
    made = {}
    for name, weight in weights.items():
        layer, mark, part = name.partition(_MARK)
        if mark:
            key = f"{prefix}{layer}.lora_{part}.weight"
            made[key] = weight.detach().half().cpu().contiguous()
    return made


def start_low_rank(module: nn.Module, file: Mapping[str, Tensor], prefix: str = "diffusion_model.") -> None:
    """Put the tensors of a file of `lora_file` into the low-rank weights that `add_low_rank` gave a module.

    A file of a lower rank leaves the rest as new weights are, which add nothing yet.

    Raises:
        ValueError: The file is not one for these layers, or of a higher rank.
    """
    places = {
        f"{prefix}{name.partition(_MARK)[0]}.lora_{name.rpartition('.')[2]}.weight": weight
        for name, weight in module.named_parameters()
        if _MARK in name
    }
    if strange := sorted({*file} ^ {*places}):
        raise ValueError(
            f"The LoRA to go on from has not the layers of this training: {strange[0]} is in one of them alone. Take "
            "one that Train Cross-Adapter made for this model."
        )
    with torch.no_grad():
        for key, weight in places.items():
            values, own = file[key].flatten(1).to(weight), weight
            if key.endswith("lora_up.weight"):
                values, own = values.T, weight.T
            if len(values) > len(own) or values.shape[1] != own.shape[1]:
                raise ValueError(
                    f"The LoRA to go on from has rank {len(values)} in {key}, and this training has {len(own)}. Set "
                    "the rank to that of the LoRA, or higher, and connect the model that it was made for."
                )
            own[: len(values)].copy_(values)
