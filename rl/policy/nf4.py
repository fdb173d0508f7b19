"""`model.quantization: nf4`: the frozen base's linear layers in 4 bits a weight, under an adapter (QLoRA,
arXiv:2305.14314), by bitsandbytes: blocks of 64 weights, and their scales in 8 bits (double quantisation).

Each product computes with the weight dequantised to the model's dtype, once in the forward and once in the backward
pass, and keeps no dequantised copy. bitsandbytes' own layers are not asked to compute: in evaluation mode those of a
CPU with AVX512-BF16 repack their weights and round to bfloat16 in a float32 model too (by 0.2 with SmolLM2), and the
sampler's policy would not be the trainer's. Embeddings, norms and the output layer stay in the model's dtype.
"""

from __future__ import annotations

import importlib.util
import types
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from rewards.errors import UserError, named
from rl.config import LoraSection, ModelSection

INSTALL = "pip install -e '.[nf4]'"


def check_quantization(model: ModelSection, lora: LoraSection) -> None:
    """Raises UserError where the setting asks for what is not there, or for 4-bit weights that train."""
    where = named("model.quantization")
    if model.quantization is None:
        return
    if not lora.enabled:
        raise UserError(
            f"{model.quantization}, but lora.enabled=false trains all parameters, and a step is far smaller than what "
            "4 bits can hold", where=where, remedy=f"lora.enabled=true, or {named('model.quantization', 'null')}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{model.quantization}, but bitsandbytes is not installed", where=where,
            remedy=f"{INSTALL}, or {named('model.quantization', 'null')}")


def loading_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers is to quantise while it loads, for products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def is_quantised(layer: nn.Module) -> bool:
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def dense(weight: Tensor, state: Any) -> Tensor:
    """A weight as it is, or where it has bitsandbytes' `quant_state` its dequantised value [out, in]."""
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    value: Tensor = dequantize_4bit(weight.data, state)
    return value


def set_forward(model: PreTrainedModel) -> int:
    """Let every quantised layer of the model, and of every copy of it, compute so; returns how many there are."""
    layers = [module for module in model.modules() if is_quantised(module)]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


class DequantisedProduct(torch.autograd.Function):
    """y = x W^T + bias for a frozen quantised W; a gradient for x [N, in] alone. state: W's `quant_state`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, state: Any, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.state = state
        return nn.functional.linear(x, dense(weight, state).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ dense(weight, ctx.state).to(gradients[0].dtype), None, None, None


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """What replaces the forward of bitsandbytes' layer."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    weight: Any = layer.weight
    result: Tensor = DequantisedProduct.apply(x.reshape(-1, x.shape[-1]).to(dtype), weight, weight.quant_state, bias)
    return result.view(*x.shape[:-1], result.shape[-1])
