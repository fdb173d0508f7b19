"""Literal token statistics and answer likelihoods: one full softmax in float64 per position, no batching, no cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rl.policy.policy import Policy


@torch.no_grad()
def literal_distributions(
    policy: Policy, context: Sequence[int], scored: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """[T, V] float64: the distribution that each of `scored` is drawn from, from one forward over one sequence."""
    was_training = policy.model.training
    policy.model.eval()
    logits_LV = policy.causal_lm(input_ids=torch.tensor([[*context, *scored]]), use_cache=False).logits[0].double()
    policy.model.train(was_training)
    return torch.softmax(logits_LV[len(context) - 1 : -1] / temperature, dim=-1)


def literal_statistics(
    policy: Policy, context: Sequence[int], scored: Sequence[int], temperature: float
) -> list[tuple[float, float]]:
    """(entropy, KL(uniform || pi)) of each position, by their definitions."""
    found = []
    for row in literal_distributions(policy, context, scored, temperature).tolist():
        uniform = 1.0 / len(row)
        found.append(
            (-math.fsum(p * math.log(p) for p in row if p > 0), math.fsum(uniform * math.log(uniform / p) for p in row))
        )
    return found


def literal_probabilities(
    policy: Policy, context: Sequence[int], scored: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """pi(token) of each of `scored`."""
    rows = literal_distributions(policy, context, scored, temperature)
    return [float(rows[t, token]) for t, token in enumerate(scored)]
