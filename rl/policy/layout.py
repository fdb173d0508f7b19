"""Whether a model reads completions that share their prompt (rl/policy/shared_prompts.py) rightly, tried on the model.

Architectures differ in what their attention is told. What is not known to be right is trained in padded rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.policy.rows import Layout, ModelRows, hidden_states, model_rows
from rl.policy.shared_prompts import NAME, SharedPrompts
from rl.records import PromptCompletion

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the mean difference of the hidden states by their mean size."""
LEAK = 1e-3
"""Likewise, of what must not change at all where another completion's tokens change."""
PROMPTS = ((3, 5, 7, 4, 6), (6, 4))
TRIED = ((PROMPTS[0], (8, 9, 3, 5)), (PROMPTS[0], (4, 4)), (PROMPTS[1], (7, 3, 9)))
CHANGED = ((PROMPTS[0], (4, 6, 7, 5)), *TRIED[1:])
"""Two prompts, three completions: any small token ids; and another first completion, of the same length."""


def layout_of(model: PreTrainedModel) -> Layout:
    """In which layout the model is to read its rows."""
    return "shared" if model.config._attn_implementation == NAME else "padded"


def share_prompts(model: PreTrainedModel, dtype: torch.dtype | None = None) -> str | None:
    """Let the model read the shared layout, if it reads it as it reads padded rows; else leave it as it is, and return
    why. dtype: in which it computes, by autocast where its weights have another; None: that of its weights."""
    if model.config._attn_implementation != "sdpa":
        return f"its attention is {model.config._attn_implementation}"
    was_training = model.training
    model.eval()
    try:
        reason = _difference(model, dtype or model.dtype)
    except torch.OutOfMemoryError:
        raise
    # Whatever an architecture of any author raises where it is given what it does not know.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'without a word').splitlines()[0]}"
    model.train(was_training)
    if reason is not None:
        use_padded_rows(model)
    return reason


def use_padded_rows(model: PreTrainedModel) -> None:
    """As if it had never been asked to share prompts."""
    model.set_attn_implementation("sdpa")


@torch.no_grad()
def _difference(model: PreTrainedModel, dtype: torch.dtype) -> str | None:
    device = next(model.parameters()).device

    def read(pairs: Sequence[PromptCompletion], layout: Layout) -> tuple[Tensor, ModelRows]:
        rows = model_rows(pairs, layout, pad_token_id=PROMPTS[0][0]).to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != model.dtype):
            return hidden_states(model, rows).float(), rows

    expected, _ = read(TRIED, "padded")
    model.set_attn_implementation(NAME)
    (found, rows), (changed, _) = read(TRIED, "shared"), read(CHANGED, "shared")
    assert rows.shared_prompts is not None
    if reason := _unknown_layers(model, rows.shared_prompts):
        return reason
    size, others = float(expected.abs().mean()), slice(len(TRIED[0][1]), None)
    leak = float((changed[others] - found[others]).abs().mean()) / size
    if not leak <= LEAK:
        return f"a completion would see another: its hidden states change by {leak:.2g}"
    relative, bound = float((found - expected).abs().mean()) / size, TOLERANCE.get(dtype, 0.1)
    return None if relative <= bound else f"its hidden states would differ by {relative:.2g} (at most {bound})"


def _unknown_layers(model: PreTrainedModel, shared: SharedPrompts) -> str | None:
    """Layers that mix tokens by other means, or whose window the attention was not told."""
    text = model.config.get_text_config()
    if len(shared.windows) != text.num_hidden_layers:
        return f"{len(shared.windows)} of its {text.num_hidden_layers} layers attend through transformers' interface"
    kinds = getattr(text, "layer_types", None) or (
        ["sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"] * text.num_hidden_layers)
    told = ["full_attention" if window is None else "sliding_attention" for window in shared.windows]
    return None if kinds == told else f"its layers are {', '.join(sorted(set(kinds)))}"
