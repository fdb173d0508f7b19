"""The whole loss as nested loops over sequences and tokens, one scalar at a time; autograd gives the reference
gradients.

Sequences are lists of scalar tensors here; nothing is flat, nothing is a weight, every mean is written out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_loss(
    *,
    name: str,
    aggregation: str,
    logprobs: list[Tensor],
    old_logprobs: list[Tensor],
    sampler_logprobs: list[Tensor],
    ref_logprobs: list[Tensor],
    entropies: list[Tensor],
    advantages: list[float],
    max_completion_tokens: int,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
    entropy_bonus: float,
    min_entropy: float,
    mode: str,
    cap: float,
    low: float,
    high: float,
) -> Tensor:
    """One scalar for the whole batch: sequences [num_sequences] of [T_i]."""
    num_sequences = len(logprobs)
    num_tokens = sum(len(sequence) for sequence in logprobs)
    total = torch.zeros(())
    entropy_total = torch.zeros(())
    for i in range(num_sequences):
        length = len(logprobs[i])
        log_ratio_sum = torch.zeros(())
        log_correction_sum = torch.zeros(())
        for t in range(length):
            log_ratio_sum = log_ratio_sum + logprobs[i][t] - old_logprobs[i][t]
            log_correction_sum = log_correction_sum + old_logprobs[i][t] - sampler_logprobs[i][t]
        sequence_total = torch.zeros(())
        for t in range(length):
            A = advantages[i]
            ratio = torch.exp(logprobs[i][t] - old_logprobs[i][t])
            if name == "gspo":
                # GSPO-token: the sequence's value, the token's own gradient.
                ratio = torch.exp(log_ratio_sum / length).detach() * torch.exp(logprobs[i][t] - logprobs[i][t].detach())
            if name == "cispo":
                objective = min(float(ratio.detach()), 1 + clip_high) * A * logprobs[i][t]
            else:
                clipped = min(max(float(ratio.detach()), 1 - clip_low), 1 + clip_high)
                # Where both are equal the unclipped one carries the gradient.
                objective = ratio * A if float(ratio.detach()) * A <= clipped * A else torch.tensor(clipped * A)
            s = float(torch.exp(old_logprobs[i][t] - sampler_logprobs[i][t]))
            if mode == "none":
                s = 1.0
            elif mode == "truncate":
                s = min(s, cap)
            elif mode == "mask_token":
                s = s if low <= s <= high else 0.0
            else:
                s = float(torch.exp(log_correction_sum / length))
                s = s if low <= s <= high else 0.0
            if float(entropies[i][t].detach()) < min_entropy:
                s = 0.0
            d = ref_logprobs[i][t] - logprobs[i][t]
            sequence_total = sequence_total + s * objective - kl_weight * (torch.exp(d) - d - 1)
            entropy_total = entropy_total + entropies[i][t]
        if aggregation == "sequence":
            sequence_total = sequence_total / length
        total = total + sequence_total
    denominator = {"token": num_tokens, "sequence": num_sequences, "constant": num_sequences * max_completion_tokens}[
        aggregation]
    return -total / denominator - entropy_bonus * entropy_total / num_tokens
