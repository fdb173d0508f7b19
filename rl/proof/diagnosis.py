"""A sampler and a trainer that disagree -> which side is wrong.

Three paths to the same tokens' log-probabilities at temperature 1 decide it: the sampler's own, computed afresh without
its cache (Generator.logprobs), the trainer's (rl/policy/forward.py), and the plain one: each completion alone through
the model's own forward, with PEFT's own LoRA layers and attention without kernels. To add a cause: a branch in
`find_cause`, its words in rl/proof/diagnosis_text.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl.errors import GeneratorError
from rl.generate.protocol import Generator
from rl.policy.forward import CHECK_TOLERANCE, PolicyForward
from rl.policy.fused_lora import unfused
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.policy import Policy
from rl.proof.distances import Distances, distances
from rl.records import PromptCompletion

Cause = Literal["trainer", "sampling", "base", "other", "lost"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """cause: trainer: its two paths disagree. sampling: the sampler has the policy's weights now, but what it sampled
    has other log-probabilities. base: it has the base's weights. other: neither. lost: it cannot be asked.

    fresh: of the sampler's fresh log-probabilities; None where it is lost. own: mean |trainer's path - plain path|.
    fresh_from_plain: mean |sampler's fresh ones - plain path|. at_temperature_1: the recorded log-probabilities are
    those of temperature 1, where another one is configured. error: why the sampler could not be asked."""

    cause: Cause
    fresh: Distances | None
    own: float
    fresh_from_plain: float | None = None
    at_temperature_1: bool = False
    error: str = ""


def find_cause(
    policy: Policy,
    generator: Generator,
    rows: Sequence[PromptCompletion],
    recorded_T: Tensor,
    found: Distances,
    *,
    temperature: float,
    bound: float,
    max_tokens: int,
) -> Diagnosis:
    """rows: the completions in question; recorded_T: the log-probabilities that the sampler gave with them, one row
    after the other, at `temperature`; found: their distances. Local to the rank; changes neither weights nor random
    numbers."""
    calculator = LogprobCalculator(policy, PolicyForward(policy, temperature=1.0), max_tokens=max_tokens)
    trainer_T = torch.cat([scored.logprobs_N for scored in calculator.logprobs(rows)])
    base_T = torch.cat(calculator.reference_logprobs(rows)) if policy.has_reference else None
    plain_T = torch.cat(plain_logprobs(policy, rows))
    own = _mean_difference(trainer_T, plain_T)
    tolerance = min(bound, CHECK_TOLERANCE[policy.dtype])
    try:
        fresh_T = torch.tensor([value for scored in generator.logprobs(rows) for value in scored])
    except GeneratorError as error:
        return Diagnosis("trainer" if own > tolerance else "lost", None, own, error=str(error))
    fresh, from_plain = distances(fresh_T, trainer_T, base_T), _mean_difference(fresh_T, plain_T)
    # Both may be wrong; the trainer's is named where it explains at least half of what the two differ by.
    if not own <= max(tolerance, fresh.agreement / 2):
        return Diagnosis("trainer", fresh, own, from_plain)
    verdict = fresh.verdict(bound)
    if verdict == "open" and found.is_on_base_side and fresh.share is not None and fresh.share < 0.5:
        verdict = "base"  # what was recorded is known to be the base's: the fresh ones need not prove it once more
    if verdict in ("base", "other"):
        return Diagnosis("base" if verdict == "base" else "other", fresh, own, from_plain)
    is_raw = temperature != 1.0 and _mean_difference(recorded_T, trainer_T) <= bound
    return Diagnosis("sampling", fresh, own, from_plain, at_temperature_1=is_raw)


@torch.no_grad()
def plain_logprobs(policy: Policy, rows: Sequence[PromptCompletion]) -> list[Tensor]:
    """[T] per row at temperature 1, on the CPU, by as little of our own code as there can be."""
    model, device = policy.causal_lm, next(policy.model.parameters()).device
    attention, was_training = model.config._attn_implementation, policy.model.training
    found = []
    policy.model.eval()
    model.set_attn_implementation("eager")
    try:
        with unfused(policy.model), torch.autocast(
            device.type, dtype=policy.dtype, enabled=policy.dtype != torch.float32 and not policy.is_adapter
        ):
            for prompt, completion in rows:
                ids = torch.tensor([[*prompt, *completion]], device=device)
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1).logits[0, :-1]
                logprobs = torch.log_softmax(logits.float(), dim=-1).gather(1, ids[0, -len(completion):, None])
                found.append(logprobs.squeeze(1).cpu())
    finally:
        model.set_attn_implementation(attention)
        policy.model.train(was_training)
    return found


def _mean_difference(one_T: Tensor, other_T: Tensor) -> float:
    return (one_T.double() - other_T.double()).abs().mean().item()
