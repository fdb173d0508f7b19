"""The whole loss as nested loops over sequences and tokens, one scalar at a time; autograd gives the reference
gradients.

Sequences are lists of scalar tensors here; nothing is flat, nothing is a weight, every mean is written out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.config import LossSection


@dataclass(frozen=True)
class Sequences:
    """Each field: one [T_i] tensor per sequence; advantages: a number for each."""

    logprobs: list[Tensor]
    old: list[Tensor]
    sampler: list[Tensor]
    ref: list[Tensor]
    entropies: list[Tensor]
    advantages: list[float]
    marks: list[list[bool]] | None = None  # where loss.covariance acts


def reference_loss(
    data: Sequences, settings: LossSection, *, max_completion_tokens: int, min_entropy: float
) -> Tensor:
    """One scalar for the whole batch: sequences [num_sequences] of [T_i]."""
    num_sequences, num_tokens = len(data.logprobs), sum(len(sequence) for sequence in data.logprobs)
    total = torch.zeros(())
    entropy_total = torch.zeros(())
    for i in range(num_sequences):
        length = len(data.logprobs[i])
        sequence_total = torch.zeros(())
        for t in range(length):
            s = 0.0 if float(data.entropies[i][t].detach()) < min_entropy else _correction(data, settings, i, t)
            d = data.ref[i][t] - data.logprobs[i][t]
            is_marked = data.marks is not None and data.marks[i][t]
            if is_marked and settings.covariance.mode == "clip":
                s = 0.0
            sequence_total = (
                sequence_total + s * _objective(data, settings, i, t) - settings.kl_weight * (torch.exp(d) - d - 1))
            if is_marked and settings.covariance.mode == "kl":
                moved = data.logprobs[i][t] - data.old[i][t]
                sequence_total = sequence_total - settings.covariance.weight * (moved if moved > 0 else -moved)
            entropy_total = entropy_total + data.entropies[i][t]
        if settings.aggregation == "sequence":
            sequence_total = sequence_total / length
        total = total + sequence_total
    denominator = {"token": num_tokens, "sequence": num_sequences, "constant": num_sequences * max_completion_tokens}[
        settings.aggregation]
    return -total / denominator - settings.entropy_bonus * entropy_total / num_tokens


def _objective(data: Sequences, settings: LossSection, i: int, t: int) -> Tensor:
    A, length = data.advantages[i], len(data.logprobs[i])
    ratio = torch.exp(data.logprobs[i][t] - data.old[i][t])
    if settings.name == "gspo":
        # GSPO-token: the sequence's value, the token's own gradient.
        log_ratio_sum = torch.zeros(())
        for u in range(length):
            log_ratio_sum = log_ratio_sum + data.logprobs[i][u] - data.old[i][u]
        own = torch.exp(data.logprobs[i][t] - data.logprobs[i][t].detach())
        ratio = torch.exp(log_ratio_sum / length).detach() * own
    if settings.name == "cispo":
        return min(float(ratio.detach()), 1 + settings.clip_high) * A * data.logprobs[i][t]
    clipped = min(max(float(ratio.detach()), 1 - settings.clip_low), 1 + settings.clip_high)
    # Where both are equal the unclipped one carries the gradient.
    return ratio * A if float(ratio.detach()) * A <= clipped * A else torch.tensor(clipped * A)


def _correction(data: Sequences, settings: LossSection, i: int, t: int) -> float:
    correction = settings.correction
    s = float(torch.exp(data.old[i][t] - data.sampler[i][t]))
    if correction.mode == "none":
        return 1.0
    if correction.mode == "truncate":
        return min(s, correction.cap)
    if correction.mode == "mask_sequence":
        length, log_correction_sum = len(data.logprobs[i]), torch.zeros(())
        for u in range(length):
            log_correction_sum = log_correction_sum + data.old[i][u] - data.sampler[i][u]
        s = float(torch.exp(log_correction_sum / length))
    return s if correction.low <= s <= correction.high else 0.0


def reference_covariances(logprobs: list[float], advantages: list[float]) -> list[float]:
    """Each token's part of Cov(A, ln pi) (arXiv:2505.22617, equation 10)."""
    mean_logprob, mean_advantage = sum(logprobs) / len(logprobs), sum(advantages) / len(advantages)
    return [(a - mean_advantage) * (p - mean_logprob) for p, a in zip(logprobs, advantages, strict=True)]
