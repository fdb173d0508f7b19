"""What autograd keeps of a micro-batch until its backward pass, in bytes a token, counted operation by operation on a
decoder of norms, attention and a gated product (Llama, Qwen, Mistral and their like).

Counted as our forward computes (rl/policy/forward.py, fused_lora.py): a norm keeps its input in float32; attention its
queries, keys, values and result, twice the result and copies of a prompt's keys and values where completions share it
(shared_prompts.py); the gated product three tensors of its width. A frozen linear layer keeps nothing, a trained one
its input. An adapter keeps one input for the layers that share it; with dropout (PEFT's own forward) each layer a
float32 copy. Recomputation (recomputation.py) keeps a layer's input, and `selective` the results of its products and of
attention; one layer at a time is then there as a whole.

Legend: H hidden size, I width of the gated product, Q and K widths of all query and of all key heads.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from transformers import PretrainedConfig

from rl.config import RunConfig
from rl.planning.shapes import WeightShapes


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes a token. kept: by all layers until the backward pass. gradients: beside them while one layer's backward
    pass runs, when the logits are gone."""

    kept: int
    gradients: int


def activations_per_token(
    config: RunConfig, model_config: PretrainedConfig, shapes: WeightShapes, adapted: Collection[str], longest: int,
    bytes_per_weight: int, copies: float,
) -> Activations:
    """adapted: names in `shapes` of the matrices that have an adapter; none where all parameters train. longest: tokens
    of the longest row, whose square matters to eager attention alone. copies: of each token's key and value, on
    average, where completions share their prompt."""
    text = model_config.get_text_config()  # of a multimodal model, the language model's
    hidden, layers = text.hidden_size, text.num_hidden_layers
    width = getattr(text, "intermediate_size", None) or 4 * hidden
    one_layer = _layer(config, model_config, shapes, longest, bytes_per_weight, copies)
    inputs = (
        _adapter_inputs(config, shapes, adapted, bytes_per_weight) if config.lora.enabled
        else layers * bytes_per_weight * ((2 if bytes_per_weight == 4 else 5) * hidden + width))
    # The last norm's input, and a gradient of each log-probability; trained, the norm keeps its result too, and the
    # output layer its own input.
    ends = 4 * hidden + (bytes_per_weight if config.lora.enabled else 4 + bytes_per_weight) * hidden
    # Of the product, of its two factors, and of the residual stream; PEFT's own forward casts one of them.
    gradients = bytes_per_weight * (2 * width + hidden)
    if config.lora.enabled and config.lora.dropout:
        gradients += 4 * width
    if config.model.gradient_checkpointing != "off":
        kept = (bytes_per_weight if config.lora.enabled else 4) * hidden  # of a layer, its input
        again = one_layer + inputs // layers
        if config.model.gradient_checkpointing == "selective":
            kept += _products(config, model_config, shapes, adapted, bytes_per_weight)
            again -= bytes_per_weight * 2 * width  # the two factors, which are there
        return Activations(layers * kept + ends, again + gradients)
    return Activations(layers * one_layer + inputs + ends, gradients)


def _layer(
    config: RunConfig, model_config: PretrainedConfig, shapes: WeightShapes, longest: int, bytes_per_weight: int,
    copies: float,
) -> int:
    """Of one layer, without the inputs of its linear layers."""
    text = model_config.get_text_config()
    hidden, heads = text.hidden_size, text.num_attention_heads
    width = getattr(text, "intermediate_size", None) or 4 * hidden
    head_width = getattr(text, "head_dim", None) or hidden // heads
    queries, keys = heads * head_width, (getattr(text, "num_key_value_heads", None) or heads) * head_width
    normalised = 2 * hidden + (queries + keys if any(".q_norm." in name for name in shapes) else 0)
    # A trained norm keeps its result before the weight, too.
    norms = 4 * normalised * (1 if config.lora.enabled else 2)
    attention = bytes_per_weight * (2 * queries + 2 * keys)
    if config.model.attention == "auto":
        attention = int(bytes_per_weight * (3 * queries + 2 * keys * copies))
    if config.model.attention == "eager":  # the softmax of each head, and keys and values repeated for it
        repeated = 2 * queries if keys < queries else 0
        attention += heads * longest * (4 + bytes_per_weight % 4) + bytes_per_weight * repeated
    return norms + attention + bytes_per_weight * 3 * width


def _products(
    config: RunConfig, model_config: PretrainedConfig, shapes: WeightShapes, adapted: Collection[str],
    bytes_per_weight: int,
) -> int:
    """Of one layer, the results of its linear layers, of its adapters' and of attention."""
    text = model_config.get_text_config()
    own = [name for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name]
    widths = sum(shapes[name][0] for name in own)
    is_kept = config.model.attention != "eager"  # whose scores, and with them its result, are computed again
    attention = sum(shapes[name][1] for name in own if ".o_proj." in name) * is_kept
    # PEFT's own forward keeps a second result beside each layer's, in float32.
    reduced = config.lora.rank * len(adapted) if config.lora.enabled else 0
    beside = 4 * sum(shapes[name][0] for name in adapted) if config.lora.dropout else 0
    return (bytes_per_weight * (widths + attention + reduced) + beside) // text.num_hidden_layers


def _adapter_inputs(
    config: RunConfig, shapes: WeightShapes, adapted: Collection[str], bytes_per_weight: int
) -> int:
    """Of all layers: what the adapters read, and that times A."""
    reduced = config.lora.rank * len(adapted)
    if config.lora.dropout:
        mask = 4  # on a GPU 1
        return 4 * reduced + (4 + mask) * sum(shapes[name][1] for name in adapted)
    # Neighbours read one tensor; what attention gives is kept by attention already.
    shared = {(name.rsplit(".", 2)[0], shapes[name][1]) for name in adapted if ".o_proj." not in name}
    return bytes_per_weight * (reduced + sum(width for _, width in shared))
