"""`model.head_dtype: float32`: the output layer's matrix product in float32 over a bfloat16 model.

Logits of 16 to 32 lie 1/8 apart in bfloat16, so trainer and sampler, whose hidden states differ in the last bits, may
give a token probabilities that differ by a tenth. Hidden states and weights stay in bfloat16, whose products float32
holds exactly; the sums are not rounded to bfloat16 again. vLLM's head_dtype does the same. The backward pass is what it
is without the setting: the logits' gradient is rounded to the model's dtype.

On a GPU the product itself gives out float32 (no copy of the weight). Elsewhere the weight is cast in pieces that fit
into a processor's cache and take PIECE_BYTES: from 16 rows on no slower than with a float32 copy that is kept.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewards.errors import UserError, named
from rl.config import ModelSection
from rl.policy.fused_lora import product

PIECE_BYTES = 8 * 2**20  # of the weight in float32


class HeadProduct(torch.autograd.Function):
    """z = x W^T in float32, of x [N, H] and W [V, H] as they are in `dtype`; gradients for x, and for a W that trains
    in its own dtype (a float32 master under autocast, say)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        with torch.autocast(x.device.type, enabled=False):
            return _float32_product(x.to(dtype), weight, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].to(ctx.dtype)
        gradient_x = (gradient @ weight.to(ctx.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        gradient_weight = (
            product(gradient.T, x.to(ctx.dtype), weight.dtype) if ctx.needs_input_grad[1] else None)
        return gradient_x, gradient_weight, None


def _float32_product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if x.is_cuda and dtype != torch.float32:
        return torch.mm(x, weight.to(dtype).T, out_dtype=torch.float32)
    x, logits = x.float(), x.new_empty(len(x), len(weight), dtype=torch.float32)
    rows = max(1, PIECE_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), rows):
        piece = weight[start : start + rows].to(dtype).float()
        torch.mm(x, piece.T, out=logits[:, start : start + rows])
    return logits


def wants_float32_head(model: ModelSection, dtype: torch.dtype) -> bool:
    """Whether the setting changes anything; dtype: of the computation."""
    return model.head_dtype == "float32" and dtype != torch.float32


def has_float32_head(model: PreTrainedModel) -> bool:
    forward = vars(model.get_output_embeddings()).get("forward")
    return isinstance(forward, types.MethodType) and forward.__func__ is _forward


def set_float32_head(model: PreTrainedModel) -> None:
    """Let the model's output layer compute so, and that of every copy of the model. Raises UserError where it is no
    plain linear layer."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(
            f"float32, but the output layer is of type {type(head).__name__}", where=named("model.head_dtype"),
            expected="a linear layer", remedy=named("model.head_dtype", "null"))
    head.forward = types.MethodType(_forward, head)  # type: ignore[method-assign]


def _forward(head: nn.Linear, hidden: Tensor) -> Tensor:
    """What replaces nn.Linear's forward: [..., H] -> [..., V] in float32."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    logits: Tensor = HeadProduct.apply(hidden.reshape(-1, hidden.shape[-1]), head.weight, dtype)
    if head.bias is not None:
        logits = logits + head.bias.to(dtype).float()
    return logits.view(*hidden.shape[:-1], logits.shape[-1])
