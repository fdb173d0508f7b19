"""LoRA's forward and backward with fewer passes over the activations; the same numbers as PEFT's up to rounding.

PEFT computes `result + lora_B(lora_A(x)) * scaling` as five operations, three of which read and write tensors as large
as the layer's output, forward and again backward. Here the scaling is folded into B, which is small, and both sums
happen inside the matrix products (addmm). On the tiny model on two CPU cores this saves a tenth of the update (LOG.md).

Over a bfloat16 base PEFT also casts x to the float32 of A and B, once for each layer, and keeps every copy for the
backward pass. Here A and B are cast, which are small: x stays as it is, one tensor for all layers that read it, and the
numbers are those of vLLM, which computes adapters in the model's precision too. A and B themselves, their gradients and
the optimiser stay in float32.

`fuse_lora` changes how PEFT's layers compute, not what they hold: adapters are saved, loaded, merged and switched off
as before. Over a base in 4 bits (rl/policy/nf4.py) W is dequantised forward and again backward, and no copy is kept.
Layers that are not a plain LoRA over a linear layer without dropout keep PEFT's own forward, which is said.
"""

from __future__ import annotations

import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rl.policy.nf4 import dense, is_quantised


class LoraProduct(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T for a frozen W, in the dtype of x and W; gradients for x, A and B.

    x: [N, in], W: [out, in], A: [r, in], B: [out, r], s: float. A and B may be in a wider dtype than x: they are cast
    to x's, forward and again backward, so that no cast is kept; their gradients are in their own dtype. A W in 4 bits
    is likewise dequantised."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        reduced = x @ lora_a.to(x.dtype).T
        state = getattr(weight, "quant_state", None)
        result = nn.functional.linear(x, dense(weight, state), bias)
        result.addmm_(reduced, lora_b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(x, weight, lora_a, lora_b, reduced)
        ctx.scaling, ctx.state = scaling, state  # a weight that is saved may come back without its attributes
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        (gradient,) = gradients
        x, weight, lora_a, lora_b, reduced = ctx.saved_tensors
        # Scaled while it is small: [N, r].
        gradient_reduced = (gradient @ lora_b.to(x.dtype)).mul_(ctx.scaling)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = gradient @ dense(weight, ctx.state)
            gradient_x.addmm_(gradient_reduced, lora_a.to(x.dtype))
        gradient_a = product(gradient_reduced.T, x, lora_a.dtype)
        gradient_b = product(gradient.T, reduced, lora_b.dtype).mul_(ctx.scaling)
        return gradient_x, None, None, gradient_a, gradient_b, None


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ right in `dtype`. Sums are in float32 everywhere; only a GPU gives them out without rounding them to the
    operands' dtype in between."""
    if left.is_cuda and dtype != left.dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


def fuse_lora(model: PeftModel) -> int:
    """Let every plain LoRA layer of the model compute through LoraProduct; returns how many do. Warns of the others."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    left = {name: reason for name, layer in layers.items() if (reason := _left_to_peft(layer)) is not None}
    for name in layers.keys() - left.keys():
        layers[name].forward = types.MethodType(_forward, layers[name])
    if left:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in Counter(left.values()).items())
        warnings.warn(
            f"{len(left)} of {len(layers)} adapted layers compute by PEFT's own forward, slower and with more memory "
            f"than ours: {reasons}; the first is {next(iter(left))}", stacklevel=2)
    return len(layers) - len(left)


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Within, the layers compute by PEFT's own forward: what ours is compared with where something is wrong."""
    fused = [module for module in model.modules() if isinstance(module, LoraLayer) and "forward" in vars(module)]
    forwards = [vars(layer).pop("forward") for layer in fused]
    try:
        yield
    finally:
        for layer, forward in zip(fused, forwards, strict=True):
            layer.forward = forward


def _left_to_peft(layer: LoraLayer) -> str | None:
    """Why PEFT's own forward computes this layer; None where ours does."""
    base = layer.get_base_layer()
    is_plain = isinstance(layer, LoraLinear) and type(base) is nn.Linear
    if not (is_plain or is_quantised(base)) or layer.fan_in_fan_out:
        return f"no plain linear layer, {type(base).__name__}"
    if len(layer.active_adapters) != 1:
        return f"{len(layer.active_adapters)} active adapters"
    (name,) = layer.active_adapters
    if layer.lora_variant:
        return "a variant of LoRA, such as DoRA"
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return "dropout"
    if layer.lora_B[name].bias is not None:
        return "a bias of the adapter's own"
    if base.weight.requires_grad:
        return "a base that trains too"
    return None


def _forward(layer: LoraLayer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What replaces PEFT's forward; anything out of the ordinary goes back to it."""
    ordinary: Callable[..., Tensor] = types.MethodType(type(layer).forward, layer)
    base, device = layer.get_base_layer(), x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    # Weights that autocast would cast are PEFT's matter: they would be kept for the backward pass.
    held = base.weight.quant_state if is_quantised(base) else base.weight
    if layer.disable_adapters or layer.merged or args or kwargs or held.dtype != dtype:
        return ordinary(x, *args, **kwargs)
    (name,) = layer.active_adapters
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    result: Tensor = LoraProduct.apply(
        rows, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
    return result.view(*x.shape[:-1], result.shape[-1])
