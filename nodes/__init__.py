"""The node registry: every node of the pack, in the order in which menus list them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .fabric import AtelierFabric
from .feedback import AtelierFeedbackFromImages
from .parse import AtelierPromptParser
from .route import AtelierModelTreeRouter

NODES: tuple[type[io.ComfyNode], ...] = (
    AtelierPromptParser,
    AtelierModelTreeRouter,
    AtelierFeedbackFromImages,
    AtelierFabric,
)


class AtelierExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> AtelierExtension:
    return AtelierExtension()
