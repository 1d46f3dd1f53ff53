"""The node registry: every node of the pack, in the order in which menus list them."""

from __future__ import annotations

from comfy_api.latest import Caching, ComfyExtension, io

from .auto_rate import AtelierAutoRate
from .cross_adapter import AtelierCrossAdapterEncode, AtelierLoadCrossAdapter, AtelierLoadLLMEncoder
from .edit import AtelierDualCFGGuider, AtelierInstructPix2Pix, AtelierLoadEditModel
from .edit_plan import AtelierEditPlan
from .fabric import AtelierFabric
from .feedback import AtelierFeedback, AtelierFeedbackFromImages
from .guidance_grid import AtelierGuidanceGrid
from .keep import KeepRoutedModels
from .llm import AtelierLLMFromClip, AtelierLLMLocal, AtelierLLMServer
from .optimize import AtelierLoadPromptPolicy, AtelierPromptDropout, AtelierPromptOptimizer
from .parse import AtelierPromptParser
from .rate import AtelierRateImages
from .rating_routes import add_routes
from .refine_captions import AtelierRefineCaptions
from .route import AtelierModelTreeRouter
from .score import AtelierScoreImages
from .scorers import AtelierCombineScorers, AtelierLoadScorer
from .session_view import AtelierSessionView
from .taste import AtelierLoadTaste
from .train import AtelierTrainInstructPix2Pix
from .train_adapter import AtelierTrainCrossAdapter
from .train_data import AtelierMakeEditDataset
from .train_optimizer import AtelierTrainPromptOptimizer
from .tree import AtelierBuildModelTree, AtelierModelTreeView

NODES: tuple[type[io.ComfyNode], ...] = (
    AtelierLLMServer,
    AtelierLLMLocal,
    AtelierLLMFromClip,
    AtelierPromptParser,
    AtelierBuildModelTree,
    AtelierModelTreeRouter,
    AtelierModelTreeView,
    AtelierLoadPromptPolicy,
    AtelierPromptOptimizer,
    AtelierPromptDropout,
    AtelierRateImages,
    AtelierAutoRate,
    AtelierFeedback,
    AtelierFeedbackFromImages,
    AtelierSessionView,
    AtelierFabric,
    AtelierLoadLLMEncoder,
    AtelierLoadCrossAdapter,
    AtelierCrossAdapterEncode,
    AtelierLoadEditModel,
    AtelierInstructPix2Pix,
    AtelierDualCFGGuider,
    AtelierGuidanceGrid,
    AtelierEditPlan,
    AtelierLoadScorer,
    AtelierLoadTaste,
    AtelierCombineScorers,
    AtelierScoreImages,
    AtelierMakeEditDataset,
    AtelierRefineCaptions,
    AtelierTrainInstructPix2Pix,
    AtelierTrainCrossAdapter,
    AtelierTrainPromptOptimizer,
)


class AtelierExtension(ComfyExtension):
    async def on_load(self) -> None:
        await Caching().register_provider(KeepRoutedModels())
        from server import PromptServer  # the host's web server, which there is none of outside the host

        add_routes(PromptServer.instance.routes, PromptServer.instance.send_sync)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def comfy_entrypoint() -> AtelierExtension:
    return AtelierExtension()
