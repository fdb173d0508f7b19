"""Token log-probabilities and advantages of one micro-batch -> its share of the loss, and sums for the metrics.

One pure function per objective, collected in LOSSES; each returns the per-token objective, which is MAXIMISED.
`policy_loss` turns it into the loss: - sum_t weight_t * (correction_t * objective_t - kl_weight * KL_t) -
entropy_bonus * mean entropy. The weights carry the aggregation, and their denominators are global (all micro-batches,
accumulation steps and ranks of one optimiser update), so losses and gradients of micro-batches simply add. Ranks add
too: where gradients are averaged over ranks, as DDP does, multiply the loss by the number of ranks. To add an
objective: write its function here, add it to LOSSES and to the names in rl/config.py.

Shape legend: T completion tokens of all sequences of the micro-batch one after the other; B sequences; K statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl.config import CorrectionSection, CovarianceSection, LossSection
from rl.kl import k3

Aggregation = Literal["token", "sequence", "constant"]

# What LossOutput.sums_K holds, each a sum over tokens: adding over micro-batches and ranks is one tensor addition.
STATISTICS = ("num_tokens", "ratio", "clip_low", "clip_high", "kl", "entropy", "mismatch", "corrected", "kept")


@dataclass(frozen=True, slots=True)
class Denominators:
    """What the loss of one optimiser update is divided by, over all its micro-batches and ranks; sequences that are
    counted but not computed (all advantages zero) are in it.

    num_loss_tokens: completion tokens. num_sequences: completions. max_completion_tokens: the sampler's limit."""

    num_loss_tokens: int
    num_sequences: int
    max_completion_tokens: int


@dataclass(frozen=True, slots=True)
class LossTokens:
    """What the loss reads of a micro-batch, [T] each.

    logprobs_T: of the policy that trains, with gradient. old_logprobs_T: of the policy before the update, or of the
    version that sampled the token; `logprobs_T.detach()` where the first update trains what the present version
    sampled. sampler_logprobs_T: as recorded at sampling. advantages_T: per token. entropies_T: with gradient only for
    the bonus. weights_T: from token_weights. sequence_ids_T: index in [0, B) of each token's sequence; num_sequences: B
    of this micro-batch. num_loss_tokens: of the whole update. ref_logprobs_T: of the reference; None only with
    kl_weight 0. min_entropy: tokens below it get no policy gradient. is_marked_T: where loss.covariance acts, from
    covariance_marks; None: nowhere."""

    logprobs_T: Tensor
    old_logprobs_T: Tensor
    sampler_logprobs_T: Tensor
    advantages_T: Tensor
    entropies_T: Tensor
    weights_T: Tensor
    sequence_ids_T: Tensor
    num_sequences: int
    num_loss_tokens: int
    ref_logprobs_T: Tensor | None = None
    min_entropy: float = -math.inf
    is_marked_T: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """objective_T: to be maximised, with gradient. ratio_T: the importance ratio used, detached. is_clipped_low_T,
    is_clipped_high_T: True where the clip took the policy gradient away (clip, gspo) or bounded its weight (cispo)."""

    objective_T: Tensor
    ratio_T: Tensor
    is_clipped_low_T: Tensor
    is_clipped_high_T: Tensor


@dataclass(frozen=True, slots=True)
class Correction:
    """log_ratio_T: ln pi_old - ln pi_sampler. importance_T: its exponential, truncated or masked. weights_T: the factor
    of each token's objective: importance_T, or 1 where nothing is to be corrected (mode none). is_corrected_T: True
    where it was truncated or masked. All detached."""

    log_ratio_T: Tensor
    importance_T: Tensor
    weights_T: Tensor
    is_corrected_T: Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """loss: scalar with gradient, this micro-batch's part of the whole. correction: the sampler's, [T] each. sums_K:
    [K] float32, detached, named by STATISTICS."""

    loss: Tensor
    correction: Correction
    sums_K: Tensor


def token_weights(sequence_lengths: Sequence[int], aggregation: Aggregation, denominators: Denominators) -> Tensor:
    """The factor of each token in the loss; over everything that one optimiser update sees, loss = sum_t weight_t *
    loss_t.

    token: 1 / num_loss_tokens (DAPO, arXiv:2503.14476). sequence: 1 / (T_i * num_sequences) (GRPO, arXiv:2402.03300).
    constant: 1 / (num_sequences * max_completion_tokens) (Dr. GRPO, arXiv:2503.20783).

    Args: sequence_lengths: T_i, completion tokens of each sequence of the micro-batch.
    Returns: [T] float32, sequence after sequence.
    Raises: ValueError for an unknown aggregation.
    """
    num_sequences, num_loss_tokens = denominators.num_sequences, denominators.num_loss_tokens
    assert num_sequences >= len(sequence_lengths) and num_loss_tokens >= sum(sequence_lengths)
    lengths_B = torch.tensor(list(sequence_lengths), dtype=torch.long)
    # In float64: 1 / (T_i * num_sequences) rounds once, the same on every split.
    if aggregation == "token":
        weights_B = torch.full(lengths_B.shape, 1.0 / max(1, num_loss_tokens), dtype=torch.float64)
    elif aggregation == "sequence":
        weights_B = 1.0 / (lengths_B.double() * num_sequences)
    elif aggregation == "constant":
        weights_B = torch.full(
            lengths_B.shape, 1.0 / (max(1, num_sequences) * denominators.max_completion_tokens), dtype=torch.float64)
    else:
        raise ValueError(f"loss.aggregation is {aggregation!r}; known are token, sequence, constant")
    return weights_B.repeat_interleave(lengths_B).float()


def sequence_means(values_T: Tensor, sequence_ids_T: Tensor, num_sequences: int) -> Tensor:
    """The mean over each sequence's tokens, given to each of its tokens: [T] -> [T], differentiable."""
    sums_B = values_T.new_zeros(num_sequences).index_add(0, sequence_ids_T, values_T)
    counts_B = values_T.new_zeros(num_sequences).index_add(0, sequence_ids_T, torch.ones_like(values_T))
    return (sums_B / counts_B.clamp(min=1.0))[sequence_ids_T]


def clip(tokens: LossTokens, settings: LossSection, ratio_T: Tensor | None = None) -> Objective:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), rho = pi / pi_old per token (PPO, arXiv:1707.06347).

    clip_high > clip_low is DAPO's clip-higher (arXiv:2503.14476). ratio_T: another rho, with gradient, [T].
    """
    advantages_T = tokens.advantages_T
    if ratio_T is None:
        ratio_T = torch.exp(tokens.logprobs_T - tokens.old_logprobs_T)
    low, high = 1.0 - settings.clip_low, 1.0 + settings.clip_high
    objective_T = torch.minimum(ratio_T * advantages_T, ratio_T.clamp(low, high) * advantages_T)
    ratio_T = ratio_T.detach()
    return Objective(objective_T, ratio_T, (ratio_T < low) & (advantages_T < 0), (ratio_T > high) & (advantages_T > 0))


def gspo(tokens: LossTokens, settings: LossSection) -> Objective:
    """clip with the sequence's ratio s = exp(mean_t ln rho_t) in the place of each token's (GSPO, arXiv:2507.18071).

    In the form of its section 4.3, GSPO-token: sg(s) pi_t / sg(pi_t), whose value is s and whose gradient is that of
    its own token, such that advantages may differ from token to token, as a teacher's do. Where advantage and weight
    are equal over a sequence, value and gradient are those of s itself; with aggregation `sequence` that is the paper's
    objective. A token that a mask takes out (loss.top_entropy_share, loss.correction) gets no gradient from the others.
    Its bounds are far smaller than PPO's (3e-4 and 4e-4).
    """
    logprobs_T = tokens.logprobs_T
    log_ratio_T = sequence_means(logprobs_T - tokens.old_logprobs_T, tokens.sequence_ids_T, tokens.num_sequences)
    return clip(tokens, settings, torch.exp(log_ratio_T).detach() * torch.exp(logprobs_T - logprobs_T.detach()))


def cispo(tokens: LossTokens, settings: LossSection) -> Objective:
    """sg(min(rho, 1 + clip_high)) A ln pi: the weight is bounded, but no token loses its gradient (CISPO,
    arXiv:2506.13585).

    Without a lower bound, as in the paper's experiments: clip_low is not read.
    """
    high, advantages_T = 1.0 + settings.clip_high, tokens.advantages_T
    ratio_T = torch.exp(tokens.logprobs_T.detach() - tokens.old_logprobs_T)
    return Objective(
        ratio_T.clamp(max=high) * advantages_T * tokens.logprobs_T, ratio_T,
        is_clipped_low_T=torch.zeros_like(ratio_T, dtype=torch.bool),
        is_clipped_high_T=(ratio_T > high) & (advantages_T != 0))


LOSSES: dict[str, Callable[[LossTokens, LossSection], Objective]] = {"clip": clip, "cispo": cispo, "gspo": gspo}


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


def covariance_marks(
    logprobs_N: Tensor, advantages_N: Tensor, settings: CovarianceSection, random: torch.Generator
) -> Tensor:
    """Which tokens of a batch loss.covariance acts on (arXiv:2505.22617, section 4.2), by their covariance c = (A -
    mean A)(ln pi - mean ln pi) over these N tokens: [N] bool.

    kl: those of the largest c. clip: some drawn by `random` from those with low < c < high. share * N of them, rounded
    down, at least one; fewer where clip finds fewer. The paper computes c anew in each update, here pi is the policy of
    the batch's start: whatever the micro-batches, the same tokens are marked.
    """
    marks_N = torch.zeros(logprobs_N.shape, dtype=torch.bool)
    if not logprobs_N.numel():
        return marks_N
    logprobs_N, advantages_N = logprobs_N.double(), advantages_N.double()
    covariances_N = (advantages_N - advantages_N.mean()) * (logprobs_N - logprobs_N.mean())
    count = max(1, math.floor(settings.share * len(covariances_N) + 1e-9))
    if settings.mode == "kl":
        marks_N[covariances_N.topk(count).indices] = True
        return marks_N
    candidates = ((covariances_N > settings.low) & (covariances_N < settings.high)).nonzero().flatten()
    marks_N[candidates[torch.randperm(len(candidates), generator=random)[:count]]] = True
    return marks_N


def sampler_correction(tokens: LossTokens, settings: CorrectionSection) -> Correction:
    """The weight that makes samples of the sampler's numerics count as samples of pi_old; s_t = exp(ln pi_old - ln
    pi_sampler).

    none: 1. truncate: min(s_t, cap) (truncated importance sampling). mask_token: s_t inside [low, high], 0 outside.
    mask_sequence: g inside [low, high], 0 outside, with g the geometric mean of the sequence's s_t; so every weight is
    bounded by what was tested. Masked tokens stay in the loss's denominator.

    Raises: ValueError for an unknown mode.
    """
    mode = settings.mode
    if mode not in ("none", "truncate", "mask_token", "mask_sequence"):
        raise ValueError(f"loss.correction.mode is {mode!r}; known are none, truncate, mask_token, mask_sequence")
    log_ratio_T = (tokens.old_logprobs_T - tokens.sampler_logprobs_T).detach()
    if mode == "mask_sequence":
        importance_T = sequence_means(log_ratio_T, tokens.sequence_ids_T, tokens.num_sequences).exp()
    else:
        importance_T = log_ratio_T.exp()
    if mode == "none":
        is_corrected_T = torch.zeros_like(log_ratio_T, dtype=torch.bool)
        return Correction(log_ratio_T, importance_T, torch.ones_like(log_ratio_T), is_corrected_T)
    if mode == "truncate":
        is_corrected_T = importance_T > settings.cap
        importance_T = importance_T.clamp(max=settings.cap)
    else:
        is_corrected_T = (importance_T < settings.low) | (importance_T > settings.high)
        importance_T = importance_T.masked_fill(is_corrected_T, 0.0)
    return Correction(log_ratio_T, importance_T, importance_T, is_corrected_T)


def policy_loss(tokens: LossTokens, settings: LossSection) -> LossOutput:
    """- sum_t w_t (s_t m_t J_t - kl_weight KL_t - D_t) - entropy_bonus / num_loss_tokens * sum_t H_t: one micro-batch's
    part of the loss.

    J is the objective `settings.name`, w the aggregation's weights, s the sampler's correction, m_t = 1 where the
    entropy is at least `min_entropy`. The mask acts on the policy gradient alone and leaves the denominator as it is
    (as in arXiv:2506.01939): KL penalty and entropy bonus keep acting on all tokens. The bonus is the mean token
    entropy under every aggregation. Marked tokens (loss.covariance): under clip m_t = 0, under kl D_t = weight |ln pi -
    ln pi_old|, the penalty of the paper's code, on top of whichever objective.

    Raises: ValueError for an unknown name, or a KL weight without reference log-probabilities.
    """
    assert not tokens.old_logprobs_T.requires_grad, "the old log-probabilities are detached"
    if settings.name not in LOSSES:
        raise ValueError(f"loss.name is {settings.name!r}; known are {', '.join(LOSSES)}")
    if settings.kl_weight != 0.0 and tokens.ref_logprobs_T is None:
        raise ValueError(f"loss.kl_weight is {settings.kl_weight}, but no reference log-probabilities were given: "
                         "compute them or set 0")
    objective = LOSSES[settings.name](tokens, settings)
    correction = sampler_correction(tokens, settings.correction)
    is_kept_T = tokens.entropies_T.detach() >= tokens.min_entropy
    per_token_T = correction.weights_T * is_kept_T * objective.objective_T
    if tokens.is_marked_T is not None:
        per_token_T = _with_covariance(per_token_T, tokens, tokens.is_marked_T, settings.covariance)
    kl_T = torch.zeros_like(tokens.logprobs_T)
    if tokens.ref_logprobs_T is not None:
        kl_T = k3(tokens.logprobs_T, tokens.ref_logprobs_T.detach())
    if settings.kl_weight != 0.0:
        per_token_T = per_token_T - settings.kl_weight * kl_T
    loss = -(tokens.weights_T * per_token_T).sum()
    if settings.entropy_bonus != 0.0:
        loss = loss - settings.entropy_bonus / max(1, tokens.num_loss_tokens) * tokens.entropies_T.sum()
    columns = (
        torch.ones_like(kl_T), objective.ratio_T, objective.is_clipped_low_T, objective.is_clipped_high_T, kl_T,
        tokens.entropies_T, correction.log_ratio_T.abs(), correction.is_corrected_T, is_kept_T)
    sums_K = torch.stack([column.detach().float() for column in columns]).sum(dim=1)
    return LossOutput(loss, correction, sums_K)


def _with_covariance(
    per_token_T: Tensor, tokens: LossTokens, is_marked_T: Tensor, settings: CovarianceSection
) -> Tensor:
    if settings.mode == "clip":
        return per_token_T.masked_fill(is_marked_T, 0.0)
    return per_token_T - settings.weight * is_marked_T * (tokens.logprobs_T - tokens.old_logprobs_T).abs()


def mean_statistics(sums_K: Tensor) -> dict[str, float]:
    """Means per token by name (clip_low, clip_high, corrected and kept are shares), from sums added over micro-batches
    and ranks.

    `num_tokens` itself stays a count. No tokens: all zeros.
    """
    num_tokens, *sums = sums_K.double().tolist()
    means = {name: value / max(1.0, num_tokens) for name, value in zip(STATISTICS[1:], sums, strict=True)}
    return {"num_tokens": num_tokens, **means}
