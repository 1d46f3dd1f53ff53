"""FABRIC's hooks on the host's DiT families: which models these are, and what their attentions are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .dit import TokenOrder, block_depths, merge_heads, next_block
from .fabric import CALL, Fabric
from .reference import BlockKey, Capture, KeysValues
from .reference_keys import Unseen

FAMILIES = "Flux-, SD3-, Qwen-Image- and Z-Image-class models"


@dataclass(frozen=True)
class Family:
    """What FABRIC has to know of a DiT.

    `depths` are its attentions of text and picture with their depths, in the order in which they run. `text_width` is
    the number of channels of a text token, if the model has an own layer for them, and `longest` the most patches that
    a side of a picture may have. `names_blocks` says whether the host names this family's blocks in its options.
    """

    order: TokenOrder
    depths: dict[BlockKey, float]
    text_width: int | None
    longest: int | None = None
    names_blocks: bool = True


def dit_family(model: torch.nn.Module) -> Family | None:
    """The family of a diffusion model; None for all but the four that are known.

    Classes derived from these have token orders of their own, and are not known.
    """
    make = _FAMILIES.get(type(model))
    return make(model) if make else None


def _flux(model: Flux) -> Family:
    blocks = [("double", i, 0) for i in range(len(model.double_blocks))]
    blocks += [("single", i, 0) for i in range(len(model.single_blocks))]
    return Family(TokenOrder(model.patch_size), block_depths(blocks), _width(model.txt_in))


def _sd3(model: OpenAISignatureMMDITWrapper) -> Family:
    # SD3.5 medium has a second attention, of the picture alone, in some blocks.
    blocks = [
        ("double", i, layer)
        for i, block in enumerate(model.joint_blocks)
        for layer in range(2 if block.x_block.x_block_self_attn else 1)
    ]
    depths, width = block_depths(blocks), _width(model.context_embedder)
    return Family(TokenOrder(model.patch_size), depths, width, model.pos_embed_max_size, names_blocks=False)


def _qwen_image(model: QwenImageTransformer2DModel) -> Family:
    return Family(TokenOrder(model.patch_size), _double_blocks(model.transformer_blocks), _width(model.txt_in))


def _lumina(model: NextDiT) -> Family:
    order = TokenOrder(model.patch_size, model.pad_tokens_multiple or 1)
    return Family(order, _double_blocks(model.layers), _width(model.cap_embedder[1]))


def _double_blocks(blocks: Iterable[torch.nn.Module]) -> dict[BlockKey, float]:
    return block_depths(("double", i, 0) for i, _ in enumerate(blocks))


def _width(layer: torch.nn.Module) -> int | None:
    return getattr(layer, "in_features", None)


_FAMILIES: dict[type, Callable[[Any], Family]] = {
    Flux: _flux,
    OpenAISignatureMMDITWrapper: _sd3,
    QwenImageTransformer2DModel: _qwen_image,
    NextDiT: _lumina,
}


@dataclass(frozen=True, eq=False)
class DitFabric(Fabric):
    """FABRIC's hooks on one patched DiT."""

    family: Family = field(kw_only=True)

    def hook_blocks(self, patched: ModelPatcher) -> None:
        """Have the blocks named in the options that their attentions see, where the host does not name them."""
        if self.family.names_blocks:
            return
        for index in {block[1] for block in self.family.depths}:
            replaced = patched.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
            named = NamedBlock(index, replaced.get(("double_block", index)))
            patched.set_model_patch_replace(named.run, "dit", "double_block", index)

    def capture(self, x: Tensor) -> Capture:
        return Capture(tuple(self.blocks), lambda tokens: self.family.order.picture(tokens, x.shape))

    def merge(
        self, kept: Mapping[BlockKey, KeysValues], count: int, size: tuple[int, int]
    ) -> Mapping[BlockKey, KeysValues]:
        """Nothing is merged: keys carry the place of their token."""
        return kept

    def attend(
        self,
        function: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The attention override. These models' own masks, which hide padding of the text, are kept."""
        options = kwargs.get("transformer_options") or {}
        call = options.get(CALL)
        block = next_block(options, call.block) if call is not None else None
        if block is None:
            return self.plain(function, heads, kwargs)(q, k, v, mask)
        call.block = block
        heads_first = kwargs.pop("skip_reshape", False)
        q, k, v = (merge_heads(part, heads_first) for part in (q, k, v))
        return call.attend(self.plain(function, heads, kwargs), q, k, v, mask)


@dataclass(frozen=True, eq=False)
class NamedBlock(Unseen):
    """Takes the place of a block's replacement, if any, and says in the options which block it is."""

    index: int
    before: Callable[..., dict[str, Any]] | None

    def run(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        options = {**args["transformer_options"], "block_type": "double", "block_index": self.index}
        return (self.before or _original)({**args, "transformer_options": options}, extra)


def _original(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    return extra["original_block"](args)
