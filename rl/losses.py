"""Token log-probabilities and advantages of one micro-batch -> its share of the loss, and sums for the metrics.

One pure function per objective, collected in LOSSES; each returns the per-token objective, which is MAXIMISED.
`policy_loss`
turns it into the loss: - sum_t weight_t * (correction_t * objective_t - kl_weight * KL_t) - entropy_bonus * mean
entropy. The weights carry the aggregation, and their denominators are global (all micro-batches, accumulation steps and
ranks of one optimiser update), so losses and gradients of micro-batches simply add. Ranks add too: where gradients are
averaged over ranks, as DDP does, multiply the loss by the number of ranks. To add an objective: write its function
here, add it to LOSSES and to the names in rl/config.py.

Shape legend: T completion tokens of all sequences of the micro-batch one after the other; B sequences; K statistics.
`sequence_ids_T` is the index in [0, B) of each token's sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rl.kl import k3

Aggregation = Literal["token", "sequence", "constant"]
CorrectionMode = Literal["none", "truncate", "mask_token", "mask_sequence"]

# What LossOutput.sums_K holds, each a sum over tokens: adding over micro-batches and ranks is one tensor addition.
STATISTICS = ("num_tokens", "ratio", "clip_low", "clip_high", "kl", "entropy", "mismatch", "corrected", "kept")


@dataclass(frozen=True, slots=True)
class Objective:
    """objective_T: to be maximised, with gradient. ratio_T: the importance ratio used, detached. is_clipped_low_T,
    is_clipped_high_T: True where the clip took the policy gradient away (clip, gspo) or bounded its weight (cispo)."""

    objective_T: Tensor
    ratio_T: Tensor
    is_clipped_low_T: Tensor
    is_clipped_high_T: Tensor


class ObjectiveFunction(Protocol):

    def __call__(
        self,
        *,
        logprobs_T: Tensor,
        old_logprobs_T: Tensor,
        advantages_T: Tensor,
        sequence_ids_T: Tensor,
        num_sequences: int,
        clip_low: float,
        clip_high: float,
    ) -> Objective: ...


@dataclass(frozen=True, slots=True)
class Correction:
    """weights_T: the detached factor of each token's objective. is_corrected_T: True where it was truncated or
    masked."""

    weights_T: Tensor
    is_corrected_T: Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """loss: scalar with gradient, this micro-batch's part of the whole. sums_K: [K] float32, detached, named by
    STATISTICS."""

    loss: Tensor
    sums_K: Tensor


def token_weights(
    sequence_lengths: Sequence[int], aggregation: Aggregation, *, num_loss_tokens: int, num_sequences: int,
    max_completion_tokens: int,
) -> Tensor:
    """The factor of each token in the loss; over everything that one optimiser update sees, loss = sum_t weight_t *
    loss_t.

    token: 1 / num_loss_tokens (DAPO, arXiv:2503.14476). sequence: 1 / (T_i * num_sequences) (GRPO, arXiv:2402.03300).
    constant: 1 / (num_sequences * max_completion_tokens) (Dr. GRPO, arXiv:2503.20783).

    Args:
        sequence_lengths: T_i, completion tokens of each sequence of the micro-batch.
        num_loss_tokens, num_sequences: of the whole update, over all micro-batches and ranks, sequences counted but not
            computed (all advantages zero) included. max_completion_tokens: the sampler's limit.
    Returns: [T] float32, sequence after sequence.
    Raises: ValueError for an unknown aggregation.
    """
    assert num_sequences >= len(sequence_lengths) and num_loss_tokens >= sum(sequence_lengths)
    lengths_B = torch.tensor(list(sequence_lengths), dtype=torch.long)
    # In float64: 1 / (T_i * num_sequences) rounds once, the same on every split.
    if aggregation == "token":
        weights_B = torch.full(lengths_B.shape, 1.0 / max(1, num_loss_tokens), dtype=torch.float64)
    elif aggregation == "sequence":
        weights_B = 1.0 / (lengths_B.double() * num_sequences)
    elif aggregation == "constant":
        weights_B = torch.full(
            lengths_B.shape, 1.0 / (max(1, num_sequences) * max_completion_tokens), dtype=torch.float64)
    else:
        raise ValueError(f"loss.aggregation is {aggregation!r}; known are token, sequence, constant")
    return weights_B.repeat_interleave(lengths_B).float()


def sequence_means(values_T: Tensor, sequence_ids_T: Tensor, num_sequences: int) -> Tensor:
    """The mean over each sequence's tokens, given to each of its tokens: [T] -> [T], differentiable."""
    sums_B = values_T.new_zeros(num_sequences).index_add(0, sequence_ids_T, values_T)
    counts_B = values_T.new_zeros(num_sequences).index_add(0, sequence_ids_T, torch.ones_like(values_T))
    return (sums_B / counts_B.clamp(min=1.0))[sequence_ids_T]


def clip(
    *, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, sequence_ids_T: Tensor, num_sequences: int,
    clip_low: float, clip_high: float,
) -> Objective:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi / pi_old per token (PPO, arXiv:1707.06347).

    clip_high > clip_low is DAPO's clip-higher (arXiv:2503.14476).
    """
    return _clipped(torch.exp(logprobs_T - old_logprobs_T), advantages_T, clip_low, clip_high)


def gspo(
    *, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, sequence_ids_T: Tensor, num_sequences: int,
    clip_low: float, clip_high: float,
) -> Objective:
    """clip with the sequence's ratio s = exp(mean_t ln rho_t) in the place of each token's (GSPO, arXiv:2507.18071).

    In the form of its section 4.3, GSPO-token: sg(s) pi_t / sg(pi_t), whose value is s and whose gradient is that of
    its own token, such that advantages may differ from token to token, as a teacher's do. Where advantage and weight
    are equal over a sequence, value and gradient are those of s itself; with aggregation `sequence` that is the paper's
    objective. A token that a mask takes out (loss.top_entropy_share, loss.correction) gets no gradient from the others.
    Its bounds are far smaller than PPO's (3e-4 and 4e-4).
    """
    ratio_T = torch.exp(sequence_means(logprobs_T - old_logprobs_T, sequence_ids_T, num_sequences)).detach()
    ratio_T = ratio_T * torch.exp(logprobs_T - logprobs_T.detach())
    return _clipped(ratio_T, advantages_T, clip_low, clip_high)


def cispo(
    *, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, sequence_ids_T: Tensor, num_sequences: int,
    clip_low: float, clip_high: float,
) -> Objective:
    """sg(min(rho, 1 + clip_high)) A ln pi: the weight is bounded, but no token loses its gradient (CISPO,
    arXiv:2506.13585).

    Without a lower bound, as in the paper's experiments: clip_low is not read.
    """
    ratio_T = torch.exp(logprobs_T.detach() - old_logprobs_T)
    return Objective(
        ratio_T.clamp(max=1.0 + clip_high) * advantages_T * logprobs_T, ratio_T,
        is_clipped_low_T=torch.zeros_like(ratio_T, dtype=torch.bool),
        is_clipped_high_T=(ratio_T > 1.0 + clip_high) & (advantages_T != 0),
    )


def _clipped(ratio_T: Tensor, advantages_T: Tensor, clip_low: float, clip_high: float) -> Objective:
    objective_T = torch.minimum(ratio_T * advantages_T, ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_T)
    ratio_T = ratio_T.detach()
    return Objective(
        objective_T, ratio_T,
        is_clipped_low_T=(ratio_T < 1.0 - clip_low) & (advantages_T < 0),
        is_clipped_high_T=(ratio_T > 1.0 + clip_high) & (advantages_T > 0),
    )


LOSSES: dict[str, ObjectiveFunction] = {"clip": clip, "cispo": cispo, "gspo": gspo}


def entropy_threshold(entropies: Tensor, share: float) -> float:
    """The entropy that ceil(share * N) of N tokens reach: tokens at or above it are the top share (arXiv:2506.01939).

    Args: entropies: of all tokens of the update, over all micro-batches and ranks, any shape. share: in (0, 1].
    Returns: nats; -inf for share 1 or no tokens. Ties at the threshold are all kept.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"loss.top_entropy_share is {share}; it must lie in (0, 1]")
    if share == 1.0 or entropies.numel() == 0:
        return -math.inf
    # The small term keeps rounding (0.7 * 10 = 7.000000000000001) from adding a token.
    num_kept = max(1, math.ceil(share * entropies.numel() - 1e-9))
    return float(entropies.detach().flatten().float().topk(num_kept, sorted=True).values[-1])


def sampler_correction(
    mode: CorrectionMode,
    *,
    old_logprobs_T: Tensor,
    sampler_logprobs_T: Tensor,
    sequence_ids_T: Tensor,
    num_sequences: int,
    cap: float,
    low: float,
    high: float,
) -> Correction:
    """The weight that makes samples of the sampler's numerics count as samples of pi_old; s_t = exp(ln pi_old - ln
    pi_sampler).

    none: 1. truncate: min(s_t, cap) (truncated importance sampling). mask_token: s_t inside [low, high], 0 outside.
    mask_sequence: g inside [low, high], 0 outside, with g the geometric mean of the sequence's s_t; so every weight is
    bounded by what was tested. Masked tokens stay in the loss's denominator.

    Returns: weights and what was truncated or masked, [T] each, detached.
    Raises: ValueError for an unknown mode.
    """
    log_ratio_T = (old_logprobs_T - sampler_logprobs_T).detach()
    if mode == "none":
        return Correction(torch.ones_like(log_ratio_T), torch.zeros_like(log_ratio_T, dtype=torch.bool))
    if mode == "truncate":
        weights_T = log_ratio_T.exp()
        return Correction(weights_T.clamp(max=cap), weights_T > cap)
    if mode not in ("mask_token", "mask_sequence"):
        raise ValueError(f"loss.correction.mode is {mode!r}; known are none, truncate, mask_token, mask_sequence")
    if mode == "mask_sequence":
        log_ratio_T = sequence_means(log_ratio_T, sequence_ids_T, num_sequences)
    weights_T = log_ratio_T.exp()
    is_outside_T = (weights_T < low) | (weights_T > high)
    return Correction(weights_T.masked_fill(is_outside_T, 0.0), is_outside_T)


def policy_loss(
    name: str, *, logprobs_T: Tensor, old_logprobs_T: Tensor, sampler_logprobs_T: Tensor, advantages_T: Tensor,
    entropies_T: Tensor, weights_T: Tensor, sequence_ids_T: Tensor, num_sequences: int, num_loss_tokens: int,
    clip_low: float = 0.2, clip_high: float = 0.2, ref_logprobs_T: Tensor | None = None, kl_weight: float = 0.0,
    entropy_bonus: float = 0.0, min_entropy: float = -math.inf, correction_mode: CorrectionMode = "none",
    correction_cap: float = 2.0, correction_low: float = 0.5, correction_high: float = 2.0,
) -> LossOutput:
    """- sum_t w_t (s_t m_t J_t - kl_weight KL_t) - entropy_bonus / num_loss_tokens * sum_t H_t: one micro-batch's part
    of the loss.

    J is the objective `name`, w the aggregation's weights, s the sampler's correction, m_t = 1 where the entropy is at
    least `min_entropy`. The mask acts on the policy gradient alone and leaves the denominator as it is (as in
    arXiv:2506.01939): KL penalty and entropy bonus keep acting on all tokens. The bonus is the mean token entropy under
    every aggregation.

    Args (all [T], one micro-batch):
        logprobs_T: with gradient. old_logprobs_T: of the policy before the update; `logprobs_T.detach()` at the first
        update.
        sampler_logprobs_T: as recorded at sampling. advantages_T: per token. entropies_T: with gradient only for the
        bonus.
        weights_T: from token_weights. ref_logprobs_T: of the reference; None only with kl_weight 0.
        num_sequences: B of this micro-batch. num_loss_tokens: of the whole update.
    Returns: loss and statistics; see LossOutput.
    Raises: ValueError for an unknown name, or a KL weight without reference log-probabilities.
    """
    if name not in LOSSES:
        raise ValueError(f"loss.name is {name!r}; known are {', '.join(LOSSES)}")
    if kl_weight != 0.0 and ref_logprobs_T is None:
        raise ValueError(
            f"loss.kl_weight is {kl_weight}, but no reference log-probabilities were given: compute them or set 0")
    old_logprobs_T = old_logprobs_T.detach()
    result = LOSSES[name](
        logprobs_T=logprobs_T, old_logprobs_T=old_logprobs_T, advantages_T=advantages_T, sequence_ids_T=sequence_ids_T,
        num_sequences=num_sequences, clip_low=clip_low, clip_high=clip_high,
    )
    correction = sampler_correction(
        correction_mode,
        old_logprobs_T=old_logprobs_T,
        sampler_logprobs_T=sampler_logprobs_T,
        sequence_ids_T=sequence_ids_T,
        num_sequences=num_sequences,
        cap=correction_cap,
        low=correction_low,
        high=correction_high,
    )
    is_kept_T = entropies_T.detach() >= min_entropy
    per_token_T = correction.weights_T * is_kept_T * result.objective_T
    kl_T = torch.zeros_like(logprobs_T) if ref_logprobs_T is None else k3(logprobs_T, ref_logprobs_T.detach())
    if kl_weight != 0.0:
        per_token_T = per_token_T - kl_weight * kl_T
    loss = -(weights_T * per_token_T).sum()
    if entropy_bonus != 0.0:
        loss = loss - entropy_bonus / max(1, num_loss_tokens) * entropies_T.sum()
    mismatch_T = (old_logprobs_T - sampler_logprobs_T).abs()
    columns = (
        torch.ones_like(logprobs_T),
        result.ratio_T,
        result.is_clipped_low_T,
        result.is_clipped_high_T,
        kl_T,
        entropies_T,
        mismatch_T,
        correction.is_corrected_T,
        is_kept_T,
    )
    return LossOutput(loss, torch.stack([column.detach().float() for column in columns]).sum(dim=1))


def mean_statistics(sums_K: Tensor) -> dict[str, float]:
    """Means per token by name (clip_low, clip_high, corrected and kept are shares), from sums added over micro-batches
    and ranks.

    `num_tokens` itself stays a count. No tokens: all zeros.
    """
    num_tokens, *sums = sums_K.double().tolist()
    means = {name: value / max(1.0, num_tokens) for name, value in zip(STATISTICS[1:], sums, strict=True)}
    return {"num_tokens": num_tokens, **means}
