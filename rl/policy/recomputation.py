"""What a layer keeps for its backward pass, and what it computes again there (`model.gradient_checkpointing`).

Of a decoder layer the matrix products and attention are dear to compute; norms, rotations, casts and the gated product
are cheap and as large. `selective` keeps the results of the dear ones and computes the rest again, `full` keeps a
layer's input alone (Chen et al., arXiv:1604.06174; selective: Korthikanti et al., arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal

from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

Recomputation = Literal["off", "selective", "full"]

DEAR = frozenset({
    "aten::mm", "aten::addmm", "aten::addmm_", "aten::_grouped_mm",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn", "flash_attn::_flash_attn_forward", "flash_attn::_flash_attn_varlen_forward",
})
"""Operators whose results `selective` keeps. Not bmm: it is eager attention's, whose scores are larger than dear."""


def recompute(model: PreTrainedModel, what: Recomputation) -> None:
    """From here on the model's layers keep only this while they train."""
    if what == "off":
        return
    settings: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        settings["context_fn"] = _contexts
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    model.enable_input_require_grads()


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    # rl/policy/fused_lora.py adds to a product in place, which is kept too: what comes back is the sum, both times.
    contexts: Callable[..., tuple[Any, Any]] = create_selective_checkpoint_contexts
    return contexts(_policy, allow_cache_entry_mutation=True)


def _policy(context: object, operator: OpOverload, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_dear(operator) else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def _is_dear(operator: OpOverload) -> bool:
    return operator.name().split(".")[0] in DEAR
