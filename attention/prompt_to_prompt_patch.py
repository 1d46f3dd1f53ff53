"""Prompt-to-Prompt's hooks in the host.

As with FABRIC, what one call of the model needs travels in that call's own `transformer_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .fabric import chained
from .patches import is_picture_unet
from .prompt_to_prompt import SharedMaps, WordMaps, align_tokens, is_shared, rows_of_sources, step_of
from .reference_keys import Unseen

_PATCH = "atelier_prompt_to_prompt"
_CALL = "atelier_prompt_to_prompt_call"


def apply_prompt_to_prompt(
    model: ModelPatcher,
    share: float | Sequence[float],
    words: Sequence[Tensor] = (),
    words_share: float | Sequence[float] = 0.8,
) -> ModelPatcher:
    """A clone of `model` that draws the second half of a batch with attention maps of the first half.

    The batch is [sources..., targets...], of n pairs, and row i and row i + n start from the same noise: give the
    LATENT the `batch_index` [0..n-1, 0..n-1]. A sampler that adds noise of its own at each step, such as
    euler_ancestral, gives each row its own and parts the pairs; euler, ddim and dpmpp_2m do not. Apply it after
    AtelierFabric.

    Args:
        share: The part of the run's steps, from the first one, in which targets have their sources' self-attention
            maps, 0..1: one for all pairs, or one for each. At 0 a target is drawn as without this patch.
        words: What `align_words` gives, for each pair or one for all, to share maps of words too. These are shared in
            rows of the positive prompt alone, and the guider has a positive and a negative prompt, as KSampler.
        words_share: The part of the steps for the maps of words, as `share`.

    Raises:
        ValueError: The model is of a class that is not taken or has Prompt-to-Prompt already, a share is outside
            0..1, or there are shares and words for different numbers of pairs. While it runs: the batch is odd, has
            another number of pairs, or its halves do not start alike.
    """
    check_model(model)
    shares, word_shares = _shares(share), _shares(words_share) if words else (0.0,)
    counts = {len(given) for given in (shares, word_shares, words) if len(given) > 1}
    if len(counts) > 1:
        raise ValueError(f"Prompt-to-Prompt has settings for {' and for '.join(map(str, sorted(counts)))} pairs.")
    patched = model.clone()
    if max((*shares, *word_shares)) == 0.0:
        return patched
    options = patched.model_options["transformer_options"]
    hooks = PromptToPrompt(shares, word_shares, tuple(words), options.get("optimized_attention_override"))
    options["optimized_attention_override"] = hooks.attend
    patched.set_model_attn1_patch(hooks.enter_self_attention)
    patched.set_model_attn1_output_patch(hooks.leave_attention)
    patched.set_model_attn2_patch(hooks.enter_cross_attention)
    patched.set_model_attn2_output_patch(hooks.leave_attention)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _PATCH, hooks.apply_model)
    return patched


def align_words(clip: comfy.sd.CLIP, before: str, after: str) -> Tensor:
    """How the tokens of two prompts belong together: [tokens before, tokens after], see `align_tokens`."""
    return align_tokens(_tokens(clip, before), _tokens(clip, after))


def _tokens(clip: comfy.sd.CLIP, prompt: str) -> list[Hashable]:
    # Text encoders that are joined, as SDXL's, cut a prompt into the same tokens.
    chunks = next(iter(clip.tokenize(prompt).values()))
    tokens = (entry[0] for chunk in chunks for entry in chunk)
    return [tuple(token.flatten().tolist()) if isinstance(token, Tensor) else token for token in tokens]


def check_model(model: ModelPatcher) -> None:
    """Raise ValueError unless `model` is a UNet of the SD1.x, SD2.x or SDXL class without Prompt-to-Prompt yet."""
    if not is_picture_unet(model):
        raise ValueError(
            "Prompt-to-Prompt works with Stable Diffusion 1.x, 2.x and XL models; this model is "
            f"{type(model.model).__name__}. Use an SD1.5, SD2 or SDXL checkpoint."
        )
    if model.get_wrappers(WrappersMP.APPLY_MODEL, _PATCH):
        raise ValueError("The model already has Prompt-to-Prompt. Apply it once, to the model without it.")


def _shares(share: float | Sequence[float]) -> tuple[float, ...]:
    shares = tuple(map(float, share)) if isinstance(share, Sequence) else (float(share),)
    wrong = [value for value in shares if not 0.0 <= value <= 1.0]
    if not shares or wrong:
        raise ValueError(f"A share of the steps is a number from 0 to 1, not {wrong[0] if wrong else 'nothing'}.")
    return shares


@dataclass(frozen=True, eq=False)
class PromptToPrompt(Unseen):
    """Prompt-to-Prompt's hooks on one patched model. Holds no state of a run.

    `shares` and `word_shares` are one for all pairs or one for each; `before` is the attention override that was
    there.
    """

    shares: Sequence[float]
    word_shares: Sequence[float]
    words: Sequence[Tensor]
    before: Callable[..., Tensor] | None

    def apply_model(
        self,
        executor: WrapperExecutor,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """Say what the rows of one model call share."""
        transformer_options = transformer_options or {}
        call = self._call(x, t, transformer_options)
        if call is not None:
            transformer_options = {**transformer_options, _CALL: call}
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **conds)

    def _call(self, x: Tensor, t: Tensor, transformer_options: dict[str, Any]) -> SharedMaps | None:
        conds, levels = transformer_options.get("cond_or_uncond"), transformer_options.get("sample_sigmas")
        if not conds or levels is None:
            raise ValueError("Prompt-to-Prompt needs to know the run's steps. Draw with KSampler or a guider.")
        pairs = self._pairs(len(x) // len(conds))
        sigma, sigmas = float(t[0]), levels.tolist()
        step, steps = step_of(sigma, sigmas), len(sigmas) - 1
        sharing, of_words = (
            [is_shared(value, step, steps) for value in (given if len(given) == pairs else given * pairs)]
            for given in (self.shares, self.word_shares)
        )
        if step == 0 and sigma == sigmas[0]:
            check_start(x, len(conds), [own or word for own, word in zip(sharing, of_words, strict=True)])
        rows = rows_of_sources(sharing, len(conds)).to(x.device) if any(sharing) else None
        words = self._word_maps(of_words, conds, x.device)
        return SharedMaps(rows, words) if rows is not None or words is not None else None

    def _pairs(self, rows: int) -> int:
        """The number of pairs among the rows of a conditioning."""
        if rows % 2:
            raise ValueError(
                f"Prompt-to-Prompt draws pairs, and the batch has {rows} pictures. Make it [sources..., targets...], "
                "with as many of the one as of the other."
            )
        for given in (self.shares, self.word_shares, self.words):
            if len(given) > 1 and len(given) != rows // 2:
                raise ValueError(
                    f"Prompt-to-Prompt has settings for {len(given)} pairs, and the batch has {rows // 2}. Make it "
                    "[sources..., targets...] of these pairs."
                )
        return rows // 2

    def _word_maps(self, sharing: Sequence[bool], conds: Sequence[int], device: torch.device) -> WordMaps | None:
        """The maps of words in the rows of the positive prompt."""
        if not any(sharing):
            return None
        if max(conds) > 1:
            raise ValueError(
                "Prompt-to-Prompt cannot tell which of three conditionings is the positive prompt, and shares no maps "
                "of words there. Use KSampler or CFGGuider."
            )
        shared = [pair for pair, is_on in enumerate(sharing) if is_on]
        starts = [2 * len(sharing) * chunk for chunk, cond in enumerate(conds) if cond == 0]
        if not starts:
            return None
        sources = torch.tensor([start + pair for start in starts for pair in shared], device=device)
        moved = [self.words[pair % len(self.words)] for _ in starts for pair in shared]
        return WordMaps(sources, sources + len(sharing), torch.stack(moved).to(device))

    def enter_self_attention(
        self, n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Say that the next attention is a self-attention."""
        if (call := options.get(_CALL)) is not None:
            call.running = "self"
        return n, context, value

    def enter_cross_attention(
        self, n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Say that the next attention is one to the text."""
        if (call := options.get(_CALL)) is not None:
            call.running = "cross"
        return n, context, value

    def leave_attention(self, n: Tensor, options: dict[str, Any]) -> Tensor:
        """Close what was entered, also where a replacement made no attention call."""
        if (call := options.get(_CALL)) is not None:
            call.running = None
        return n

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
        """The attention override: every attention of the model comes through here.

        One with a mask belongs to another patch, which alone knows what its keys mean; it is left as it is.
        """
        attention = chained(self.before, function, heads, kwargs)
        call = (kwargs.get("transformer_options") or {}).get(_CALL)
        return attention(q, k, v, mask) if call is None or mask is not None else call.attend(attention, q, k, v)


def check_start(x: Tensor, chunks: int, sharing: Sequence[bool]) -> None:
    """Raise ValueError unless the rows of each sharing pair in `x` [rows, channels, height, width] start alike."""
    sources, targets = x.unflatten(0, (chunks, 2, -1)).unbind(1)
    wrong = [
        pair for pair, is_on in enumerate(sharing) if is_on and not torch.equal(sources[:, pair], targets[:, pair])
    ]
    if wrong:
        raise ValueError(
            f"Prompt-to-Prompt's pairs start from the same noise, and row {wrong[0]} and row {wrong[0] + len(sharing)} "
            "of the batch do not. Make the batch [sources..., targets...], and give its latent the batch_index "
            "[0, 1, ..., 0, 1, ...]."
        )
