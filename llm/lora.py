"""Which installed checkpoint a LoRA is put on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .families import fit
from .records import ModelRecord
from .tags import ANY_STYLE


def bases_for(lora: ModelRecord, checkpoints: Sequence[ModelRecord]) -> tuple[ModelRecord, ...]:
    """The checkpoints of a LoRA's own family, else those of its architecture; none if its family is not known."""
    fits = {model.name: fit(lora, model) for model in checkpoints}
    best = max(fits.values(), default=0)
    return tuple(model for model in checkpoints if best and fits[model.name] == best)


def no_base(lora: ModelRecord) -> str:
    """Why a LoRA cannot be chosen, and what to do."""
    if not lora.family:
        return "its base model is not known; name its family in model_edits.json or in a file beside it"
    return f"no checkpoint of its base model ({lora.family}) is among the candidates"


def best_base(bases: Sequence[ModelRecord], nearness: Callable[[ModelRecord], float]) -> ModelRecord:
    """The base to take: one of any style before a specialist, whose own style would mix in; then the nearest."""
    return min(bases, key=lambda model: (ANY_STYLE not in model.style_tags, -nearness(model), model.name))
