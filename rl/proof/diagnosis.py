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
from rl.policy.logprob_calculator import LogprobCalculator, unbatched_logprobs
from rl.policy.policy import Policy
from rl.proof.distances import Distances, Judgement, distances
from rl.records import PromptCompletion

Cause = Literal["trainer", "sampling", "base", "other", "lost"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """pairs: the completions in question, none where the rank has no share. sampler_T: the log-probabilities that the
    sampler gave with their tokens, one completion after the other, at `temperature`."""

    pairs: list[PromptCompletion]
    sampler_T: Tensor
    temperature: float


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
    policy: Policy, generator: Generator, evidence: Evidence, found: Distances, by: Judgement, *, max_tokens: int
) -> Diagnosis:
    """found: the distances of what the evidence holds. max_tokens: of one forward pass. Local to the rank; changes
    neither weights nor random numbers."""
    trainer_T, base_T = trainer_logprobs(policy, evidence.pairs, temperature=1.0, max_tokens=max_tokens)
    plain_T = torch.cat(_plain_logprobs(policy, evidence.pairs))
    own = _mean_difference(trainer_T, plain_T)
    tolerance = min(by.bound, CHECK_TOLERANCE[policy.dtype])
    try:
        fresh_T = fresh_logprobs(generator, evidence.pairs)
    except GeneratorError as error:
        return Diagnosis("trainer" if own > tolerance else "lost", None, own, error=str(error))
    fresh, from_plain = distances(fresh_T, trainer_T, base_T), _mean_difference(fresh_T, plain_T)
    # Both may be wrong; the trainer's is named where it explains at least half of what the two differ by.
    if not own <= max(tolerance, fresh.agreement / 2):
        return Diagnosis("trainer", fresh, own, from_plain)
    verdict = fresh.verdict(by)
    if verdict == "open" and found.is_on_base_side and fresh.num_nearer_base > fresh.num_nearer_policy:
        verdict = "base"  # what was recorded is known to be the base's: the fresh ones need not prove it once more
    if verdict in ("base", "other"):
        return Diagnosis("base" if verdict == "base" else "other", fresh, own, from_plain)
    is_raw = evidence.temperature != 1.0 and _mean_difference(evidence.sampler_T, trainer_T) <= by.bound
    return Diagnosis("sampling", fresh, own, from_plain, at_temperature_1=is_raw)


def fresh_logprobs(generator: Generator, pairs: Sequence[PromptCompletion]) -> Tensor:
    """[T] the sampler's log-probabilities at temperature 1, computed afresh, one completion after the other."""
    return torch.tensor([value for logprobs in generator.logprobs(pairs) for value in logprobs])


def trainer_logprobs(
    policy: Policy, pairs: Sequence[PromptCompletion], *, temperature: float, max_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """[T] each, one completion after the other: the trainer's log-probabilities, and those of the policy's base, None
    where there is none to compare with."""
    calculator = LogprobCalculator(policy, PolicyForward(policy, temperature=temperature), max_tokens=max_tokens)
    trainer_T = torch.cat([found.logprobs_N for found in calculator.logprobs(pairs)])
    return trainer_T, torch.cat(calculator.reference_logprobs(pairs)) if policy.has_reference else None


@torch.no_grad()
def _plain_logprobs(policy: Policy, pairs: Sequence[PromptCompletion]) -> list[Tensor]:
    """[T] per completion at temperature 1, on the CPU, by as little of our own code as there can be."""
    model, device = policy.causal_lm, next(policy.model.parameters()).device
    attention, was_training = model.config._attn_implementation, policy.model.training
    in_half = policy.dtype != torch.float32 and not policy.is_adapter
    policy.model.eval()
    model.set_attn_implementation("eager")
    try:
        with unfused(policy.model), torch.autocast(device.type, dtype=policy.dtype, enabled=in_half):
            return [unbatched_logprobs(model, pair).cpu() for pair in pairs]
    finally:
        model.set_attn_implementation(attention)
        policy.model.train(was_training)


def _mean_difference(one_T: Tensor, other_T: Tensor) -> float:
    return (one_T.double() - other_T.double()).abs().mean().item()
