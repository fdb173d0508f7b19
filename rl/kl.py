"""Kullback-Leibler divergences between a policy and another distribution over the same vocabulary: estimated and exact.

The estimators (k1, k2, k3 of J. Schulman, "Approximating KL divergence", 2020) read two log-probabilities of one token
that the policy pi sampled, and estimate the reverse KL(pi || other) = sum_v pi(v) (ln pi(v) - ln other(v)). The exact
forms read the logits of both at one position. Everything is in nats. To add a divergence: its function here, and its
name in rl/supervised/config.py.

Shape legend: T sampled tokens, N positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """ln pi - ln other: unbiased for KL(pi || other), of either sign. Its negative is the advantage of on-policy
    distillation."""
    return logprobs_T - other_logprobs_T


def k2(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """(ln pi - ln other)^2 / 2: biased, never negative, of low variance. As a loss its expected gradient is that of
    KL(pi || other)."""
    return 0.5 * (logprobs_T - other_logprobs_T).square()


def k3(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ln other - ln pi: unbiased for KL(pi || other), never negative.

    As expm1(d) - d, because exp(d) - 1 loses all digits where the two nearly agree, which is where training starts.
    """
    difference_T = other_logprobs_T - logprobs_T
    return torch.expm1(difference_T) - difference_T


def reverse_kl(logits_NV: Tensor, other_logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(pi || other) with pi = softmax(logits / temperature), other likewise: [N, V] twice -> [N], exact,
    differentiable in both.

    Seeks modes: it costs the policy what the other finds unlikely (MiniLLM, arXiv:2306.08543; GKD, arXiv:2306.13649).
    Raises: ValueError for a temperature that is not above 0 or for shapes that differ; logits must be finite."""
    return _expected_difference(*_log_softmax(logits_NV, other_logits_NV, temperature))


def forward_kl(logits_NV: Tensor, other_logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(other || pi) with pi = softmax(logits / temperature), other likewise: [N, V] twice -> [N], exact,
    differentiable in both; the classical distillation loss (arXiv:1503.02531) without its factor.

    Covers: it costs the policy what it finds unlikely and the other does not.
    Raises: ValueError for a temperature that is not above 0 or for shapes that differ; logits must be finite."""
    log_pi_NV, log_other_NV = _log_softmax(logits_NV, other_logits_NV, temperature)
    return _expected_difference(log_other_NV, log_pi_NV)


def _log_softmax(logits_NV: Tensor, other_logits_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a distribution needs one above 0")
    if logits_NV.shape != other_logits_NV.shape:
        raise ValueError(
            f"logits of shapes {tuple(logits_NV.shape)} and {tuple(other_logits_NV.shape)}; a divergence needs one "
            "vocabulary")
    return torch.log_softmax(logits_NV / temperature, dim=-1), torch.log_softmax(other_logits_NV / temperature, dim=-1)


def _expected_difference(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """sum_v p(v) (ln p(v) - ln q(v))."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(dim=-1)
