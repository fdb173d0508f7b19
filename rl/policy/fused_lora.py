"""LoRA's forward and backward with fewer passes over the activations; the same numbers as PEFT's up to rounding.

PEFT computes `result + lora_B(lora_A(x)) * scaling` as five operations, three of which read and write tensors as large
as the layer's output, forward and again backward. Here the scaling is folded into B, which is small, and both sums
happen inside the matrix products (addmm). On the tiny model on two CPU cores this saves a tenth of the update (LOG.md).

`fuse_lora` changes how PEFT's layers compute, not what they hold: adapters are saved, loaded, merged and switched off
as before. Layers that are not a plain LoRA over nn.Linear in one dtype without dropout keep PEFT's own forward.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class LoraProduct(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T for a frozen W; gradients for x, A and B.

    x: [N, in], W: [out, in], A: [r, in], B: [out, r], s: float."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        reduced = x @ lora_a.T
        result = nn.functional.linear(x, weight, bias)
        result.addmm_(reduced, lora_b.T, alpha=scaling)
        ctx.save_for_backward(x, weight, lora_a, lora_b, reduced)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        (gradient,) = gradients
        x, weight, lora_a, lora_b, reduced = ctx.saved_tensors
        # Scaled while it is small: [N, r].
        gradient_reduced = (gradient @ lora_b).mul_(ctx.scaling)
        gradient_x = None
        if ctx.needs_input_grad[0]:
            gradient_x = gradient @ weight
            gradient_x.addmm_(gradient_reduced, lora_a)
        return gradient_x, None, None, gradient_reduced.T @ x, (gradient.T @ reduced).mul_(ctx.scaling), None


def fuse_lora(model: PeftModel) -> int:
    """Let every plain LoRA layer of the model compute through LoraProduct; returns how many do."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and _is_plain(module)]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Within, the layers compute by PEFT's own forward: what ours is compared with where something is wrong."""
    fused = [module for module in model.modules() if isinstance(module, LoraLinear) and "forward" in vars(module)]
    forwards = [vars(layer).pop("forward") for layer in fused]
    try:
        yield
    finally:
        for layer, forward in zip(fused, forwards, strict=True):
            layer.forward = forward


def _is_plain(layer: LoraLinear) -> bool:
    (name,) = layer.active_adapters if len(layer.active_adapters) == 1 else (None,)
    if name is None or type(layer.get_base_layer()) is not nn.Linear or layer.lora_variant or layer.fan_in_fan_out:
        return False
    weights = (layer.get_base_layer().weight, layer.lora_A[name].weight, layer.lora_B[name].weight)
    one_dtype = len({weight.dtype for weight in weights}) == 1
    no_dropout, no_bias = isinstance(layer.lora_dropout[name], nn.Identity), layer.lora_B[name].bias is None
    return one_dtype and not weights[0].requires_grad and no_dropout and no_bias


def _forward(layer: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What replaces PEFT's forward; anything out of the ordinary goes back to it."""
    ordinary: Callable[..., Tensor] = types.MethodType(type(layer).forward, layer)
    if layer.disable_adapters or layer.merged or args or kwargs or torch.is_autocast_enabled(x.device.type):
        return ordinary(x, *args, **kwargs)
    (name,) = layer.active_adapters
    base = layer.get_base_layer()
    rows = x.reshape(-1, x.shape[-1])
    result: Tensor = LoraProduct.apply(
        rows, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
    return result.view(*x.shape[:-1], result.shape[-1])
