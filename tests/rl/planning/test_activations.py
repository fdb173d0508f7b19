"""What the estimate says that autograd keeps, against the tensors that it really keeps in the forward pass."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext
from transformers import AutoConfig

from rl.config import RunConfig
from rl.memory.estimate import estimate_memory, longest_groups
from rl.paths import resolve_path
from rl.planning.activations import activations_per_token
from rl.planning.shapes import weight_shapes
from rl.policy import recomputation
from tests.reference.tiny_run import make_updater, tiny_config, tiny_policy

PROMPT = 40
COMPLETION = 216
# Nine completions after one prompt; and eight padded rows. The last token is not read.
SHARED, PADDED = PROMPT + 9 * (COMPLETION - 1), 8 * (PROMPT + COMPLETION - 1)


class Kept:
    """A tensor for as long as autograd keeps it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def kept_bytes(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of all tensors that the forward pass of the longest micro-batch saves, but the model's own weights."""
    policy = tiny_policy(config)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()
    results: dict[int, int] = {}  # of operators, which selective recomputation keeps
    decide = recomputation._policy

    def note(context: SelectiveCheckpointContext, *arguments: Any, **options: Any) -> CheckpointPolicy:
        decision = decide(context, *arguments, **options)
        if decision == CheckpointPolicy.MUST_SAVE:
            outputs = context.op_output if isinstance(context.op_output, tuple) else (context.op_output,)
            tensors = [output for output in outputs if isinstance(output, torch.Tensor)]
            results.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors})
        return decision

    monkeypatch.setattr(recomputation, "_policy", note)

    def keep(tensor: torch.Tensor) -> Kept:
        held = Kept(tensor)
        kept.add(held)
        return held

    updater = make_updater(config, policy)
    batches = list(updater.micro_batches_of(longest_groups(config, PROMPT)))
    batch = max(batches, key=lambda batch: batch.rows.token_ids_BL.numel())
    assert batch.rows.token_ids_BL.numel() == config.optim.micro_batch_tokens
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held.tensor):
        result = updater._logprobs(batch, updater._forward)
    assert result.logprobs_N.requires_grad
    storages = results | {
        held.tensor.untyped_storage().data_ptr(): held.tensor.untyped_storage().nbytes() for held in kept}
    return sum(size for address, size in storages.items() if address not in own)


@pytest.mark.parametrize(
    "overrides",
    [
        (), ("model.dtype=bfloat16",), ("model.dtype=bfloat16", "lora.dropout=0.1"),
        ("model.dtype=bfloat16", "lora.targets=[q_proj,down_proj]"), ("model.gradient_checkpointing=full",),
        ("model.dtype=bfloat16", "model.gradient_checkpointing=full"), ("model.gradient_checkpointing=selective",),
        ("model.dtype=bfloat16", "model.gradient_checkpointing=selective"),
        ("model.gradient_checkpointing=selective", "lora.dropout=0.1"),
        ("model.gradient_checkpointing=selective", "model.attention=eager"),
        ("model.gradient_checkpointing=selective", "lora.enabled=false"), ("lora.enabled=false",),
        ("lora.enabled=false", "model.dtype=bfloat16"), ("lora.targets=[q_proj,v_proj]",), ("lora.dropout=0.1",),
        ("model.attention=eager",), ("model.attention=sdpa",),
    ],
    ids=" ".join,
)
def test_the_estimate_counts_what_autograd_keeps(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = PADDED if "attention" in " ".join(overrides) else SHARED
    config = tiny_config(
        f"sampling.max_completion_tokens={COMPLETION}", f"optim.micro_batch_tokens={tokens}", "lora.rank=16",
        *overrides)
    bytes_per_weight = 2 if config.model.dtype == "bfloat16" else 4
    model_config = AutoConfig.from_pretrained(resolve_path("models/tiny-arith"))
    shapes = weight_shapes(config.model, model_config)
    found = estimate_memory(config, model_config, PROMPT, bytes_per_weight=bytes_per_weight, on_gpu=False)
    targets = ("proj",) if config.lora.targets == "all-linear" else tuple(config.lora.targets)
    adapted = [name for name in shapes if any(target in name for target in targets)]
    copies = 1 + 9 * PROMPT / SHARED
    per_token = activations_per_token(config, model_config, shapes, adapted, 256, bytes_per_weight, copies)
    hidden_gradients = max(0, tokens * per_token.gradients - found.logits)  # of the backward pass, which saves nothing
    one_logits = 0.0 if config.lora.enabled else found.logits / 4  # what of the four the forward pass keeps
    assert found.activations - hidden_gradients + one_logits == pytest.approx(
        kept_bytes(config, monkeypatch), rel=0.05)
