"""Whether a model reads completions that share their prompt (rl/policy/shared_prompts.py) rightly, tried on the model.

Architectures differ in what their attention is told. What is not known to be right is trained in padded rows.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from rl.policy.rows import Layout, hidden_states, model_rows
from rl.policy.shared_prompts import NAME, SharedPrompts

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of the mean difference of the hidden states by their mean size. A completion that misses its prompt, or sees another,
differs by about 1."""
TRIED = (((3, 5, 7, 4, 6), (8, 9, 3, 5)), ((3, 5, 7, 4, 6), (4, 4)), ((6, 4), (7, 3, 9)))
"""Two prompts, three completions: any small token ids."""


def layout_of(model: PreTrainedModel) -> Layout:
    """In which layout the model is to read its rows."""
    return "shared" if model.config._attn_implementation == NAME else "padded"


def share_prompts(model: PreTrainedModel) -> str | None:
    """Let the model read the shared layout, if it reads it as it reads padded rows; else leave it as it is, and return
    why."""
    if model.config._attn_implementation != "sdpa":
        return f"its attention is {model.config._attn_implementation}"
    was_training = model.training
    model.eval()
    model.set_attn_implementation(NAME)
    try:
        reason = _difference(model)
    # Whatever an architecture of any author raises where it is given what it does not know.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    model.train(was_training)
    if reason is not None:
        model.set_attn_implementation("sdpa")
    return reason


@torch.no_grad()
def _difference(model: PreTrainedModel) -> str | None:
    device = next(model.parameters()).device
    shared, padded = (model_rows(TRIED, layout, pad_token_id=3).to(device) for layout in ("shared", "padded"))
    found, expected = hidden_states(model, shared).float(), hidden_states(model, padded).float()
    assert shared.shared_prompts is not None
    if reason := _unknown_layers(model, shared.shared_prompts):
        return reason
    relative = float((found - expected).abs().mean() / expected.abs().mean())
    bound = TOLERANCE.get(model.dtype, 0.1)
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
